"""From a photo to what the network sees of it in one step: centre square, random crop, scale.

Positions are drawn in pixels of the centre square rescaled to resize_side, as the paper puts it,
but the crop is taken out of the stored square and brought to its final size by a single resampling:
a photo that is smaller than resize_side is not enlarged only to be shrunk again by gamma. Source:
Sec. 3.2, 3.3.2. Differs: the single resampling; flips, colour and strong views, all off by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from delfsearch._validation import check_integer, check_real
from delfsearch.errors import PhotoError
from delfsearch.extraction.photos import DEFAULT_MAX_PIXELS, open_photo

# Strong views, for photos that are alone in their class: side of the crop as a share of the square,
# displacement of its corners as a share of the crop, turn in degrees, at least this much colour.
_CROP_SHARE = (0.4, 1.0)
_CORNER_SHIFT = 0.12
_TURN = 15.0
_STRONG_COLOUR = 0.5
# They zoom in: their squares are kept larger by this.
STRONG_SIDE = 1.5
MIN_SQUARE = 16


@dataclass(frozen=True, kw_only=True)
class Views:
    """How a photo is cropped and changed at each showing.

    resize_side : side of the centre square, in pixels. crop_side : side of the random crop, at most
        resize_side.
    flip : mirror half of the views. colour : 0 leaves colours alone, 1 changes brightness, contrast
        and saturation by up to a factor of 1.8 each.
    strong : show every photo in the strongly varied views (zoom, perspective, turn, colour) that
        varied photos get in any case.
    """

    resize_side: int = 250
    crop_side: int = 224
    flip: bool = False
    colour: float = 0.0
    strong: bool = False

    def check(self) -> None:
        """Refuse sizes and amounts that make no sense."""
        check_integer(self.crop_side, "crop_side", minimum=MIN_SQUARE)
        check_integer(self.resize_side, "resize_side", minimum=self.crop_side)
        check_real(self.colour, "colour", minimum=0.0, maximum=1.0)

    def side(self, varied: bool) -> int:
        """Return the side at which the square of a photo is kept, where the photo has as much."""
        strong = self.strong or varied
        return round(self.resize_side * STRONG_SIDE) if strong else self.resize_side

    def output_side(self, gamma: float) -> int:
        """Return the side of a view at a scale, in pixels."""
        return max(MIN_SQUARE, round(self.crop_side * gamma))


def read_square(
    photo: Path, side: int, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.uint8]:
    """Return the centre square of a photo, (s, s, 3), s = side or what the photo has if less.

    Raises PhotoError where it cannot be read or is smaller than 16 pixels.
    """
    max_side = None
    try:
        with Image.open(photo) as header:
            width, height = header.size
        # So that open_photo's limit for the longer side leaves `side` for the shorter one.
        max_side = max(side, round(side * max(width, height) / min(width, height)))
    except Exception:  # whatever is wrong with it, open_photo says it best
        pass
    image = open_photo(photo, max_side=max_side, max_pixels=max_pixels).image
    short = min(image.size)
    if short < MIN_SQUARE:
        raise PhotoError(
            f"photo {str(photo)!r} has a side of {short} pixels; training needs {MIN_SQUARE}: "
            "leave it out"
        )
    left, top = ((length - short) // 2 for length in image.size)
    square = image.crop((left, top, left + short, top + short))
    if abs(short - side) == 1:  # the two roundings above
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(square)


def read_whole(
    photo: Path, side: int, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.uint8]:
    """Return a photo (h, w, 3), its longer side `side` or what it has if less.

    Raises PhotoError where it cannot be read or is smaller than 16 pixels.
    """
    image = open_photo(photo, max_side=side, max_pixels=max_pixels).image
    if min(image.size) < MIN_SQUARE:
        raise PhotoError(
            f"photo {str(photo)!r} has a side of {min(image.size)} pixels; training needs "
            f"{MIN_SQUARE}: leave it out"
        )
    return np.asarray(image)


def make_view(
    square: NDArray[np.uint8],
    views: Views,
    rng: np.random.Generator,
    *,
    gamma: float = 1.0,
    varied: bool = False,
) -> NDArray[np.uint8]:
    """Return one random view (s, s, 3) uint8 of a square, s = views.output_side(gamma)."""
    out = views.output_side(gamma)
    place = rng.integers(0, views.resize_side - views.crop_side + 1, 2)
    flipped = bool(rng.integers(0, 2)) and views.flip
    strong = views.strong or varied
    if strong:
        view = _strong_view(square, out, rng)
    else:
        view = _crop(square, views, out, int(place[0]), int(place[1]))
    amount = max(views.colour, _STRONG_COLOUR) if strong else views.colour
    if amount > 0:
        view = recolour(view, amount, rng)
    return view[:, ::-1] if flipped else view


def _crop(square: NDArray[np.uint8], views: Views, out: int, x: int, y: int) -> NDArray[np.uint8]:
    side = len(square)
    if side == views.resize_side and out == views.crop_side:
        return square[y : y + out, x : x + out]
    share = side / views.resize_side
    crop = share * views.crop_side
    box = (share * x, share * y, min(share * x + crop, side), min(share * y + crop, side))
    image = Image.fromarray(square)
    return np.asarray(image.resize((out, out), Image.Resampling.BICUBIC, box=box))


def _strong_view(
    square: NDArray[np.uint8], out: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    image = Image.fromarray(square)
    share = rng.uniform(*_CROP_SHARE)
    turn = np.deg2rad(rng.uniform(-_TURN, _TURN))
    # Resampling along a quadrilateral does not antialias: shrink first, so that it hardly shrinks.
    if share * len(square) > 1.25 * out:
        smaller = max(MIN_SQUARE, round(out / share))
        image = image.resize((smaller, smaller), Image.Resampling.BICUBIC)
    side = image.width
    crop = share * side
    corners = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)]) * crop / 2
    corners = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    corners += rng.uniform(-_CORNER_SHIFT, _CORNER_SHIFT, (4, 2)) * crop
    corners += crop / 2 + rng.uniform(0, 1, 2) * (side - crop)
    corners = corners.clip(0, side)  # what lies outside the photo is not shown
    view = image.transform(
        (out, out),
        Image.Transform.QUAD,
        tuple(corners.ravel()),
        resample=Image.Resampling.BICUBIC,
    )
    return np.asarray(view)


def recolour(view: NDArray[np.uint8], amount: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change brightness, contrast and saturation, each by a factor in 1 / 1.8 ... 1.8."""
    brightness, contrast, saturation = 1.8 ** (amount * rng.uniform(-1, 1, 3))
    grey = np.array([0.299, 0.587, 0.114])
    matrix = (
        brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * np.ones((3, 1)) * grey)
    )
    # Contrast is about the view's own mean.
    shift = brightness * (1 - contrast) * float(view.mean(axis=(0, 1)) @ grey)
    rows = np.column_stack([matrix, np.full(3, shift)])
    return np.asarray(Image.fromarray(view).convert("RGB", tuple(rows.ravel())))
