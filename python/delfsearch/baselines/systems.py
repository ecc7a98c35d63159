"""Every system that the paper compares, by name, behind two interfaces.

A system has `name`, `kind` ("local" or "global"), `ran` (what actually ran, for instance which
weights stood in), `needs` (what fit has yet to see: "nothing", "photos", or photos with "labels"),
`fit(photos, y=None)`, and `stream(photos)`, which yields (photo, LocalFeatures or one vector (d,)
float32, or the PhotoError of a photo that cannot be read). Local systems go through DelfIndex and
Verifier, with `max_squared_distance` for the index and, where it was measured,
`suggested_min_inliers` for the verifier; global ones through GlobalIndex, with
`query_expansion` for its query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from delfsearch.errors import PhotoError
from delfsearch.features import LocalFeatures


class LocalFeatureSystem(Protocol):
    """What every local system offers, see the module."""

    kind: Literal["local"]
    max_squared_distance: float | None
    suggested_min_inliers: int | None

    @property
    def name(self) -> str:
        """Its name in tables."""
        ...

    @property
    def ran(self) -> str:
        """What actually runs."""
        ...

    @property
    def needs(self) -> Literal["nothing", "photos"]:
        """What fit has yet to see."""
        ...

    def fit(self, photos: Iterable[Any], y: Any = None) -> Any:
        """Learn what it needs; return self."""
        ...

    def stream(self, photos: Iterable[Any]) -> Iterator[tuple[Any, LocalFeatures | PhotoError]]:
        """Yield each photo with its features."""
        ...


class GlobalVectorSystem(Protocol):
    """What every global system offers, see the module."""

    kind: Literal["global"]
    query_expansion: int

    @property
    def name(self) -> str:
        """Its name in tables."""
        ...

    @property
    def ran(self) -> str:
        """What actually runs."""
        ...

    @property
    def needs(self) -> Literal["nothing", "photos", "labels"]:
        """What fit has yet to see."""
        ...

    def fit(self, photos: Iterable[Any], y: Any = None) -> Any:
        """Learn what it needs; return self."""
        ...

    def stream(
        self, photos: Iterable[Any]
    ) -> Iterator[tuple[Any, NDArray[np.float32] | PhotoError]]:
        """Yield each photo with its vector."""
        ...


def _dir(**options: Any) -> Any:
    from delfsearch.baselines.dir import DirExtractor

    return DirExtractor(**options)


def _siamac(**options: Any) -> Any:
    from delfsearch.baselines.siamac import SiamacExtractor

    return SiamacExtractor(**options)


def _congas(**options: Any) -> Any:
    from delfsearch.baselines.congas import CongasExtractor

    return CongasExtractor(**options)


def _sift(**options: Any) -> Any:
    from delfsearch.baselines.sift import SiftExtractor

    return SiftExtractor(**options)


def _xfeat(**options: Any) -> Any:
    from delfsearch.baselines.xfeat import XFeatExtractor

    return XFeatExtractor(**options)


def _aliked(**options: Any) -> Any:
    from delfsearch.baselines.aliked import AlikedExtractor

    return AlikedExtractor(**options)


def _delf(**options: Any) -> Any:
    from delfsearch.baselines.delf import DelfSystem

    return DelfSystem(**options)


def _lift(**options: Any) -> Any:
    from delfsearch.baselines.lift import LiftFeatures

    return LiftFeatures(**options)


def _stored(**options: Any) -> Any:
    from delfsearch.baselines.feature_files import StoredFeatures

    return StoredFeatures(**options)


def _stored_vectors(**options: Any) -> Any:
    from delfsearch.baselines.feature_files import StoredVectors

    return StoredVectors(**options)


# Name -> what makes it, and the options that the name fixes.
_SYSTEMS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "delf": (_delf, {}),
    "dir": (_dir, {"query_expansion": 0}),
    "dir+qe": (_dir, {"query_expansion": 1}),
    "siamac": (_siamac, {"query_expansion": 0}),
    "siamac+qe": (_siamac, {"query_expansion": 1}),
    "congas": (_congas, {}),
    "sift": (_sift, {"root": False}),
    "rootsift": (_sift, {"root": True}),
    "xfeat": (_xfeat, {}),
    "aliked": (_aliked, {}),
    "lift": (_lift, {}),
    "features": (_stored, {}),
    "vectors": (_stored_vectors, {}),
}
SYSTEMS = tuple(_SYSTEMS)


def load_system(name: str, /, **options: Any) -> Any:
    """Return a system by name, unfitted.

    name : one of SYSTEMS. "lift" reads its released output (folder=...); "features" and "vectors"
        read a user's own files (path=...).
    options : the constructor's, see DelfSystem, DirExtractor, SiamacExtractor, CongasExtractor,
        SiftExtractor, XFeatExtractor, AlikedExtractor, LiftFeatures, StoredFeatures, StoredVectors.
    Returns a LocalFeatureSystem or a GlobalVectorSystem, by its `kind`.
    Raises ValueError for another name or where an option contradicts it, TypeError for an option
    that the system does not have or one that it needs; what the system needs and
    lacks (a package, weights) is said when it is first used.
    """
    if name not in _SYSTEMS:
        raise ValueError(f"name must be one of {', '.join(map(repr, SYSTEMS))}; got {name!r}")
    make, fixed = _SYSTEMS[name]
    for key, value in fixed.items():
        if options.get(key, value) != value:
            raise ValueError(f"{name!r} means {key}={value!r}; got {options[key]!r}")
    try:
        return make(**{**options, **fixed})
    except TypeError as error:
        raise TypeError(f"{name!r} takes other options: {error}") from None
