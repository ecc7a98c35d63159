"""Opening photos: a path, a PIL image or an array -> 8-bit RGB, upright, at most max_side pixels.

What happens to each kind of pixel: grey is repeated over the channels; transparent pixels are laid
over white; CMYK, palettes, YCbCr and HSV are converted as Pillow converts them; 16-bit values are
divided by 257, floating-point ones are taken as 0 ... 1. EXIF orientation is applied to files and
PIL images. Of an animation the first frame is used. Large JPEGs are decoded at a half, a quarter or
an eighth while that leaves at least twice max_side, then resized with antialiasing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from delfsearch.errors import PhotoError

# Pillow's own limit too, beyond which it warns (and at twice that refuses by itself).
DEFAULT_MAX_PIXELS = 89_478_485
_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")

_FLAT_DIFFERENCE = 3  # levels of 255; JPEG noise of a flat surface stays below
_TEXTURED_SHARE = 0.001


class Photo(NamedTuple):
    """image : RGB, upright, at most max_side. size : (width, height) of the upright original."""

    image: Image.Image
    size: tuple[int, int]


def open_photo(
    photo: Any, *, max_side: int | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Photo:
    """Open a photo as 8-bit RGB, apply its EXIF orientation and limit its longer side.

    photo : path; PIL image; or array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) of bool, uint8,
        uint16, or floats in 0 ... 1.
    max_side : longer side to resize down to, in pixels; None keeps the size.
    max_pixels : files and PIL images of more pixels are refused before they are decoded.
    Raises PhotoError with the name, the reason and the remedy.
    """
    if isinstance(photo, (str, os.PathLike)):
        return _open_file(Path(photo), max_side, max_pixels)
    if isinstance(photo, Image.Image):
        filename = getattr(photo, "filename", "")
        label = f"PIL image {filename!r}" if filename else "PIL image"
        return _decode(photo, label, max_side, max_pixels)
    if hasattr(photo, "__array__"):
        return _decode(_from_array(np.asarray(photo)), "array", max_side, None)
    raise PhotoError(f"photo must be a path, a PIL image or an array; got {type(photo).__name__}")


def has_texture(rgb: NDArray[np.uint8]) -> bool:
    """Whether a photo (h, w, 3) has any detail: one pixel pair in 1,000 differs by over 3 levels.

    Blank pages, closed lenses and smooth gradients have none. A network answers them with the
    pattern of its own padding, which looks the same in all of them and would match.
    """
    grey = np.asarray(Image.fromarray(rgb).convert("L"), np.int16)
    edges = sum(
        int(np.count_nonzero(np.abs(np.diff(grey, axis=axis)) > _FLAT_DIFFERENCE))
        for axis in (0, 1)
    )
    return edges > grey.size * _TEXTURED_SHARE


def _open_file(path: Path, max_side: int | None, max_pixels: int) -> Photo:
    label = f"photo {os.fspath(path)!r}"
    try:
        with Image.open(path) as image:
            return _decode(image, label, max_side, max_pixels)
    # The warning comes as an exception where the caller's filters say so.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoError(
            f"{label} is over the limit of max_pixels={max_pixels} against decompression bombs, "
            f"and over Pillow's own ({error}); if you trust it, raise max_pixels and "
            "PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except FileNotFoundError:
        raise PhotoError(f"{label} does not exist; check the path") from None
    except IsADirectoryError:
        raise PhotoError(f"{label} is a folder; pass the photos in it") from None
    except PermissionError:
        raise PhotoError(f"{label} may not be read; change its permissions") from None
    except UnidentifiedImageError:
        raise PhotoError(
            f"{label} is not an image that Pillow {PIL.__version__} can read "
            f"({_size_text(path)}); convert it to JPEG or PNG, or remove it"
        ) from None
    except PhotoError:
        raise
    except MemoryError:
        raise PhotoError(f"{label} does not fit in memory; resize it, or free some") from None
    # Some formats read pixels or directories while opening. See _damaged for what comes.
    except Exception as error:
        raise _damaged(label, error) from error


def _damaged(label: str, error: Exception) -> PhotoError:
    """Return the error for whatever a decoder raised: there is no list of what damage may raise.

    Pillow's plugins trust the numbers in a file, so that a flipped byte may come out as a TypeError
    or an AssertionError as well as an OSError. The decoder's own error stays as the cause.
    """
    if isinstance(error, OSError) and error.errno is not None:  # the system's word, not Pillow's
        return PhotoError(f"{label} could not be read ({error.strerror or error}); try again")
    reason = str(error) or type(error).__name__
    return PhotoError(f"{label} is damaged or truncated ({reason}); replace or remove it")


def _size_text(path: Path) -> str:
    try:
        return f"{path.stat().st_size} bytes"
    except OSError:
        return "unknown size"


def _decode(image: Image.Image, label: str, max_side: int | None, max_pixels: int | None) -> Photo:
    width, height = image.size
    if width < 1 or height < 1:
        raise PhotoError(f"{label} has no pixels (its size is {width} x {height})")
    if max_pixels is not None and width * height > max_pixels:
        raise PhotoError(
            f"{label} has {width} x {height} = {width * height} pixels, over the limit of "
            f"max_pixels={max_pixels} against decompression bombs; if you trust it, raise "
            "max_pixels"
        )
    ratio = 1.0 if max_side is None else min(1.0, max_side / max(width, height))
    target = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    box = (0.0, 0.0, float(width), float(height))
    try:
        if ratio < 0.5 and hasattr(image, "draft"):
            drafted = image.draft(None, (2 * target[0], 2 * target[1]))
            box = tuple(map(float, drafted[1])) if drafted else box  # type: ignore[assignment]
        orientation = _orientation(image)
        rgb = _to_rgb(image, label)
        if ratio < 1.0:
            rgb = rgb.resize(target, Image.Resampling.BICUBIC, box=box)
    except PhotoError:
        raise
    except MemoryError:
        raise PhotoError(f"{label} of {width} x {height} pixels does not fit in memory") from None
    except Exception as error:
        raise _damaged(label, error) from error
    if orientation in _TRANSPOSE:
        rgb = rgb.transpose(_TRANSPOSE[orientation])
    return Photo(rgb, (height, width) if orientation >= 5 else (width, height))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1 ... 8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a photo with a damaged EXIF block, whatever that raises, is still a photo
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode in _SIXTEEN_BIT_MODES:
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(_from_sixteen_bit(wide.clip(0, 65535))).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_from_floats(np.asarray(image), label)).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_floats(values: NDArray[Any], label: str) -> NDArray[np.uint8]:
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= 0.0 and high <= 1.0):  # also false for NaN
        raise PhotoError(
            f"{label} has floating-point pixels from {low:g} to {high:g}; they must be finite and "
            "lie in 0 ... 1: divide by the largest possible value"
        )
    return np.round(values * 255.0).astype(np.uint8)


def _from_array(array: NDArray[Any]) -> Image.Image:
    expected = (
        "an array photo must be (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) of bool, uint8, uint16, "
        "or floats in 0 ... 1"
    )
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        channels_first = array.ndim == 3 and shape[0] in (1, 3)
        hint = "; transpose (c, h, w) to (h, w, c)" if channels_first else ""
        raise PhotoError(f"{expected}; got shape {shape}{hint}")
    if 0 in shape:
        raise PhotoError(f"array photo has no pixels (its shape is {shape})")
    if array.dtype == np.bool_:
        pixels = array.astype(np.uint8) * 255
    elif array.dtype == np.uint8:
        pixels = array
    elif array.dtype == np.uint16:
        pixels = _from_sixteen_bit(array)
    elif array.dtype.kind == "f":
        pixels = _from_floats(array, "array photo")
    else:
        raise PhotoError(f"{expected}; got dtype {array.dtype}. Convert it with astype")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels))
