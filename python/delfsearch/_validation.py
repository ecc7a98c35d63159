"""The one place that coerces arrays or refuses them.

Errors name the argument, what arrived and the remedy.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_matrix(
    X: Any,
    name: str,
    *,
    n_columns: int | None = None,
    min_rows: int = 0,
    columns_of: str = "in fit",
) -> NDArray[np.float32]:
    """Return X as a C-contiguous (n, d) float32 matrix of finite values, copying only if needed."""
    array = np.asarray(X)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be a numeric array; got dtype {array.dtype}")
    if array.ndim != 2:
        raise ValueError(
            f"{name} must be a 2-D array (n, d); got shape {array.shape}. "
            "Reshape a single descriptor with x[None, :]"
        )
    if n_columns is not None and array.shape[1] != n_columns:
        raise ValueError(
            f"{name} must have {n_columns} columns (as {columns_of}); got {array.shape[1]}"
        )
    if array.shape[0] < min_rows:
        raise ValueError(f"{name} must have at least {min_rows} row(s); got {array.shape[0]}")
    if array.dtype == np.float32:
        matrix = np.ascontiguousarray(array)
    else:
        with np.errstate(over="ignore"):
            matrix = np.ascontiguousarray(array, dtype=np.float32)
    check_finite(matrix, name)
    return matrix


def check_points(X: Any, name: str, *, n_rows: int | None = None) -> NDArray[np.float32]:
    """Return X as C-contiguous (n, 2) float32 finite pixel positions."""
    points = check_matrix(X, name, n_columns=2, columns_of="(x, y)")
    if n_rows is not None and len(points) != n_rows:
        raise ValueError(f"{name} must have {n_rows} rows, one per descriptor; got {len(points)}")
    return points


def check_vector(X: Any, name: str, dtype: Any, *, n: int | None = None) -> NDArray[Any]:
    """Return X as a C-contiguous 1-D array of dtype; floats must be finite, integers must fit."""
    array = np.asarray(X)
    if array.ndim != 1:
        raise ValueError(f"{name} must be a 1-D array; got shape {array.shape}")
    if n is not None and len(array) != n:
        raise ValueError(f"{name} must have {n} elements; got {len(array)}")
    target = np.dtype(dtype)
    if target.kind in "iu":
        if array.size and array.dtype.kind not in "iub":
            raise ValueError(f"{name} must be integers; got dtype {array.dtype}")
        info = np.iinfo(target)
        if array.size and (array.min() < info.min or array.max() > info.max):
            raise ValueError(f"{name} must fit {target}; got values up to {array.max()}")
    elif array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be numeric; got dtype {array.dtype}")
    vector = np.ascontiguousarray(array, dtype=target)
    if target.kind == "f":
        check_finite(vector, name)
    return vector


def check_finite(array: NDArray[Any], name: str) -> None:
    """Refuse NaN and infinity, naming the first row that has one."""
    # The sum is finite whenever all values are, short of overflow: one cheap pass in the good case.
    with np.errstate(over="ignore", invalid="ignore"):
        if array.size == 0 or np.isfinite(array.sum(dtype=np.float64)):
            return
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise ValueError(
            f"{name} must be finite; got {array[bad][0]} in row {row}. Remove such rows first"
        )


def check_integer(
    value: Any, name: str, *, minimum: int | None = None, maximum: int | None = None
) -> int:
    """Return value as an int within [minimum, maximum]."""
    # Asking an abstract class takes longer than all else.
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    number = int(value)
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {number}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum}; got {number}")
    return number


def check_real(
    value: Any,
    name: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive_minimum: bool = False,
) -> float:
    """Return value as a finite float within [minimum, maximum]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {value!r}")
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"{name} must be finite; got {number}")
    if minimum is not None and (number < minimum or (exclusive_minimum and number == minimum)):
        bound = "greater than" if exclusive_minimum else "at least"
        raise ValueError(f"{name} must be {bound} {minimum}; got {number}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum}; got {number}")
    return number


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """Return value if it is one of choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
    return str(value)


def check_n_jobs(n_jobs: int | None) -> int:
    """Turn scikit-learn's n_jobs into a thread count for the core (0 = all cores)."""
    if n_jobs is None:
        return 1
    jobs = check_integer(n_jobs, "n_jobs", minimum=-1, maximum=2**31 - 1)
    if jobs == 0:
        raise ValueError("n_jobs must be -1 (all cores), None (1) or at least 1; got 0")
    return 0 if jobs == -1 else jobs


def check_seed(random_state: Any) -> int:
    """Turn a scikit-learn random_state into one 64-bit seed for the core."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(0, 2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(0, 2**63 - 1))
    return check_integer(random_state, "random_state", minimum=0, maximum=2**63 - 1)
