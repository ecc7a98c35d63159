"""A trunk on one image, in strips of rows: the same numbers, with less memory to fetch and clear.

At the first layers' resolution the activations of a large image are a hundred megabytes each. They
go out to memory and come back for each convolution, and pages for them are asked of the system
every time. Taken through a whole block of the network in strips that fit in a cache, they are not.
A 3x3 convolution needs a row above and a row below the strip: it waits until its neighbours have
come, so nothing is computed twice (but for a row of the first convolution). Each number is a sum of
the same products whatever the strip. Nor does its order change, but where a kernel for another size
of image has another order; the strips of an image depend on nothing but its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, groupby

import torch
from torch import Tensor

from delfsearch.extraction.network import FoldedTrunk, Unit, layers
from delfsearch.extraction.receptive_field import Layer

STRIP_BYTES = 4 << 20
# A strip passes all weights of a block, and each call reorders them: from conv4_x on they are as
# large as a strip.
_N_STRIP_BLOCKS = 2


def features_in_strips(
    trunk: FoldedTrunk, rgb: Tensor, mean: Tensor, *, strip_bytes: int = STRIP_BYTES
) -> Tensor:
    """Return what the trunk computes of one image, (1, 1024, h', w') channels_last.

    rgb : (h, w, 3) uint8. mean (3,) float32 : subtracted first. strip_bytes : about what a strip of
    a block's output takes up, before any stride.
    """
    conv, pool = layers(trunk.layout)[:2]
    stem = _Stem(trunk, rgb, mean, conv, pool)
    blocks = [list(units) for _, units in groupby(trunk.units, key=lambda unit: unit.block)]
    size, limit = torch.empty(0, dtype=trunk.dtype).element_size(), strip_bytes
    rows = _strip_rows(stem.width * 4 * trunk.units[0].width * size, limit)
    strips: Iterable[Tensor] = (
        stem(begin, min(begin + rows, stem.height)) for begin in range(0, stem.height, rows)
    )
    for number, units in enumerate(blocks):
        if number > 0:
            x = _joined(strips)
            whole = x.shape[2]
            rows = _strip_rows(x.shape[3] * 4 * units[0].width * size, limit)
            strips = _split(x, whole if number >= _N_STRIP_BLOCKS else rows)
            del x  # the generator lets go of it when the last strip is on its way
        for unit in units:
            strips = _unit(trunk, unit, strips)
    return _joined(strips)


def _strip_rows(row_bytes: int, strip_bytes: int) -> int:
    """Return how many rows a strip has: an even number, so that strides of 2 begin on its first."""
    return max(4, strip_bytes // row_bytes // 2 * 2)


def _joined(strips: Iterable[Tensor]) -> Tensor:
    parts = list(strips)
    if len(parts) == 1:
        return parts[0]
    # Of strips one column wide cat makes another layout, which the fused sums do not take.
    return torch.cat(parts, 2).contiguous(memory_format=torch.channels_last)


def _split(x: Tensor, rows: int) -> Iterator[Tensor]:
    yield from torch.split(x, rows, 2)


class _Stem:
    """conv1 and the first pooling: rows of the image -> any rows of the pooled activations."""

    def __init__(
        self, trunk: FoldedTrunk, rgb: Tensor, mean: Tensor, conv: Layer, pool: Layer
    ) -> None:
        self.trunk, self.conv, self.pool = trunk, conv, pool
        n_rows, n_columns = rgb.shape[:2]
        self.flat = rgb.reshape(n_rows, 3 * n_columns)
        self.mean = mean.repeat(n_columns)
        self.conv_height = conv.output_size(n_rows)
        self.conv_width = conv.output_size(n_columns)
        self.height = pool.output_size(self.conv_height)
        self.width = pool.output_size(self.conv_width)

    def __call__(self, begin: int, end: int) -> Tensor:
        """Return the pooled rows [begin, end), (1, 64, end - begin, width)."""
        conv, pool = self.conv, self.pool
        above = pool.padding_before(self.conv_height)
        first = max(0, pool.stride * begin - above)
        last = min(self.conv_height, pool.stride * (end - 1) - above + pool.kernel)
        top = conv.stride * first - conv.padding_before(self.flat.shape[0])
        bottom = top + conv.stride * (last - first - 1) + conv.kernel
        x = self.trunk.conv_relu("conv1", self._padded(top, bottom), conv.stride, 0)
        y = _pool(x.permute(0, 2, 3, 1), 1, end - begin, above if begin == 0 else 0)
        y = _pool(y, 2, self.width, pool.padding_before(self.conv_width))
        return y.permute(0, 3, 1, 2)

    def _padded(self, top: int, bottom: int) -> Tensor:
        """Return rows of the image minus the mean, with the zeros that conv1 pads, channels_last.

        top, bottom : in rows of the image, may lie outside.
        """
        conv = self.conv
        height, width = self.flat.shape[0], self.flat.shape[1] // 3
        left = conv.padding_before(width)
        n_columns = conv.stride * (self.conv_width - 1) + conv.kernel
        begin, end = max(0, top), min(height, bottom)
        inside = min(width, n_columns - left)
        x = torch.zeros(bottom - top, 3 * n_columns, dtype=self.trunk.dtype)
        x[begin - top : end - top, 3 * left : 3 * (left + inside)] = (
            self.flat[begin:end].float().sub_(self.mean)[:, : 3 * inside]
        )
        return x.view(1, bottom - top, n_columns, 3).permute(0, 3, 1, 2)


def _pool(x: Tensor, axis: int, n_out: int, before: int) -> Tensor:
    """Take the largest of each three neighbours at every other place along an axis of x >= 0.

    before : 1 where the first three begin one place before x, else 0. Several times as fast as
    max_pool2d, which also looks for where the largest is.
    """
    n, dtype = x.shape[axis], x.dtype
    x = x.view({2: torch.int16, 4: torch.int32}[x.element_size()])  # floats >= 0 order as integers

    def every_other(first: int, count: int) -> Tensor:
        return x[(slice(None),) * axis + (slice(first, first + 2 * count - 1, 2),)]

    n_pairs = min(n_out, n // 2)
    result = torch.maximum(every_other(0, n_pairs), every_other(1, n_pairs))
    if n_pairs < n_out:
        result = torch.cat([result, every_other(2 * n_pairs, n_out - n_pairs)], axis)
    skipped = 1 if before else 0
    third = every_other(1, n_out - 1) if before else every_other(2, min(n_out, (n - 1) // 2))
    part = result.narrow(axis, skipped, third.shape[axis])
    torch.maximum(part, third, out=part)
    return result.view(dtype)


def _unit(trunk: FoldedTrunk, unit: Unit, strips: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the outputs of a bottleneck unit for the strips of its input, one behind."""
    above: Tensor | None = None  # the row before the strip that waits
    waiting: tuple[Tensor, Tensor] | None = None
    ahead: Iterable[Tensor | None] = chain(strips, [None])
    for x in ahead:
        inner = shortcut = None
        if x is not None:
            inner = trunk.conv_relu(f"{unit.prefix}.conv1", x, unit.stride_1x1, 0)
            shortcut = trunk.shortcut(unit, x)
            del x
        if waiting is not None:
            middle, added = waiting
            waiting = None
            if above is None and inner is None:  # the only strip: the convolution pads it
                y = trunk.conv_relu(f"{unit.prefix}.conv2", middle, unit.stride_3x3, 1)
            else:
                edge = torch.zeros_like(middle[:, :, :1])
                below = edge if inner is None else inner[:, :, :1]
                y = torch.cat([edge if above is None else above, middle, below], 2)
                y = trunk.conv_relu(f"{unit.prefix}.conv2", y, unit.stride_3x3, (0, 1))
            above = middle[:, :, -1:]
            yield trunk.conv_add_relu(f"{unit.prefix}.conv3", y, added)
        if inner is not None and shortcut is not None:
            waiting = inner, shortcut
