"""Where: which photos of an index may answer a query."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_real, check_vector

Value = str | float | None
Bounds = tuple[float, float, float, float]

# What the columns of the image table hold that metadata may name, as in DelfIndex.fit.
TEXT_COLUMNS = ("path", "content_hash", "label")
NUMBER_COLUMNS = ("latitude", "longitude")
_INT64 = 2**63


@dataclass(frozen=True)
class OneOf:
    """Equal to one of some values; None stands for a photo that has none."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Range:
    """From a number or text to another, both included; None is open."""

    minimum: Value
    maximum: Value


@dataclass(frozen=True, eq=False)
class Where:
    """The photos that satisfy every condition given here; None sets no condition.

    ids : image ids, integers; one that is not in the index satisfies nothing.
    label : one label, or several of which one must fit.
    bounds : (south, west, north, east) in degrees, edges included. West greater than east is a box
        across the 180th meridian. A photo without a position lies in no box.
    metadata : conditions by name, on what came as metadata of the photos: path, content_hash,
        label, latitude, longitude, or entries of your own. A condition is a value (text, number,
        bool, or None for photos without that entry); a list of values of which one must fit; or a
        range {"min": 2010, "max": 2019} of numbers or texts, both included, either of which may be
        left out. 2 equals 2.0 and True equals 1, as in Python; texts are ordered by code point.

    Immutable and hashable; equal where the conditions are. One of many ids is best made once for
    many queries. Raises TypeError or ValueError that name the condition and what arrived.
    """

    ids: Any = None
    label: Any = None
    bounds: Any = None
    metadata: Any = None
    id_array: NDArray[np.int64] | None = field(init=False, repr=False)  # distinct, rising
    box: Bounds | None = field(init=False, repr=False)
    conditions: tuple[tuple[str, OneOf | Range], ...] = field(init=False, repr=False)
    key: tuple[Any, ...] = field(init=False, repr=False)  # equal where the conditions are

    def __post_init__(self) -> None:
        ids = None if self.ids is None else _check_ids(self.ids)
        box = None if self.bounds is None else _check_bounds(self.bounds)
        metadata = {} if self.metadata is None else self.metadata
        if not isinstance(metadata, Mapping):
            raise TypeError(
                f"where metadata must map names to conditions, e.g. {{'year': 2019}}; got "
                f"{metadata!r}"
            )
        labels = None if self.label is None else _one_of(self.label, "label")
        conditions: dict[str, list[OneOf | Range]] = {}
        if labels is not None:
            conditions["label"] = [labels]
        for name, condition in metadata.items():
            if not isinstance(name, str):
                raise TypeError(f"where metadata must have names of type str; got {name!r}")
            _check_text(name, "a name in where metadata")
            conditions.setdefault(name, []).append(_condition(condition, name))
        listed = tuple((name, one) for name in sorted(conditions) for one in conditions[name])
        digest = None if ids is None else hashlib.blake2b(ids.data).digest()
        derived = {
            "id_array": ids,
            "box": box,
            "conditions": listed,
            "key": (digest, box, listed),
            # What was given may be changed by whoever gave it.
            "ids": ids,
            "label": self.label if labels is None or isinstance(self.label, str) else labels.values,
            "bounds": box,
            "metadata": {name: metadata[name] for name in metadata},
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @staticmethod
    def of(where: Where | Mapping[str, Any] | None) -> Where | None:
        """Return where as a Where that sets some condition, or None.

        A mapping stands for Where(**where). Raises as the constructor does.
        """
        if isinstance(where, Mapping):
            known = [one.name for one in fields(Where) if one.init]
            for name in where:
                if name not in known:
                    raise ValueError(
                        f"where must have no keys but {', '.join(known)}; got {name!r}. Entries of "
                        "your own go into metadata: {'metadata': {...}}"
                    )
            where = Where(**where)
        if not isinstance(where, Where | None):
            raise TypeError(
                f"where must be a Where or a mapping, e.g. {{'label': 'tower'}}; got {where!r}"
            )
        return None if where is None or where.key == (None, None, ()) else where

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, Where) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)


def _check_ids(ids: Any) -> NDArray[np.int64]:
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise TypeError(f"where ids must be a list of integers; got {ids!r}")
    values = ids if isinstance(ids, np.ndarray) else np.array(list(ids))
    if values.size == 0:
        values = np.zeros(0, np.int64)  # an empty list is float64 to NumPy
    if values.dtype == bool:
        raise TypeError(f"where ids must be a list of integers; got {ids!r}")
    # np.unique hashes, which takes ten times as long.
    ordered = np.sort(check_vector(values, "where ids", np.int64))
    distinct: NDArray[np.int64] = ordered[np.diff(ordered, prepend=ordered[:1] - 1) != 0]
    distinct.setflags(write=False)
    return distinct


def _check_bounds(bounds: Any) -> Bounds:
    form = "(south, west, north, east) in degrees"
    if isinstance(bounds, str | bytes | Mapping) or not isinstance(bounds, Iterable):
        raise TypeError(f"where bounds must be {form}; got {bounds!r}")
    values = [_plain(value) for value in bounds]
    if len(values) != 4:
        raise ValueError(f"where bounds must be 4 numbers, {form}; got {len(values)}")
    limits = {"south": 90.0, "west": 180.0, "north": 90.0, "east": 180.0}
    south, west, north, east = (
        check_real(value, f"where bounds: {side}", minimum=-limit, maximum=limit)
        for value, (side, limit) in zip(values, limits.items())
    )
    if south > north:
        raise ValueError(
            f"where bounds must have south <= north; got south {south}, north {north}. The order "
            f"is {form}"
        )
    return south, west, north, east


def _condition(condition: Any, name: str) -> OneOf | Range:
    if not isinstance(condition, Mapping):
        return _one_of(condition, name)
    what = f"where metadata {name!r}"
    if not condition or not set(condition) <= {"min", "max"}:
        raise ValueError(f"{what} must be a range {{'min': ..., 'max': ...}}; got {condition!r}")
    low, high = (_value(condition.get(end), name) for end in ("min", "max"))
    kinds = {isinstance(end, str) for end in (low, high) if end is not None}
    if len(kinds) != 1 or any(isinstance(_plain(end), bool) for end in condition.values()):
        raise TypeError(f"{what} must range over numbers or over texts; got {condition!r}")
    if low is not None and high is not None and low > high:  # type: ignore[operator]
        raise ValueError(f"{what} must have min <= max; got {condition!r}")
    return Range(low, high)


def _one_of(given: Any, name: str) -> OneOf:
    """Return one value or several as OneOf."""
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
    if several and isinstance(given, np.ndarray) and given.ndim == 0:
        several = False
    values = {_value(one, name) for one in (given if several else [given])}
    return OneOf(tuple(sorted(values, key=_order)))


def _order(value: Value) -> tuple[int, Any]:
    if value is None:
        return 0, 0
    return (2, value) if isinstance(value, str) else (1, value)


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as Python's own."""
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value


def _value(value: Any, name: str) -> Value:
    """Return what a condition compares with."""
    what = "where label" if name == "label" else f"where metadata {name!r}"
    value = _plain(value)
    if value is None:
        return None
    if isinstance(value, str):
        if name in NUMBER_COLUMNS:
            raise TypeError(f"{what} must be a number; got {value!r}")
        _check_text(value, what)
        return value
    if name in TEXT_COLUMNS:
        raise TypeError(f"{what} must be text; got {value!r}")
    if not isinstance(value, Real):
        raise TypeError(
            f"{what} must be a value (text, number, bool, None), a list of values or a range "
            f"{{'min': ..., 'max': ...}}; got {value!r}"
        )
    if isinstance(value, Integral) and -_INT64 <= int(value) < _INT64:
        return int(value)
    try:
        return check_real(value, what)
    except OverflowError:
        raise ValueError(f"{what} must be below 1.8e308; got {value!r}") from None


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not valid Unicode: {text!r}") from None
