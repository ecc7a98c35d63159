"""Network weights by name (registry.py) or path, checked.

A weights file holds the trunk's tensors under torchvision's names, optionally an attention head
(attention.conv1 and attention.conv2, weight and bias) and a PCA (pca.mean, pca.components,
pca.explained_variance), and in its metadata what a caller must know to run them: see Weights. Files
without metadata are taken for torchvision's: layout "torchvision", its epsilon and its input
normalisation. Tensors may be float16 or bfloat16; they are run in float32 or as the extractor says.
Other people's formats are read by weights_io. Nothing in a file is ever run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from delfsearch.errors import WeightsError
from delfsearch.extraction.network import N_CHANNELS, STRIDE_LAYOUTS, layers, tensor_shapes
from delfsearch.extraction.receptive_field import ReceptiveField, receptive_field
from delfsearch.extraction.registry import (
    DEFAULT_WEIGHTS,
    REGISTRY,
    SHIPPED,
    NpmWeights,
    cache_dir,
    cached_path,
    fetch_archive,
    install_archive,
    known_names,
    package_file,
)
from delfsearch.extraction.weights_io.formats import is_there, read_foreign
from delfsearch.extraction.weights_io.safetensors_files import (
    digest_arrays,
    read_safetensors,
    read_with_digest,
    save_weights,
)
from delfsearch.extraction.weights_io.torch_files import TORCHVISION_META, from_state_dict

__all__ = [
    "DEFAULT_WEIGHTS",
    "REGISTRY",
    "SHIPPED",
    "NpmWeights",
    "Weights",
    "cache_dir",
    "cached_path",
    "install_archive",
    "load_weights",
    "make_weights",
    "read_safetensors",
    "save_weights",
]

MODEL_FILE = "model.safetensors"  # of a folder in the Hugging Face habit, see pretrained.py
_PCA_NAMES = ("pca.mean", "pca.components", "pca.explained_variance")
_ATTENTION_NAMES = tuple(f"attention.conv{i}.{part}" for i in (1, 2) for part in ("weight", "bias"))
_EXPANSION_NAMES = ("attention.conv0.weight", "attention.conv0.bias")
_VARIANCES = ("running_var", "pca.explained_variance")
# What a whole ResNet50 has beyond conv4_x; anything else is an error.
_IGNORED_PREFIXES = ("layer4.", "fc.")


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors, and what a caller must know to run them.

    tensors : trunk, float32, torchvision's names. layout : one of STRIDE_LAYOUTS. bn_eps : epsilon
    of batch normalisation. input_mean, input_std : RGB in 0 ... 255, the network sees
    (x - mean) / std. attention, pca : the optional parts, empty where absent; a PCA without
    variances has zeros for them. sha256 : of names and contents of all tensors, whatever the file
    format. score_scale : the attention score is softplus times this, which gives the threshold
    beta its meaning. score_meaning : what that attention score then is, in words, "" where nobody
    said. recipe : how they were trained, any JSON object.
    """

    name: str
    tensors: dict[str, torch.Tensor] = field(repr=False)
    layout: str
    bn_eps: float
    input_mean: tuple[float, float, float]
    input_std: tuple[float, float, float]
    attention: dict[str, torch.Tensor] = field(repr=False)
    pca: dict[str, NDArray[Any]] = field(repr=False)
    sha256: str
    provenance: str
    licence: str
    score_scale: float = 1.0
    score_meaning: str = ""
    recipe: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def receptive_field(self) -> ReceptiveField:
        """Size, stride and padding of the features, along an axis of 321 pixels."""
        return receptive_field(layers(self.layout), 321)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return all tensors as save_weights takes them."""
        tensors = {**self.tensors, **self.attention}
        return {**{key: value.numpy() for key, value in tensors.items()}, **self.pca}

    def to_meta(self) -> dict[str, Any]:
        """Return the metadata as save_weights takes it."""
        return {
            "layout": self.layout,
            "bn_eps": self.bn_eps,
            "input_mean": list(self.input_mean),
            "input_std": list(self.input_std),
            "provenance": self.provenance,
            "licence": self.licence,
            "score_scale": self.score_scale,
            "score_meaning": self.score_meaning,
            "recipe": self.recipe,
        }


def load_weights(
    weights: str | os.PathLike[str],
    *,
    fetch: bool = True,
    layout: str | None = None,
    bn_eps: float | None = None,
    input_mean: Sequence[float] | None = None,
    input_std: Sequence[float] | None = None,
) -> Weights:
    """Load weights by registered name or by path, in any format that docs/weights.md lists.

    weights : name, or path of a .safetensors file, a folder with model.safetensors, a checkpoint of
        torch or TensorFlow, or a SavedModel.
    fetch : whether a registered name that is not in the cache may be fetched through npm.
    layout, bn_eps, input_mean, input_std : instead of what the file says or its format implies,
        see Weights.
    Raises WeightsError where they are absent, damaged, or not a ResNet50's.
    """
    name = os.fspath(weights)
    given = {
        "layout": layout,
        "bn_eps": bn_eps,
        "input_mean": None if input_mean is None else list(input_mean),
        "input_std": None if input_std is None else list(input_std),
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    if name in SHIPPED:
        with package_file(name) as file:
            if file is None:
                raise WeightsError(f"the package lacks its weights {name!r}: install it again")
            return make_weights(*_read(file), name, overrides)
    if name in REGISTRY:
        path = cached_path(name)
        if not path.exists():
            if not fetch:
                raise WeightsError(
                    f"weights {name!r} are not in the cache ({path}); `delfsearch weights --fetch "
                    f"{name}` fetches them"
                )
            fetch_archive(name, path)
        return _with_shipped_pca(make_weights(*_read(path), name, overrides))
    path = Path(name)
    if not is_there(path):
        raise WeightsError(
            f"weights must be one of {', '.join(map(repr, known_names()))} or the path of an "
            f"existing .safetensors or .pth file, TensorFlow checkpoint or SavedModel; got {name!r}"
        )
    return make_weights(*_read(path), name, overrides)


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any], str]:
    """Return the arrays, the metadata and the checksum of weights in any format."""
    if path.is_dir() and (path / MODEL_FILE).exists():
        path = path / MODEL_FILE
    if path.suffix != ".safetensors":
        arrays, meta = read_foreign(path)
        return arrays, meta, digest_arrays(arrays)
    arrays, meta, digest = read_with_digest(path)
    if not meta:
        arrays, meta = from_state_dict(arrays), dict(TORCHVISION_META)
    return arrays, meta, digest


def make_weights(
    arrays: Mapping[str, NDArray[Any]],
    meta: Mapping[str, Any],
    sha256: str,
    name: str,
    overrides: Mapping[str, Any] | None = None,
) -> Weights:
    """Check arrays and metadata, from whatever file, and return them as Weights.

    sha256 : of the arrays. name : for errors. overrides : metadata that counts before the file's.
    Raises WeightsError where a tensor is missing, unexpected, misshapen or not finite, or the
    metadata make no sense.
    """
    shown = f"weights {name!r}"
    shapes = tensor_shapes()
    missing = sorted(set(shapes) - set(arrays))
    if missing:
        raise WeightsError(
            f"{shown} are not a ResNet50 with torchvision's tensor names: {len(missing)} of "
            f"{len(shapes)} tensors are missing, the first {missing[0]!r}"
            + (f"; it holds {min(arrays)!r}" if arrays else "; it is empty")
        )
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise WeightsError(f"{shown}: {key} must have shape {shape}; got {arrays[key].shape}")
    known = {*shapes, *_PCA_NAMES, *_ATTENTION_NAMES, *_EXPANSION_NAMES}
    extra = sorted(
        key
        for key in set(arrays) - known
        if not key.startswith(_IGNORED_PREFIXES) and not key.endswith("num_batches_tracked")
    )
    if extra:
        raise WeightsError(f"{shown} hold {len(extra)} unexpected tensors, the first {extra[0]!r}")
    for key in sorted(known & set(arrays)):
        if arrays[key].dtype.kind != "f" or not np.isfinite(arrays[key]).all():
            raise WeightsError(f"{shown}: {key} must hold finite floats")
        if key.endswith(_VARIANCES) and (arrays[key] < 0).any():
            raise WeightsError(
                f"{shown}: {key} holds variances, which must be at least 0; got "
                f"{float(arrays[key].min()):g}"
            )
    part = _part_reader(arrays, shown)
    pca, attention = part(_PCA_NAMES), {**part(_EXPANSION_NAMES), **part(_ATTENTION_NAMES)}
    _check_head(attention, shown)
    _check_pca(pca, shown)
    return Weights(
        name=name,
        tensors={key: torch.from_numpy(arrays[key].astype(np.float32)) for key in shapes},
        attention={key: torch.from_numpy(a.astype(np.float32)) for key, a in attention.items()},
        # In float64 where it is kept so: a whitening PCA is then restored to the last bit.
        pca={k: a if a.dtype == np.float64 else a.astype(np.float32) for k, a in pca.items()},
        sha256=sha256,
        **_check_meta({**TORCHVISION_META, **meta, **(overrides or {})}, shown),
    )


def _check_meta(meta: Mapping[str, Any], shown: str) -> dict[str, Any]:
    """Return what Weights keeps of the metadata, each checked."""
    if meta["layout"] not in STRIDE_LAYOUTS:
        raise WeightsError(
            f"{shown}: unknown stride layout {meta['layout']!r}; known: {', '.join(STRIDE_LAYOUTS)}"
        )

    def numbers(key: str, value: Any, count: int, positive: bool) -> tuple[float, ...]:
        values = value if isinstance(value, (list, tuple)) else [value]
        plain = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        good = plain and len(values) == count and np.isfinite(values).all()
        if not good or (positive and min(values) <= 0):
            kind = "positive" if positive else "finite"
            raise WeightsError(f"{shown}: {key} must be {count} {kind} number(s); got {value!r}")
        return tuple(float(v) for v in values)

    recipe = meta.get("recipe") or {}
    if not isinstance(recipe, dict):
        raise WeightsError(f"{shown}: recipe must be a JSON object; got {type(recipe).__name__}")
    return {
        "layout": str(meta["layout"]),
        "bn_eps": numbers("bn_eps", meta["bn_eps"], 1, True)[0],
        "input_mean": numbers("input_mean", meta["input_mean"], 3, False),
        "input_std": numbers("input_std", meta["input_std"], 3, True),
        "provenance": str(meta["provenance"]),
        "licence": str(meta.get("licence", "unknown")),
        "score_scale": numbers("score_scale", meta.get("score_scale", 1.0), 1, True)[0],
        "score_meaning": str(meta.get("score_meaning", "")),
        "recipe": recipe,
    }


def _check_head(attention: Mapping[str, NDArray[Any]], shown: str) -> None:
    if not attention:
        return
    if "attention.conv1.weight" not in attention:
        raise WeightsError(f"{shown} hold 'attention.conv0.weight' but lack the head behind it")
    width = _n_rows(attention, "attention.conv1.weight", (N_CHANNELS, 1, 1), shown)
    expected: dict[str, tuple[int, ...]] = {
        "attention.conv0.weight": (N_CHANNELS, N_CHANNELS, 1, 1),
        "attention.conv0.bias": (N_CHANNELS,),
        "attention.conv1.weight": (width, N_CHANNELS, 1, 1),
        "attention.conv1.bias": (width,),
        "attention.conv2.weight": (1, width, 1, 1),
        "attention.conv2.bias": (1,),
    }
    for key, array in attention.items():
        if array.shape != expected[key]:
            raise WeightsError(f"{shown}: {key} must have shape {expected[key]}; got {array.shape}")


def _check_pca(pca: Mapping[str, NDArray[Any]], shown: str) -> None:
    if not pca:
        return
    n = _n_rows(pca, "pca.components", (N_CHANNELS,), shown)
    expected: dict[str, tuple[int, ...]] = {
        "pca.mean": (N_CHANNELS,),
        "pca.components": (n, N_CHANNELS),
        "pca.explained_variance": (n,),
    }
    for key, array in pca.items():
        if array.shape != expected[key]:
            raise WeightsError(f"{shown}: {key} must have shape {expected[key]}; got {array.shape}")


def _n_rows(arrays: Mapping[str, NDArray[Any]], key: str, row: tuple[int, ...], shown: str) -> int:
    """Return n of a tensor (n, *row), n being the file's choice, but at least 1."""
    shape = arrays[key].shape
    if shape[1:] != row or shape[0] < 1:
        wanted = ", ".join(["n", *map(str, row)])
        raise WeightsError(f"{shown}: {key} must have shape ({wanted}), n at least 1; got {shape}")
    return int(shape[0])


def _part_reader(
    arrays: Mapping[str, NDArray[Any]], shown: str
) -> Callable[[tuple[str, ...]], dict[str, NDArray[Any]]]:
    """Return a function that reads an optional part, which must be there whole or not at all."""

    def part(names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        present = [key for key in names if key in arrays]
        if present and len(present) < len(names):
            absent = next(key for key in names if key not in arrays)
            raise WeightsError(f"{shown} hold {present[0]!r} but lack {absent!r}")
        return {key: arrays[key] for key in present}

    return part


def _with_shipped_pca(weights: Weights) -> Weights:
    """Add the general PCA that the package ships for these weights, where there is one."""
    if weights.pca:
        return weights
    with package_file(f"{weights.name}-pca") as path:
        if path is None:
            return weights
        arrays, meta = read_safetensors(path)
    if meta.get("weights_sha256") != weights.sha256:
        return weights  # made for another conversion of these weights: useless here
    return replace(weights, pca={key: arrays[key].astype(np.float32) for key in _PCA_NAMES})
