"""Checkpoints that torch saved: torchvision's state dicts, and the PyTorch port of DELF.

Nothing is executed: torch.load(weights_only=True), which here may also build plain NumPy numbers,
as older checkpoints keep an accuracy that way. The port (nashory/DeLF-pytorch) saves a dictionary
of state dicts: "base", torchvision's ResNet50 as a sequence (0 is conv1, 1 is bn1, 4 to 6 are
layer1 to layer3), and, after its second stage, "attn", the head. It does not normalise its input
beyond 0 ... 1. Other dictionaries are searched for a state dict under the usual names, and what
stands before the usual tensor names is taken off.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from delfsearch.errors import WeightsError

TORCHVISION_META: dict[str, Any] = {
    "layout": "torchvision",
    "bn_eps": 1e-5,
    "input_mean": [123.675, 116.28, 103.53],
    "input_std": [58.395, 57.12, 57.375],
    "provenance": "a state dict without metadata, taken for torchvision's",
}
_PORT_META = {
    **TORCHVISION_META,
    "input_mean": [0.0] * 3,
    "input_std": [255.0] * 3,
    "provenance": "a checkpoint of the PyTorch port DeLF-pytorch",
}
_PORT_SEQUENCE = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3"}
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
_LANDMARK = "layer1.0.conv1.weight"  # a name that every ResNet50 has, and once only


def read_torch(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return our arrays and metadata of a .pth, .pt, .bin or .tar file.

    Raises WeightsError where it is damaged, holds code, or holds no state dict.
    """
    shown = f"weights {str(path)!r}"
    try:
        loaded = _load(path)
    except Exception as error:  # torch documents no common base for what a damaged file raises
        raise WeightsError(
            f"{shown} are not a state dict that torch.load(weights_only=True) reads "
            f"({type(error).__name__}): the file is damaged, or holds code, which is never run. "
            "Where you trust it, save its tensors alone: torch.save(model.state_dict(), path)"
        ) from None
    if not isinstance(loaded, Mapping):
        raise WeightsError(
            f"{shown} must be a state dict (names to tensors); got {type(loaded).__name__}. "
            "Save it with torch.save(model.state_dict(), path)"
        )
    if _is_state_dict(loaded.get("base")):
        return _port(loaded, shown), dict(_PORT_META)
    for name in _WRAPPERS:
        if not _is_state_dict(loaded) and _is_state_dict(loaded.get(name)):
            loaded = loaded[name]
    if not _is_state_dict(loaded):
        raise WeightsError(
            f"{shown} must be a state dict (names to tensors); save state_dict() alone"
        )
    return from_state_dict(_to_numpy(loaded)), dict(TORCHVISION_META)


def from_state_dict(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return a ResNet's tensors without what stands before their names ("module.", ...)."""
    roots = [name.removesuffix(_LANDMARK) for name in arrays if name.endswith(_LANDMARK)]
    if len(roots) != 1 or not roots[0]:
        return dict(arrays)
    return {name.removeprefix(roots[0]): array for name, array in arrays.items()}


def _port(loaded: Mapping[str, Any], shown: str) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in _to_numpy(loaded["base"]).items():
        found = re.fullmatch(r"(\d+)\.(.+)", name)
        if found is None or found[1] not in _PORT_SEQUENCE:
            raise WeightsError(f"{shown}: 'base' holds an unexpected tensor {name!r}")
        arrays[f"{_PORT_SEQUENCE[found[1]]}.{found[2]}"] = array
    if "attn" not in loaded:  # its first stage, which only tunes the descriptors
        return arrays
    if not _is_state_dict(loaded["attn"]):
        raise WeightsError(f"{shown}: 'attn' must be a state dict, as 'base' is")
    for name, array in _to_numpy(loaded["attn"]).items():
        arrays[f"attention.{name}"] = array
    return arrays


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(v, torch.Tensor) for v in value.values())
    )


def _to_numpy(state: Mapping[Any, torch.Tensor]) -> dict[str, NDArray[Any]]:
    return {str(key): value.detach().float().numpy() for key, value in state.items()}


def _load(path: Path) -> Any:
    """Load tensors and plain containers, and NumPy numbers too where this torch can."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # it names something that is not allowed: perhaps only these
        manager = getattr(torch.serialization, "safe_globals", None)
        if manager is None:
            raise
        with manager(_number_makers()):
            return torch.load(path, map_location="cpu", weights_only=True)


def _number_makers() -> list[Any]:
    """Return what NumPy's numbers and arrays of numbers are pickled with, in NumPy 1 and 2."""
    scalar = np.float64(0).__reduce__()[0]
    reconstruct = np.empty(0).__reduce__()[0]
    allowed: list[Any] = [np.ndarray, np.dtype]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(scalar, f"{module}.scalar"), (reconstruct, f"{module}._reconstruct")]
    return allowed + [type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8")]
