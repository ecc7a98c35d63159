"""The network as an ONNX file: pixels in, raw conv4_x features and their scores out, any size.

The graph is written directly, a chain of Conv, Relu, MaxPool and Add with batch normalisation and
input normalisation folded in as FoldedTrunk folds them, so no exporter's version matters. Output
cell (i, j) lies at offset + stride * i, see receptive_field.py; the metadata of the file say what
the weights' do. Pyramid, selection and reduction stay the caller's.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delfsearch import __version__
from delfsearch._validation import check_choice
from delfsearch.extraction.network import N_CHANNELS, _fold, economical_units
from delfsearch.extraction.scores import resolve_score
from delfsearch.extraction.weights import Weights, load_weights

INPUT_DTYPES = ("uint8", "float32")
_OPSET, _IR_VERSION = 17, 8  # onnxruntime 1.13 (2022) and later


def export_onnx(
    weights: str | os.PathLike[str] | Weights,
    path: str | os.PathLike[str],
    *,
    score: str = "auto",
    input_dtype: str = "uint8",
) -> None:
    """Write the network as an ONNX file of dynamic batch, height and width.

    weights : as load_weights takes it, or loaded ones. path : of the new file.
    score : "auto", "l2", "attention" or "l2*attention", as in DelfExtractor.
    input_dtype : "uint8" or "float32", of the input.
    The file's input is `image` (n, h, w, 3), RGB in 0 ... 255, h and w at least 10; its outputs are
    `features` (n, 1024, h', w') float32, raw, and `scores` (n, h', w') float32.
    Raises ImportError where onnx is not installed; WeightsError.
    """
    check_choice(input_dtype, "input_dtype", INPUT_DTYPES)
    onnx = _import_onnx()
    loaded = weights if isinstance(weights, Weights) else load_weights(weights)
    score = resolve_score(score, bool(loaded.attention))
    model = _Graph(onnx, loaded).build(score, input_dtype)
    onnx.checker.check_model(model)
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(model.SerializeToString())
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _import_onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise ImportError(
            "writing ONNX files needs the package onnx: pip install 'delfsearch[onnx]'"
        ) from None


class _Graph:
    def __init__(self, onnx: Any, weights: Weights) -> None:
        self.onnx = onnx
        self.weights = weights
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def build(self, score: str, input_dtype: str) -> Any:
        """Return the ModelProto."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        features = self._trunk(input_dtype)
        self._scores(features, score)
        cells = ["n", "feature_height", "feature_width"]
        graph = helper.make_graph(
            self.nodes,
            "delf",
            [
                helper.make_tensor_value_info(
                    "image", getattr(types, _TYPE_NAMES[input_dtype]), ["n", "height", "width", 3]
                )
            ],
            [
                helper.make_tensor_value_info(
                    "features", types.FLOAT, [cells[0], N_CHANNELS, *cells[1:]]
                ),
                helper.make_tensor_value_info("scores", types.FLOAT, cells),
            ],
            initializer=self.constants,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            producer_name="delfsearch",
            producer_version=__version__,
        )
        model.ir_version = _IR_VERSION
        field = self.weights.receptive_field
        described = {
            **self.weights.to_meta(),
            "score": score,
            "weights_sha256": self.weights.sha256,
            "receptive_field": {
                "size": field.size,
                "stride": field.stride,
                "padding": field.padding,
            },
        }
        helper.set_model_props(model, {"delfsearch": json.dumps(described)})
        return model

    def _trunk(self, input_dtype: str) -> str:
        weights, layout = self.weights, self.weights.layout
        x = "image"
        if input_dtype != "float32":
            x = self._node("Cast", x, name="as_float", to=int(self.onnx.TensorProto.FLOAT))
        x = self._node("Transpose", x, name="channels_first", perm=[0, 3, 1, 2])
        mean = np.array(weights.input_mean, np.float32)[:, None, None]
        x = self._node("Sub", x, self._constant("input_mean", mean), name="centred")
        kernel, bias = _fold(weights.tensors, "conv1", "bn1", weights.bn_eps)
        kernel = kernel / torch.tensor(weights.input_std, dtype=torch.float64)[:, None, None]
        padding: dict[str, Any] = {"pads": [3] * 4}
        pooling: dict[str, Any] = {"pads": [1] * 4}
        if layout.startswith("slim"):
            pooling = {"auto_pad": "SAME_UPPER"}  # TensorFlow's "SAME"
        elif layout.startswith("delg"):
            padding, pooling = {"auto_pad": "SAME_UPPER"}, {"pads": [0] * 4}
        x = self._convolution("conv1", x, kernel, bias, 2, relu=True, **padding)
        x = self._node("MaxPool", x, name="pool", kernel_shape=[3, 3], strides=[2, 2], **pooling)
        for unit in economical_units(layout):
            x = self._unit(unit, x)
        return x

    def _unit(self, unit: Any, x: str) -> str:
        tensors, eps, prefix = self.weights.tensors, self.weights.bn_eps, unit.prefix
        y = x
        for i, stride, pad in ((1, unit.stride_1x1, 0), (2, unit.stride_3x3, 1), (3, 1, 0)):
            name = f"{prefix}.conv{i}"
            folded = _fold(tensors, name, f"{prefix}.bn{i}", eps)
            y = self._convolution(name, y, *folded, stride, relu=i < 3, pads=[pad] * 4)
        stride = unit.stride_1x1 * unit.stride_3x3
        if unit.projects:
            name = f"{prefix}.downsample"
            x = self._convolution(name, x, *_fold(tensors, f"{name}.0", f"{name}.1", eps), stride)
        elif stride > 1:
            x = self._node(
                "MaxPool",
                x,
                name=f"{prefix}.every_other",
                kernel_shape=[1, 1],
                strides=[stride] * 2,
            )
        total = self._node("Add", y, x, name=f"{prefix}.sum")
        last = unit.prefix == "layer3.5"
        return self._node("Relu", total, name="features" if last else f"{prefix}.relu")

    def _scores(self, features: str, score: str) -> None:
        norms, attention = features, features
        if score != "attention":
            name = "scores" if score == "l2" else "norms"
            norms = self._node("ReduceL2", features, name=name, axes=[1], keepdims=0)
        if score == "l2":
            return
        head = self.weights.attention
        for i in (0, 1, 2):
            if f"attention.conv{i}.weight" in head:
                kernel, bias = (head[f"attention.conv{i}.{part}"] for part in ("weight", "bias"))
                attention = self._convolution(
                    f"attention.conv{i}", attention, kernel, bias, 1, relu=i < 2
                )
        x = self._node("Softplus", attention, name="softplus")
        scale = self._constant("score_scale", np.array(self.weights.score_scale, np.float32))
        x = self._node("Mul", x, scale, name="scaled")
        axis = self._constant("channel_axis", np.array([1], np.int64))
        x = self._node("Squeeze", x, axis, name="attention" if score != "attention" else "scores")
        if score == "l2*attention":
            self._node("Mul", x, norms, name="scores")

    def _convolution(
        self,
        name: str,
        x: str,
        kernel: Tensor,
        bias: Tensor,
        stride: int,
        *,
        relu: bool = False,
        **padding: Any,
    ) -> str:
        constants = (
            self._constant(f"{name}.{part}", value.to(torch.float32).numpy())
            for part, value in (("weight", kernel), ("bias", bias))
        )
        sides = list(kernel.shape[2:])
        y = self._node(
            "Conv", x, *constants, name=name, kernel_shape=sides, strides=[stride] * 2, **padding
        )
        return self._node("Relu", y, name=f"{name}.relu") if relu else y

    def _node(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Append an operation whose one output bears its name; return the name."""
        node = self.onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes)
        self.nodes.append(node)
        return name

    def _constant(self, name: str, values: Any) -> str:
        self.constants.append(self.onnx.numpy_helper.from_array(values, name))
        return name


_TYPE_NAMES = {"uint8": "UINT8", "float32": "FLOAT"}
