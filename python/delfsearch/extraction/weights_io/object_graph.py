"""How TensorFlow 2 checkpoints name their tensors: a graph of objects, their attributes, variables.

A checkpoint's tensor names are paths such as backbone/l2a/conv2a/kernel/.ATTRIBUTES/VARIABLE_VALUE,
but the path that is written down is only the shortest one: a SavedModel may well say variables/17.
The stored graph tells every path. Source: trackable_object_graph.proto of TensorFlow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from delfsearch.extraction.weights_io.protobuf import Malformed, fields, number, submessage, text

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_MAX_NODES = 200_000


@dataclass
class Node:
    """children : attribute name -> number of the node. tensor : name in the checkpoint, or ""."""

    children: dict[str, int] = field(default_factory=dict)
    tensor: str = ""


class ObjectGraph:
    """The objects of a checkpoint; node 0 is the root."""

    def __init__(self, message: bytes) -> None:
        self.nodes = []
        for key, value in fields(memoryview(message)):
            if key == 1:
                self.nodes.append(_read_node(submessage(value)))
                if len(self.nodes) > _MAX_NODES:
                    raise Malformed(f"its object graph has more than {_MAX_NODES} objects")
        for node in self.nodes:
            if max(node.children.values(), default=0) >= len(self.nodes):
                raise Malformed("its object graph refers to an object that is not there")

    @classmethod
    def from_names(cls, names: Iterator[str] | list[str]) -> ObjectGraph:
        """Return the graph that the tensors' names alone describe."""
        graph = cls(b"")
        graph.nodes.append(Node())
        for name in names:
            path, found, _ = name.partition("/.ATTRIBUTES/VARIABLE_VALUE")
            at = 0
            for part in path.split("/") if found else ():
                at = graph.nodes[at].children.setdefault(part, len(graph.nodes))
                if at == len(graph.nodes):
                    graph.nodes.append(Node())
            graph.nodes[at].tensor = name
        return graph

    def breadth_first(self) -> Iterator[int]:
        """Yield the numbers of the nodes that the root leads to, nearest first."""
        seen, queue = {0}, deque([0] if self.nodes else [])
        while queue:
            at = queue.popleft()
            yield at
            for child in self.nodes[at].children.values():
                if child not in seen:
                    seen.add(child)
                    queue.append(child)

    def follow(self, start: int, *path: str) -> int | None:
        """Return the node at the end of a path of attribute names, or None."""
        at = start
        for name in path:
            child = self.nodes[at].children.get(name)
            if child is None:
                return None
            at = child
        return at

    def tensor(self, start: int, *path: str) -> str | None:
        """Return the name of the tensor of the variable at the end of a path, or None."""
        at = self.follow(start, *path)
        return None if at is None else self.nodes[at].tensor or None


def _read_node(message: memoryview) -> Node:
    node = Node()
    for key, value in fields(message):
        if key == 1:  # ObjectReference: node_id, local_name
            child, name = 0, ""
            for k, v in fields(submessage(value)):
                if k == 1:
                    child = number(v)
                elif k == 2:
                    name = text(v)
            node.children[name] = child
        elif key == 2:  # SerializedTensor: name, full_name, checkpoint_key
            parts = {k: text(v) for k, v in fields(submessage(value)) if k in (1, 3)}
            if parts.get(1) == "VARIABLE_VALUE":
                node.tensor = parts.get(3, "")
    return node
