"""The official DELF and DELG networks' variables -> our tensors, layout, epsilon, normalisation.

Two code bases wrote them. TF-slim names (DELF of 2017 and 2019):

    resnet_v1_50/block1/unit_1/bottleneck_v1/conv1/weights, .../BatchNorm/gamma, ...
    attention_block/attention/compute/conv1/weights, .../BatchNorm/..., conv2/weights, conv2/biases

TF2 attributes (the training code of DELF and DELG): backbone.l2a.conv2a.kernel and .bias,
backbone.l2a.bn2a.gamma, ..., attention.conv1, attention.bn_conv1, attention.conv2, optionally
autoencoder.conv1 and conv2, which only the attention sees through here. Whatever stands before the
names is passed over. Convolutions' biases go into running means, and the head's batch normalisation
into its first layer, so that scores.py's plain head gives the same scores. Source:
research/delf of tensorflow/models: delf_v1.py, feature_extractor.py, training/model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.errors import WeightsError
from delfsearch.extraction.network import units
from delfsearch.extraction.weights_io.graph_def import Operation
from delfsearch.extraction.weights_io.object_graph import GRAPH_KEY, ObjectGraph
from delfsearch.extraction.weights_io.protobuf import Malformed
from delfsearch.extraction.weights_io.tensor_bundle import TensorBundle

Arrays = dict[str, NDArray[np.float32]]
_SLIM_EPSILON, _KERAS_EPSILON = 1e-5, 1e-3
_DELF_INPUT = {"input_mean": [128.0] * 3, "input_std": [128.0] * 3}  # NormalizePixelValues
# What TF-slim's own ImageNet networks were trained with: vgg_preprocessing.py.
_SLIM_IMAGENET_INPUT = {"input_mean": [123.68, 116.78, 103.94], "input_std": [1.0] * 3}
_SLIM_ROOT = "resnet_v1_50/conv1/weights"
_LETTERS = "abcdef"


def convert(bundle: TensorBundle, operations: list[Operation]) -> tuple[Arrays, dict[str, Any]]:
    """Return our arrays and metadata of a checkpoint.

    operations : of its graph, from which strides and epsilon are taken; [] where there is none:
    then they are what the official code sets. Raises WeightsError where a variable is missing or
    misshapen, or the checkpoint is of another network.
    """
    slim = next((name for name in bundle if name.endswith(_SLIM_ROOT)), None)
    if slim is not None:
        return _convert_slim(bundle, slim.removesuffix(_SLIM_ROOT), operations)
    found = _find_tf2(bundle)
    if found is not None:
        return _convert_tf2(bundle, *found, operations)
    deep = next((name for name in bundle if "resnet_v1_101/" in name), None)
    if deep is not None:
        raise WeightsError(
            f"the checkpoint {bundle.prefix} is of a ResNet101 ({deep!r}); only ResNet50s are "
            "supported"
        )
    example = next(iter(bundle), None)
    raise WeightsError(
        f"the checkpoint {bundle.prefix} is not of a DELF, DELG or TF-slim ResNet50: it has no "
        f"variable {_SLIM_ROOT!r} and no backbone with l2a.conv2a.kernel; "
        + ("it is empty" if example is None else f"it holds {len(bundle)}, such as {example!r}")
    )


class _Converter:
    """Takes variables by name, turns them round, and gathers them."""

    def __init__(self, bundle: TensorBundle, epsilon: float) -> None:
        self.bundle = bundle
        self.epsilon = epsilon
        self.arrays: Arrays = {}

    def get(self, name: str) -> NDArray[np.float64]:
        if name not in self.bundle:
            raise WeightsError(f"the checkpoint {self.bundle.prefix} lacks the variable {name!r}")
        dtype = self.bundle[name].dtype_name
        if "float" not in dtype:
            raise WeightsError(
                f"variable {name!r} of the checkpoint {self.bundle.prefix} must hold floats; it "
                f"holds {dtype}"
            )
        values: NDArray[np.float64] = self.bundle.array(name).astype(np.float64)
        return values

    def kernel(self, name: str) -> NDArray[np.float64]:
        """Return a kernel (h, w, in, out) as (out, in, h, w)."""
        kernel = self.get(name)
        if kernel.ndim != 4:
            raise WeightsError(
                f"variable {name!r} of the checkpoint {self.bundle.prefix} must be a kernel with "
                f"4 axes; it has the shape {kernel.shape}"
            )
        turned: NDArray[np.float64] = kernel.transpose(3, 2, 0, 1)
        return turned

    def put(self, name: str, values: NDArray[np.float64]) -> None:
        self.arrays[name] = np.ascontiguousarray(values, dtype=np.float32)

    def convolution(
        self, conv: str, bn: str, kernel: str, bias: str | None, part: Callable[[str], str]
    ) -> None:
        """Store a convolution and its batch normalisation; part: gamma ... -> variable's name."""
        self.put(f"{conv}.weight", self.kernel(kernel))
        self.put(f"{bn}.weight", self.get(part("gamma")))
        self.put(f"{bn}.bias", self.get(part("beta")))
        mean = self.get(part("moving_mean"))
        self.put(f"{bn}.running_mean", mean if bias is None else mean - self.get(bias))
        self.put(f"{bn}.running_var", self.get(part("moving_variance")))

    def head(
        self,
        kernels: tuple[str, str],
        biases: tuple[str | None, str | None],
        part: Callable[[str], str] | None,
    ) -> None:
        """Store the attention head, its batch normalisation (part) folded into its first layer."""
        first, second = (self.kernel(name) for name in kernels)
        bias1, bias2 = (
            np.zeros(len(k)) if name is None else self.get(name)
            for k, name in zip((first, second), biases)
        )
        if part is not None:
            gain = self.get(part("gamma")) / np.sqrt(
                self.get(part("moving_variance")) + self.epsilon
            )
            if gain.shape != (len(first),):
                raise WeightsError(
                    f"variable {part('gamma')!r} of the checkpoint {self.bundle.prefix} must have "
                    f"shape ({len(first)},); it has {gain.shape}"
                )
            first = first * gain[:, None, None, None]
            bias1 = (bias1 - self.get(part("moving_mean"))) * gain + self.get(part("beta"))
        self.put("attention.conv1.weight", first)
        self.put("attention.conv1.bias", bias1)
        self.put("attention.conv2.weight", second)
        self.put("attention.conv2.bias", bias2)


def _convert_slim(
    bundle: TensorBundle, before: str, operations: list[Operation]
) -> tuple[Arrays, dict[str, Any]]:
    root = f"{before}resnet_v1_50"
    take = _Converter(bundle, _epsilon(operations, _SLIM_EPSILON))

    def put(conv: str, bn: str, scope: str) -> None:
        take.convolution(conv, bn, f"{scope}/weights", None, lambda p: f"{scope}/BatchNorm/{p}")

    put("conv1", "bn1", f"{root}/conv1")
    for unit in units("slim"):
        block, number = unit.prefix.removeprefix("layer").split(".")
        scope = f"{root}/block{block}/unit_{int(number) + 1}/bottleneck_v1"
        for i in "123":
            put(f"{unit.prefix}.conv{i}", f"{unit.prefix}.bn{i}", f"{scope}/conv{i}")
        if unit.projects:
            down = f"{unit.prefix}.downsample"
            put(f"{down}.0", f"{down}.1", f"{scope}/shortcut")
    meta: dict[str, Any] = {"bn_eps": take.epsilon, "layout": "slim"}
    # The official graph strides in block3's last unit; one of stride 16 has that stride removed.
    strides = {
        op.stride
        for op in operations
        if op.kind == "Conv2D" and "block3/unit_6/bottleneck_v1/conv2/" in op.name
    }
    if strides == {1}:
        meta["layout"] = "slim16"
    ending = "attention/compute/conv1/weights"
    attention = next((name for name in bundle if name.endswith(ending)), None)
    if attention is None:
        meta |= _SLIM_IMAGENET_INPUT
        return take.arrays, meta
    scope = attention.removesuffix("/conv1/weights")
    normalized = f"{scope}/conv1/BatchNorm/gamma" in bundle
    take.head(
        (attention, f"{scope}/conv2/weights"),
        (None if normalized else f"{scope}/conv1/biases", f"{scope}/conv2/biases"),
        (lambda p: f"{scope}/conv1/BatchNorm/{p}") if normalized else None,
    )
    return take.arrays, meta | _DELF_INPUT


def _find_tf2(bundle: TensorBundle) -> tuple[ObjectGraph, int, int] | None:
    """Return the object graph, the node that has a backbone, and the backbone's node."""
    graph = ObjectGraph.from_names(list(bundle))
    if GRAPH_KEY in bundle:
        try:
            graph = ObjectGraph(bundle.string(GRAPH_KEY))
        except Malformed as error:
            raise WeightsError(f"the checkpoint {bundle.prefix} is damaged: {error}") from None
    for node in graph.breadth_first():
        for path in (("backbone",), ()):
            backbone = graph.follow(node, *path)
            if backbone is not None and graph.follow(backbone, "l2a", "conv2a") is not None:
                return graph, node, backbone
    return None


def _convert_tf2(
    bundle: TensorBundle,
    graph: ObjectGraph,
    model: int,
    backbone: int,
    operations: list[Operation],
) -> tuple[Arrays, dict[str, Any]]:
    take = _Converter(bundle, _epsilon(operations, _KERAS_EPSILON))

    def name(start: int, *path: str) -> str:
        """Return the tensor of a variable, or what it would be called, for the error."""
        last = path[-1]
        for attribute in (last, f"_{last}"):  # Keras 3 keeps kernels as _kernel
            found = graph.tensor(start, *path[:-1], attribute)
            if found is not None:
                return found
        return "/".join(path)

    def put(conv: str, bn: str, path: tuple[str, ...], theirs: str, their_bn: str) -> None:
        take.convolution(
            conv,
            bn,
            name(backbone, *path, theirs, "kernel"),
            name(backbone, *path, theirs, "bias"),
            lambda p: name(backbone, *path, their_bn, p),
        )

    put("conv1", "bn1", (), "conv1", "bn_conv1")
    for unit in units("delg"):
        block, number = unit.prefix.removeprefix("layer").split(".")
        path = (f"l{int(block) + 1}{_LETTERS[int(number)]}",)
        for i, letter in enumerate("abc", start=1):
            ours = f"{unit.prefix}.conv{i}", f"{unit.prefix}.bn{i}"
            put(*ours, path, f"conv2{letter}", f"bn2{letter}")
        if unit.projects:
            down = f"{unit.prefix}.downsample"
            put(f"{down}.0", f"{down}.1", path, "conv_shortcut", "bn_shortcut")
    if graph.tensor(model, "attention", "conv1", "kernel") or graph.tensor(
        model, "attention", "conv1", "_kernel"
    ):
        kernels, biases = (
            tuple(name(model, "attention", conv, part) for conv in ("conv1", "conv2"))
            for part in ("kernel", "bias")
        )
        take.head(
            (kernels[0], kernels[1]),
            (biases[0], biases[1]),
            lambda p: name(model, "attention", "bn_conv1", p),
        )
        if graph.follow(model, "autoencoder", "conv1") is not None:
            _put_autoencoder(
                take,
                *(
                    name(model, "autoencoder", c, p)
                    for c in ("conv1", "conv2")
                    for p in ("kernel", "bias")
                ),
            )
    # block3_strides, which the official code sets unless told otherwise, is a pooling of one cell.
    layout = "delg"
    if operations and not any(
        op.kind == "MaxPool" and (op.window, op.stride) == (1, 2) for op in operations
    ):
        layout = "delg16"
    meta = {"bn_eps": take.epsilon, "layout": layout, **_DELF_INPUT}
    if "attention.conv0.weight" in take.arrays:
        meta["remark"] = "without its autoencoder's descriptors, with the attention on top of it"
    return take.arrays, meta


def _put_autoencoder(take: _Converter, kernel1: str, bias1: str, kernel2: str, bias2: str) -> None:
    """Store what lies before the attention: two linear layers, in one, under a ReLU."""
    reduce, expand = take.kernel(kernel1)[:, :, 0, 0], take.kernel(kernel2)[:, :, 0, 0]
    if expand.shape[1] != len(reduce):
        raise WeightsError(
            f"variables {kernel1!r} and {kernel2!r} of the checkpoint {take.bundle.prefix} do not "
            "follow each other"
        )
    take.put("attention.conv0.weight", (expand @ reduce)[:, :, None, None])
    take.put("attention.conv0.bias", expand @ take.get(bias1) + take.get(bias2))


def _epsilon(operations: list[Operation], default: float) -> float:
    """Return the batch normalisations' epsilon where the graph names one, else the default."""
    found = {op.epsilon for op in operations if op.epsilon is not None}
    if len(found) > 1:
        raise WeightsError(
            f"the graph has batch normalisations with several epsilons, {sorted(found)}; "
            "only one is supported"
        )
    return float(np.format_float_positional(np.float32(found.pop()))) if found else default
