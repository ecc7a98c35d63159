"""The image pyramid: one resized copy of the photo per scale, the network runs on each.

Copies are resized by a bicubic filter that antialiases when it shrinks: Pillow's, or where torch
has fast code for it (x86 processors with AVX2) torch's, which differs from it in less than one
pixel of a hundred, by one or two of 255 levels, and takes a tenth of the time. A level with a side
under MIN_SIDE pixels gives nothing, as in the official code. Source: Sec. 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from delfsearch._validation import check_real

# A factor sqrt(2) apart. Powers of sqrt(2) as floats: 2 ** (i / 2), exact at every other one.
SCALE_SETS: dict[str, tuple[float, ...]] = {
    "1": (1.0,),
    "0.25-1": tuple(2.0 ** (i / 2) for i in range(-4, 1)),
    "0.25-2": tuple(2.0 ** (i / 2) for i in range(-4, 3)),
}
MIN_SIDE = 10


class Level(NamedTuple):
    """One copy of the photo: its pyramid scale and its RGB pixels (h, w, 3) uint8."""

    scale: float
    rgb: NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.rgb.shape[1], self.rgb.shape[0]


def resolve_scales(scales: Any) -> tuple[float, ...]:
    """Return the pyramid scales of a set's name or of a sequence of numbers, smallest first."""
    if isinstance(scales, str):
        if scales not in SCALE_SETS:
            raise ValueError(
                f"scales must be one of {', '.join(map(repr, SCALE_SETS))} or a tuple of numbers; "
                f"got {scales!r}"
            )
        return SCALE_SETS[scales]
    if not isinstance(scales, Iterable):
        scales = (scales,)
    values = sorted(
        check_real(s, "scales", minimum=0.0, maximum=16.0, exclusive_minimum=True) for s in scales
    )
    if not values or len(set(values)) != len(values):
        raise ValueError(f"scales must be at least one number, each once; got {scales!r}")
    return tuple(values)


def level_size(size: tuple[int, int], scale: float) -> tuple[int, int] | None:
    """Return (width, height) of a level, or None where a side is under MIN_SIDE."""
    width, height = (int(side * scale + 0.5) for side in size)
    return None if min(width, height) < MIN_SIDE else (width, height)


def pyramid(image: Image.Image, scales: tuple[float, ...]) -> list[Level]:
    """Return the levels of an RGB image, in the order of scales; too small ones are left out."""
    rgb = np.array(image)
    levels = []
    for scale in scales:
        size = level_size(image.size, scale)
        if size is not None:
            levels.append(Level(scale, rgb if size == image.size else resized(rgb, size)))
    return levels


def own_level(levels: list[Level]) -> Level:
    """Return the level at the photo's own scale, or the next below: enlarging smooths."""
    return ([level for level in levels if level.scale <= 1.0] or levels[:1])[-1]


def resized(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return pixels (h, w, 3) resized to (width, height)."""
    if not _torch_is_fast():
        return np.array(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
    x = torch.from_numpy(rgb)[None].permute(0, 3, 1, 2)  # channels_last: the fast code
    x = F.interpolate(x, size[::-1], mode="bicubic", antialias=True)
    pixels: NDArray[np.uint8] = np.ascontiguousarray(x[0].permute(1, 2, 0).numpy())
    return pixels


def _torch_is_fast() -> bool:
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
