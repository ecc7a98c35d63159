"""What the graph beside a checkpoint tells of the network: strides, and the epsilon.

saved_model.pb of a SavedModel and PREFIX.meta of a TensorFlow 1 checkpoint hold the operations
that were run. Only names, kinds, and a few attributes of them are looked at. Source: saved_model,
meta_graph, graph, function, node_def and attr_value .proto of TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from delfsearch.errors import WeightsError
from delfsearch.extraction.weights_io.protobuf import (
    Malformed,
    fields,
    float32,
    packed_numbers,
    submessage,
    text,
)

SAVED_MODEL = "saved_model.pb"
_MAX_BYTES = 256 << 20
_KINDS = ("Conv2D", "MaxPool", "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")


class Operation(NamedTuple):
    """One operation. strides, window : along the height, 1 where not given. epsilon : or None."""

    name: str
    kind: str
    stride: int
    window: int
    epsilon: float | None


def read_operations(path: Path) -> list[Operation]:
    """Return the convolutions, poolings and batch normalisations of a saved graph.

    path : saved_model.pb, or the .meta file of a checkpoint. Raises WeightsError where damaged.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise Malformed(f"it has {path.stat().st_size} bytes")
        message = memoryview(path.read_bytes())
        graphs = _parts(message, 2) if path.name == SAVED_MODEL else iter([message])
        return [
            operation
            for meta_graph in graphs
            for graph in _parts(meta_graph, 2)
            for node in _nodes(graph)
            if (operation := _operation(node)) is not None
        ]
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from None
    except Malformed as error:
        raise WeightsError(
            f"{path} is not a whole TensorFlow graph: {error}. Copy it again"
        ) from None


def _parts(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for key, value in fields(message):
        if key == wanted:
            yield submessage(value)


def _nodes(graph: memoryview) -> Iterator[memoryview]:
    yield from _parts(graph, 1)
    for library in _parts(graph, 2):
        for function in _parts(library, 1):
            yield from _parts(function, 3)


def _operation(node: memoryview) -> Operation | None:
    name = kind = ""
    attributes: list[memoryview] = []
    for key, value in fields(node):
        if key == 1:
            name = text(value)
        elif key == 2:
            kind = text(value)
        elif key == 5:
            attributes.append(submessage(value))
    if kind not in _KINDS:
        return None
    strides, window, epsilon = [1], [1], None
    for attribute in attributes:
        entry = dict(fields(attribute))
        content = submessage(entry.get(2, memoryview(b"")))
        which = text(entry.get(1, memoryview(b"")))
        if which in ("strides", "ksize"):
            numbers = [
                item
                for values in _parts(content, 1)
                for key, value in fields(values)
                if key == 3
                for item in packed_numbers(value)
            ]
            if which == "strides":
                strides = numbers
            else:
                window = numbers
        elif which == "epsilon":
            epsilon = next((float32(v) for k, v in fields(content) if k == 4), None)
    # (batch, height, width, channels), or (batch, channels, height, width): the larger of both.
    return Operation(name, kind, max(strides, default=1), max(window, default=1), epsilon)
