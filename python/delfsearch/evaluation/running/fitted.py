"""What a system learns from photos (a PCA, a whitening), kept on disk and named by what made it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.evaluation.running.feature_store import DAMAGED, file_version, key_of

Arrays = dict[str, NDArray[Any]]

# Parameters that features do not depend on, or only through what was learned.
_MACHINE = ("n_jobs", "device", "verbose", "n_fit_photos", "random_state")


def kept(folder: Path, identity: Any, learn: Callable[[], Mapping[str, NDArray[Any]]]) -> Arrays:
    """Return what learn gives, from disk if it was learned before and is not damaged.

    identity : what JSON can hold; everything that the result depends on.
    """
    path = folder / "fitted" / f"{key_of(identity)}.npz"
    try:
        return _stored(path)
    except DAMAGED:  # or not there
        arrays = learn()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)
    return _stored(path)


def _stored(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored}


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return a short hash of arrays by name."""
    made = hashlib.blake2b(digest_size=12)
    for name in sorted(arrays):
        made.update(name.encode())
        made.update(np.ascontiguousarray(arrays[name]).tobytes())
    return made.hexdigest()


def versions(photos: Iterable[Path]) -> list[list[Any]]:
    """Return what tells photo files from changed ones."""
    return [[str(photo), file_version(photo)] for photo in photos]


def settings_of(system: Any) -> dict[str, Any]:
    """Return the parameters that a system's features depend on, as JSON holds them."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in system.get_params().items()
        if name not in _MACHINE
    }


def learned_arrays(system: Any) -> Arrays:
    """Return what fit taught a system."""
    whitening = getattr(system, "whitening_", None)
    if whitening is not None:
        return {"mean": whitening.mean_, "components": whitening.components_}
    return dict(system.pca_.to_arrays())


def teach(system: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Give a system what learned_arrays returned of one like it."""
    if "components" not in arrays:
        from delfsearch.extraction.reduction import PcaReduction

        whiten = bool(getattr(system, "whiten", False))
        system.pca_ = PcaReduction.from_arrays(dict(arrays), whiten=whiten)
        return
    from delfsearch.baselines.whitening import DiscriminativeWhitening

    whitening = DiscriminativeWhitening(system.n_components, shrinkage=system.shrinkage)
    whitening.mean_, whitening.components_ = arrays["mean"], arrays["components"]
    whitening.n_features_in_ = len(whitening.mean_)
    system.whitening_ = whitening
