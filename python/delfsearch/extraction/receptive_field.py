"""Receptive field, stride and offset of a convolutional network, derived from its layer list.

One axis at a time, pixel centres at integers. Through a layer of kernel k, stride s and padding p
(on the low side), cell i of the output sees cells s * i - p ... s * i - p + k - 1 of its input, so
its centre lies at s * i - p + (k - 1) / 2. Composing these affine maps over the layers gives
centre(i) = offset + stride * i. Source: Sec. 3.1 (the location of a feature is the centre of its
receptive field). Differs: the official code assumes a padding of (size - 1) / 2, thus offset 0,
whatever the layers pad; we follow the layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Layer:
    """One layer of the path with the largest receptive field.

    padding : cells added on the low and on the high side, or "same" (TensorFlow: as many as make
        ceil(n / stride) outputs, the odd one on the high side, so the offset depends on n).
    """

    kernel: int
    stride: int
    padding: int | Literal["same"]

    def output_size(self, n: int) -> int:
        """Return the number of outputs along an axis of n inputs."""
        if self.padding == "same":
            return -(-n // self.stride)
        return max(0, (n + 2 * self.padding - self.kernel) // self.stride + 1)

    def padding_before(self, n: int) -> int:
        """Return the padding on the low side of an axis of n inputs."""
        if self.padding != "same":
            return self.padding
        return max(0, (self.output_size(n) - 1) * self.stride + self.kernel - n) // 2


@dataclass(frozen=True)
class ReceptiveField:
    """What one output cell sees along one axis, in pixels of the network's input.

    size : pixels seen. stride : pixels between neighbouring cells. offset : centre of cell 0, pixel
    centres at integers. n_cells : cells along the axis.
    """

    size: int
    stride: int
    offset: float
    n_cells: int

    @property
    def padding(self) -> float:
        """Pixels by which the field of cell 0 begins before the image: the 145 of 291/16/145."""
        return (self.size - 1) / 2 - self.offset

    def centres(self) -> NDArray[np.float64]:
        """Return the (n_cells,) centres, in pixels of the network's input."""
        return self.offset + self.stride * np.arange(self.n_cells, dtype=np.float64)


def receptive_field(layers: Iterable[Layer], n_pixels: int) -> ReceptiveField:
    """Derive the receptive field of the last layer along an axis of n_pixels."""
    size, stride, offset, n = 1, 1, 0.0, n_pixels
    for layer in layers:
        offset += ((layer.kernel - 1) / 2 - layer.padding_before(n)) * stride
        size += (layer.kernel - 1) * stride
        stride *= layer.stride
        n = layer.output_size(n)
    return ReceptiveField(size=size, stride=stride, offset=offset, n_cells=n)


def to_photo_pixels(
    centres: NDArray[np.float64], level_side: int, photo_side: int
) -> NDArray[np.float64]:
    """Map positions in a resized copy (level_side pixels) to the photo (photo_side pixels).

    Resizing maps the photo's edges to the copy's edges. With pixel centres at integers the edges
    lie at -0.5 and side - 0.5, hence x_photo = (x_level + 0.5) * photo_side / level_side - 0.5.
    """
    return (centres + 0.5) * (photo_side / level_side) - 0.5
