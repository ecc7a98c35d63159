"""Uniform 8-bit quantization of each dimension: the codes that the KD-tree holds and compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch import _core
from delfsearch._validation import check_integer, check_matrix, check_real, check_vector

# As in quantizer.hpp: beyond it a squared distance could overflow float32.
MAX_MAGNITUDE = 1e16


def check_descriptors(
    X: Any, name: str, *, n_columns: int | None = None, min_rows: int = 0
) -> NDArray[np.float32]:
    """Return X as a C-contiguous float32 matrix whose squared distances do not overflow."""
    matrix = check_matrix(X, name, n_columns=n_columns, min_rows=min_rows)
    if matrix.size and max(-matrix.min(), matrix.max()) > MAX_MAGNITUDE:
        raise ValueError(
            f"{name} must lie within +-{MAX_MAGNITUDE:g}; got {np.abs(matrix).max():g}. "
            "Rescale them"
        )
    return matrix


@dataclass(frozen=True, eq=False)
class UniformQuantizer:
    """Code c of dimension i stands for lower[i] + step[i] * c.

    lower, step : (d,) float32. step is not negative; 0 for a constant dimension, whose code is 0.
    Raises ValueError where lengths differ or a value is not finite.
    Source: Sec. 5.2.
    """

    lower: NDArray[np.float32]
    step: NDArray[np.float32]

    def __post_init__(self) -> None:
        lower = check_vector(self.lower, "lower", np.float32)
        step = check_vector(self.step, "step", np.float32, n=len(lower))
        if len(step) == 0 or step.min() < 0:
            raise ValueError("step must have one value per dimension, none negative")
        if np.abs(lower).max() > 2 * MAX_MAGNITUDE or step.max() > MAX_MAGNITUDE:
            raise ValueError(f"lower and step must lie within +-{MAX_MAGNITUDE:g}")
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "step", step)

    @staticmethod
    def learn(X: Any, *, clip_quantile: float = 0.9999) -> UniformQuantizer:
        """Choose range and step of each dimension.

        X : (n, d) float32, n >= 1; above 2^18 rows, quantiles come from that many at equal spacing.
        clip_quantile : share of the values of each dimension that the range covers, in (0, 1]; half
            of the others lie on either side of it. 1 takes in the largest and smallest value.
        Raises ValueError where a value is not finite or beyond +-1e16.
        """
        quantile = check_real(
            clip_quantile, "clip_quantile", minimum=0, maximum=1, exclusive_minimum=True
        )
        lower, step = _core.fit_quantizer(check_descriptors(X, "X", min_rows=1), quantile)
        return UniformQuantizer(lower, step)

    @property
    def dimension(self) -> int:
        """Number of columns d."""
        return len(self.lower)

    def quantize(self, X: Any) -> NDArray[np.uint8]:
        """Return the (n, d) uint8 codes of X (n, d): nearest, halves to even, clipped to 0..255."""
        matrix = check_descriptors(X, "X", n_columns=self.dimension)
        return _core.quantize(self.lower, self.step, matrix)

    def decode(self, codes: Any) -> NDArray[np.float32]:
        """Return the (n, d) float32 values that codes (n, d) uint8 stand for."""
        return _core.decode(self.lower, self.step, check_codes(codes, self.dimension))


def check_codes(codes: Any, dimension: int, *, name: str = "codes") -> NDArray[np.uint8]:
    """Return codes as a C-contiguous (n, dimension) uint8 matrix."""
    array = np.asarray(codes)
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != dimension:
        raise ValueError(
            f"{name} must be a (n, {dimension}) uint8 array; got {array.dtype} {array.shape}"
        )
    return np.ascontiguousarray(array)


def check_rows(rows: Any, n_rows: int) -> NDArray[np.int64]:
    """Return numbers (r,) of rows 0 ... n_rows - 1 as int64."""
    wanted = check_vector(rows, "rows", np.int64)
    if len(wanted) and (wanted.min() < 0 or wanted.max() >= n_rows):
        raise ValueError(f"rows must lie in [0, {n_rows}); got {wanted.min()} to {wanted.max()}")
    return wanted


def check_mask(mask: Any, n_rows: int) -> NDArray[np.bool_]:
    """Return mask (n_rows,) bool."""
    array = np.asarray(mask)
    if array.dtype != bool or array.shape != (n_rows,):
        raise ValueError(f"mask must be ({n_rows},) bool; got {array.shape} {array.dtype}")
    return array


def check_row_range(start: int, stop: int | None, n_rows: int) -> tuple[int, int]:
    """Return 0 <= start <= stop <= n_rows; None means n_rows."""
    stop = n_rows if stop is None else stop
    stop = check_integer(stop, "stop", minimum=0, maximum=n_rows)
    return check_integer(start, "start", minimum=0, maximum=stop), stop
