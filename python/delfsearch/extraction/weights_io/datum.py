"""The PCAs that come with other people's weights: the official DELF's .datum files, the port's .h5.

A .datum file is one protocol buffer: a shape and its floats. A folder of them holds mean.datum (d,)
and pca_proj_mat.datum (k, d), one principal direction a row, and may hold pca_vars.datum (k,). The
PyTorch port writes pca_mean, pca_matrix and pca_vars into one HDF5 file. Both are applied as ours
is: L2-normalise, subtract the mean, project, L2-normalise. Source: datum.proto and
feature_extractor.py of research/delf in tensorflow/models.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.errors import WeightsError
from delfsearch.extraction.weights_io.protobuf import (
    Malformed,
    fields,
    packed_numbers,
    submessage,
)

MEAN, PROJECTION, VARIANCES = "mean.datum", "pca_proj_mat.datum", "pca_vars.datum"
_MAX_BYTES = 64 << 20


def read_datum(path: Path) -> NDArray[np.float32]:
    """Return the array of a .datum file. Raises WeightsError where absent or damaged."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise Malformed(f"it has {path.stat().st_size} bytes")
        return _parse(memoryview(path.read_bytes()))
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from None
    except Malformed as error:
        raise WeightsError(f"{path} is not a whole .datum file: {error}. Copy it again") from None


def _parse(message: memoryview) -> NDArray[np.float32]:
    shape: list[int] = []
    floats: list[memoryview] = []
    for key, value in fields(message):
        if key == 1:
            shape += [
                dim for k, v in fields(submessage(value)) if k == 1 for dim in packed_numbers(v)
            ]
        elif key == 2:
            for k, v in fields(submessage(value)):
                if k == 1:
                    # Packed, or one by one, as the first writers did.
                    part = v.to_bytes(8, "little")[:4] if isinstance(v, int) else v
                    floats.append(memoryview(part))
    content = b"".join(floats)
    if min(shape, default=0) < 0 or len(shape) > 8 or 4 * math.prod(shape) != len(content):
        raise Malformed(f"it holds {len(content) / 4:g} floats for the shape {tuple(shape)[:8]}")
    return np.frombuffer(content, "<f4").reshape(shape).astype(np.float32)


def read_pca(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return a PCA under our names: pca.mean, pca.components, pca.explained_variance.

    path : a folder of .datum files, or an .h5 file. Variances that are not there are zeros: such a
    PCA does not whiten. Raises WeightsError where it is absent, damaged or disagrees with itself.
    """
    variances: NDArray[np.float32] | None = None
    if path.is_dir():
        mean, components = read_datum(path / MEAN), read_datum(path / PROJECTION)
        if (path / VARIANCES).exists():
            variances = read_datum(path / VARIANCES)
    else:
        mean, components, variances = _read_hdf5(path)
    mean = mean.reshape(-1)
    if components.ndim != 2 or components.shape[1:] != mean.shape:
        raise WeightsError(
            f"the PCA in {path} disagrees with itself: its mean has {len(mean)} elements, its "
            f"matrix the shape {components.shape}"
        )
    variances = np.zeros(len(components), np.float32) if variances is None else variances
    variances = variances.reshape(-1)
    if len(variances) != len(components):
        raise WeightsError(
            f"the PCA in {path} must have {len(components)} variances, one a row of its matrix; "
            f"got {len(variances)}"
        )
    if not all(np.isfinite(array).all() for array in (mean, components, variances)):
        raise WeightsError(f"the PCA in {path} must be finite")
    return {
        "pca.mean": mean,
        "pca.components": components,
        "pca.explained_variance": variances,
    }


def _read_hdf5(path: Path) -> tuple[NDArray[np.float32], ...]:
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError:
        raise WeightsError(
            f"reading the PCA in {path} needs h5py: pip install 'delfsearch[hdf5]'"
        ) from None
    try:
        with h5py.File(path, "r") as file:
            mean, matrix, variances = (
                np.asarray(file[name], np.float32)
                for name in ("pca_mean", "pca_matrix", "pca_vars")
            )
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path} is not the PyTorch port's PCA, an HDF5 file with pca_mean, pca_matrix and "
            f"pca_vars ({error})"
        ) from None
    return mean, matrix, variances
