from __future__ import annotations

import errno
import io

import numpy as np
import pytest
from PIL import Image

from delfsearch import PhotoError
from delfsearch.extraction import pyramid as pyramid_module
from delfsearch.extraction.photos import open_photo
from delfsearch.extraction.pyramid import SCALE_SETS, level_size, pyramid, resolve_scales

from .conftest import texture

ORIENTATION = 0x0112
# Which transposition of the upright photo a camera stores under each EXIF orientation.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def pixels(photo, **options):
    return np.asarray(open_photo(photo, **options).image)


@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_is_undone(orientation, tmp_path):
    upright = Image.fromarray(texture(64, 48))
    how = STORED[orientation]
    stored = upright if how is None else upright.transpose(how)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "photo.png"
    stored.save(path, exif=exif)
    opened = open_photo(path)
    assert opened.size == (64, 48)
    np.testing.assert_array_equal(np.asarray(opened.image), np.asarray(upright))
    with Image.open(path) as image:
        np.testing.assert_array_equal(pixels(image), np.asarray(upright))
    small = open_photo(path, max_side=32)
    assert small.size == (64, 48) and small.image.size == (32, 24)


@pytest.mark.parametrize("orientation", [0, 9, "north"])
def test_nonsense_orientation_is_ignored(orientation, tmp_path):
    exif = Image.Exif()
    if isinstance(orientation, int):
        exif[ORIENTATION] = orientation
    else:
        exif[270] = orientation
    path = tmp_path / "photo.jpg"
    Image.fromarray(texture(64, 48)).save(path, exif=exif)
    assert open_photo(path).size == (64, 48)


def test_modes_become_rgb(tmp_path):
    rgb = Image.fromarray(texture(40, 30))
    grey = np.asarray(rgb.convert("L"))
    np.testing.assert_array_equal(pixels(rgb.convert("L")), np.repeat(grey[:, :, None], 3, 2))
    np.testing.assert_array_equal(np.unique(pixels(rgb.convert("1"))), [0, 255])
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(pixels(palette), np.asarray(palette.convert("RGB")))
    for mode in ("CMYK", "YCbCr", "HSV"):
        converted = rgb.convert(mode)
        np.testing.assert_array_equal(pixels(converted), np.asarray(converted.convert("RGB")))
    path = tmp_path / "cmyk.jpg"
    rgb.convert("CMYK").save(path, quality=95)
    assert np.abs(pixels(path).astype(int) - np.asarray(rgb)).mean() < 20


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    image = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    image.paste((10, 10, 10, 255), (0, 0, 10, 10))
    got = pixels(image.convert(mode))
    assert (got[:, :10] == 10).all() and (got[:, 10:] == 255).all()


def test_transparent_palette_entry_is_laid_over_white(tmp_path):
    image = Image.new("P", (20, 10), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (0, 0, 10, 10))
    path = tmp_path / "palette.png"
    image.save(path, transparency=0)
    got = pixels(path)
    assert (got[:, :10] == [0, 0, 200]).all() and (got[:, 10:] == 255).all()


def test_sixteen_bit_and_floating_point(tmp_path):
    eight = texture(40, 30)[:, :, 0]
    wide = eight.astype(np.uint16) * 257
    expected = np.repeat(eight[:, :, None], 3, 2)
    image = Image.fromarray(wide)
    assert image.mode.startswith("I;16")
    np.testing.assert_array_equal(pixels(image), expected)
    np.testing.assert_array_equal(pixels(Image.fromarray(wide.astype(np.int32))), expected)
    image.save(tmp_path / "wide.png")
    np.testing.assert_array_equal(pixels(tmp_path / "wide.png"), expected)
    unit = Image.fromarray((eight / 255).astype(np.float32))
    np.testing.assert_array_equal(pixels(unit), expected)
    with pytest.raises(PhotoError, match=r"lie in 0 \.\.\. 1"):
        open_photo(Image.fromarray(eight.astype(np.float32)))


def test_arrays():
    rgb = texture(40, 30)
    np.testing.assert_array_equal(pixels(rgb), rgb)
    np.testing.assert_array_equal(pixels(np.asfortranarray(rgb)), rgb)
    np.testing.assert_array_equal(pixels(np.repeat(rgb, 2, 1)[:, ::2]), rgb)
    np.testing.assert_array_equal(pixels(rgb.astype(np.uint16) * 257), rgb)
    np.testing.assert_array_equal(pixels(rgb.astype(np.float64) / 255), rgb)
    np.testing.assert_array_equal(pixels(rgb.astype(np.float32) / 255), rgb)
    grey = np.repeat(rgb[:, :, :1], 3, 2)
    np.testing.assert_array_equal(pixels(rgb[:, :, 0]), grey)
    np.testing.assert_array_equal(pixels(rgb[:, :, :1]), grey)
    np.testing.assert_array_equal(np.unique(pixels(rgb[:, :, 0] > 100)), [0, 255])
    alpha = np.concatenate([rgb, np.zeros_like(rgb[:, :, :1])], 2)
    assert (pixels(alpha) == 255).all()
    rgb.setflags(write=False)
    pixels(rgb)


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros((3, 20, 30), np.uint8), r"got shape \(3, 20, 30\); transpose"),
        (np.zeros((20, 30, 5), np.uint8), "got shape"),
        (np.zeros(20, np.uint8), "got shape"),
        (np.zeros((0, 30, 3), np.uint8), "no pixels"),
        (np.zeros((20, 30), np.int32), "got dtype int32"),
        (np.zeros((20, 30), np.complex64), "got dtype complex64"),
        (np.full((20, 30), 1.5), "from 1.5 to 1.5"),
        (np.full((20, 30), np.nan), "finite"),
        (np.full((20, 30), -np.inf), "finite"),
        (7, "got int"),
        (None, "got NoneType"),
    ],
)
def test_bad_arrays(array, words):
    with pytest.raises(PhotoError, match=words):
        open_photo(array)


def test_bad_files(tmp_path):
    def refuse(path, words, **options):
        with pytest.raises(PhotoError, match=words) as caught:
            open_photo(path, **options)
        assert path.name in str(caught.value)

    refuse(tmp_path / "absent.jpg", "does not exist")
    (tmp_path / "folder.jpg").mkdir()
    refuse(tmp_path / "folder.jpg", "folder")
    text = tmp_path / "text.jpg"
    text.write_text("this is not a photo")
    refuse(text, "not an image .*19 bytes.*convert")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    refuse(empty, "not an image")
    whole = tmp_path / "whole.jpg"
    Image.fromarray(texture(640, 480)).save(whole)
    for size in (200, 2000, whole.stat().st_size // 2):
        cut = tmp_path / f"cut{size}.jpg"
        cut.write_bytes(whole.read_bytes()[:size])
        refuse(cut, "damaged or truncated|not an image")
    png = tmp_path / "cut.png"
    Image.fromarray(texture(64, 48)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    png.write_bytes(data[: len(data) // 2])
    refuse(png, "damaged or truncated")
    words = "640 x 480 = 307200 pixels, over the limit of max_pixels=300000"
    refuse(whole, words, max_pixels=300_000)


def test_whatever_a_decoder_raises_on_damage_is_a_photo_error(tmp_path):
    # Found by the fuzzer: a strip offset of the type RATIONAL, which the decoder seeks to.
    stream = io.BytesIO()
    Image.fromarray(texture(60, 40)).save(stream, "TIFF")
    data = bytearray(stream.getvalue())
    directory = int.from_bytes(data[4:8], "little")
    entries = range(directory + 2, len(data) - 12, 12)
    entry = next(at for at in entries if int.from_bytes(data[at : at + 2], "little") == 273)
    rational = 5
    data[entry + 2 : entry + 4] = rational.to_bytes(2, "little")
    path = tmp_path / "damaged.tif"
    path.write_bytes(data)
    with pytest.raises(PhotoError, match="damaged or truncated") as caught:
        open_photo(path)
    assert isinstance(caught.value.__cause__, TypeError)


def test_an_error_of_the_system_is_not_called_damage(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    Image.fromarray(texture(60, 40)).save(path)

    def fail(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(PhotoError, match=r"could not be read \(Too many open files\); try again"):
        open_photo(path)


@pytest.mark.parametrize("side", [12_000, 20_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_unread(side, tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    with pytest.raises(PhotoError, match=r"bomb\.png.*max_pixels=89478485"):
        open_photo(path)


def test_bomb_warning_as_error_is_refused_too(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (12_000, 12_000)).save(path)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PhotoError, match="max_pixels"):
            open_photo(path)


@pytest.mark.parametrize("name", ["Москва Кремль.jpg", "東京.png", "naïve – façade.webp"])
def test_names_beyond_ascii(name, tmp_path):
    path = tmp_path / name
    Image.fromarray(texture(40, 30)).save(path)
    assert open_photo(path).size == (40, 30)
    assert open_photo(str(path)).size == (40, 30)


def test_max_side_only_shrinks():
    rgb = texture(100, 60)
    assert open_photo(rgb, max_side=200).image.size == (100, 60)
    shrunk = open_photo(rgb, max_side=50)
    assert shrunk.image.size == (50, 30) and shrunk.size == (100, 60)
    assert open_photo(texture(300, 1), max_side=50).image.size == (50, 1)


@pytest.mark.parametrize("size", [(1001, 667), (999, 1333), (1024, 768)])
def test_reduced_jpeg_decoding_keeps_positions(size, tmp_path):
    width, height = size
    y, x = np.mgrid[:height, :width]
    where = np.array([0.8 * width, 0.7 * height])
    blob = 250 * np.exp(-((x - where[0]) ** 2 + (y - where[1]) ** 2) / (2 * (width / 20) ** 2))
    path = tmp_path / "blob.jpg"
    Image.fromarray(blob.astype(np.uint8)).save(path, quality=95)
    for max_side in (120, 200, 240):  # decoded at 1/4 and 1/2
        image = np.asarray(open_photo(path, max_side=max_side).image, float)[:, :, 0]
        image[image < 10] = 0
        moments = image.sum(0) @ np.arange(image.shape[1]), image.sum(1) @ np.arange(len(image))
        found = (np.array(moments) / image.sum() + 0.5) * np.array(size) / image.shape[1::-1] - 0.5
        np.testing.assert_allclose(found, where, atol=0.7)


def test_scale_sets_are_the_papers():
    assert len(SCALE_SETS["0.25-1"]) == 5 and len(SCALE_SETS["0.25-2"]) == 7
    for scales in SCALE_SETS.values():
        np.testing.assert_allclose(np.diff(np.log2(scales)), 0.5)
    assert resolve_scales("0.25-2")[0] == 0.25 and resolve_scales("0.25-2")[-1] == 2.0
    assert resolve_scales((1, 0.5)) == (0.5, 1.0)
    for bad in ("0.25-3", (), (0.0,), (1.0, 1.0), (-1,), ("a",), (float("nan"),)):
        with pytest.raises((ValueError, TypeError), match="scales"):
            resolve_scales(bad)


def test_levels_under_ten_pixels_give_nothing():
    assert level_size((40, 40), 0.25) == (10, 10)
    assert level_size((37, 400), 0.25) is None
    image = Image.fromarray(texture(60, 30))
    assert [level.size for level in pyramid(image, (0.25, 0.5, 1.0))] == [(30, 15), (60, 30)]


def test_levels_are_resized_as_pillow_does(monkeypatch):
    image = Image.fromarray(texture(211, 160))
    scales = (0.25, 2**-0.5, 1.0, 2**0.5, 2.0)
    levels = pyramid(image, scales)
    monkeypatch.setattr(pyramid_module, "_torch_is_fast", lambda: False)
    by_pillow = pyramid(image, scales)
    monkeypatch.setattr(pyramid_module, "_torch_is_fast", lambda: True)
    by_torch = pyramid(image, scales)
    for level, one, other in zip(levels, by_pillow, by_torch):
        expected = np.array(image.resize(level.size, Image.Resampling.BICUBIC), np.int16)
        np.testing.assert_array_equal(one.rgb, expected)
        assert other.rgb.dtype == np.uint8 and other.rgb.flags.c_contiguous
        assert np.abs(other.rgb - expected).max() <= 2
        assert np.mean(other.rgb != expected) < 0.01
        assert any(np.array_equal(level.rgb, known.rgb) for known in (one, other))
