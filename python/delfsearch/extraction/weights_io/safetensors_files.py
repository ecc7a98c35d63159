"""Our own weights files: safetensors with one JSON object of ours in its metadata.

The sha256 there is of all tensors' names, dtypes, shapes and contents, and is checked on reading.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from delfsearch._validation import check_choice
from delfsearch.errors import WeightsError
from delfsearch.extraction.network import STRIDE_LAYOUTS, layers
from delfsearch.extraction.receptive_field import receptive_field

SAVED_DTYPES = ("float32", "float16", "bfloat16")


def save_weights(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    meta: Mapping[str, Any],
    *,
    dtype: str | None = None,
) -> None:
    """Write a weights file atomically: arrays and, as JSON, what Weights describes.

    meta : keys as Weights.to_meta returns them; others are kept too. The receptive field is added
        where there is a layout.
    dtype : "float32", "float16" or "bfloat16" for kernels and matrices; vectors (statistics,
        biases, variances) stay float32, whose range they may need. None keeps every array's own.
    Raises WeightsError where a number exceeds float16.
    """
    tensors = {}
    for name, array in arrays.items():
        tensor = torch.from_numpy(np.array(array, order="C"))
        tensors[name] = tensor if dtype is None else _to_dtype(name, tensor, dtype)
    described = dict(meta)
    if described.get("layout") in STRIDE_LAYOUTS:
        field_ = receptive_field(layers(described["layout"]), 321)
        described["receptive_field"] = {
            "size": field_.size,
            "stride": field_.stride,
            "padding": field_.padding,
        }
    text = json.dumps({**described, "sha256": _digest_tensors(tensors)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, temporary, metadata={"delfsearch": text})
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _to_dtype(name: str, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    check_choice(dtype, "dtype", SAVED_DTYPES)
    if not tensor.is_floating_point():
        return tensor
    target = torch.float32 if tensor.ndim < 2 else getattr(torch, dtype)
    result = tensor.to(target)
    if not torch.isfinite(result).all() and torch.isfinite(tensor).all():
        raise WeightsError(
            f"{name} holds {float(tensor.abs().max()):g}, beyond the range of {dtype}: use "
            "dtype='bfloat16' or 'float32'"
        )
    return result


def digest_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the sha256 of the names, dtypes, shapes and contents of arrays."""
    return _digest_tensors({name: torch.from_numpy(np.array(a)) for name, a in arrays.items()})


def _digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.dtype == torch.bfloat16:  # NumPy has no such type
            tensor = tensor.view(torch.int16)
        array = tensor.numpy()
        digest.update(f"{name} {dtype} {array.shape};".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays of a safetensors file and our metadata in it ({} where there is none).

    bfloat16 comes as float32. Raises WeightsError where it is damaged.
    """
    arrays, meta, _ = read_with_digest(path)
    return arrays, meta


def read_with_digest(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any], str]:
    """Return what read_safetensors does, and the sha256 that identifies the weights."""
    shown = f"weights {os.fspath(path)!r}"
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            meta = json.loads((file.metadata() or {}).get("delfsearch", "{}"))
        if not isinstance(meta, dict):
            raise ValueError("its metadata are no JSON object")
        digest = _digest_tensors(tensors)
        bfloat16 = torch.bfloat16
        arrays = {k: (t.float() if t.dtype == bfloat16 else t).numpy() for k, t in tensors.items()}
    except (safetensors.SafetensorError, OSError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{shown} are not a readable safetensors file ({error}); if it is in the cache, delete "
            "it and it is fetched again"
        ) from None
    if meta.get("sha256", digest) != digest:
        raise WeightsError(f"{shown} are damaged: their contents do not match their checksum")
    return arrays, meta, digest
