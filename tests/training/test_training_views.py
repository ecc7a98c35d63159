from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from delfsearch.errors import PhotoError
from delfsearch.training import Views
from delfsearch.training.draws import Purpose, generator
from delfsearch.training.views import make_view, read_square


def coordinates(side: int) -> np.ndarray:
    """A square whose red is the column and whose green is the row, scaled to 0 ... 250."""
    y, x = np.mgrid[:side, :side] * (250.0 / max(side - 1, 1))
    return np.stack([x, y, np.full_like(x, 7)], axis=-1).round().astype(np.uint8)


def test_a_square_is_the_middle_of_the_photo(tmp_path):
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = (200, 100, 50)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert (read_square(tmp_path / "wide.png", 40) == (200, 100, 50)).all()
    small = read_square(tmp_path / "wide.png", 20)
    assert small.shape == (20, 20, 3)
    # The longer side is resized first, so the edges may mix with what is beside them.
    assert np.abs(small[:, 2:-2].astype(int) - (200, 100, 50)).max() <= 2


def test_small_photos_are_not_enlarged(tmp_path):
    Image.fromarray(coordinates(30)).save(tmp_path / "small.png")
    assert np.array_equal(read_square(tmp_path / "small.png", 250), coordinates(30))


@pytest.mark.parametrize("size", [(251, 333), (640, 481), (99, 1000), (333, 251), (17, 16)])
def test_squares_have_the_side_that_was_asked_for(tmp_path, size):
    Image.new("RGB", size, (5, 6, 7)).save(tmp_path / "photo.png")
    square = read_square(tmp_path / "photo.png", 50)
    assert square.shape == (min(50, *size),) * 2 + (3,)


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    top_dark = np.full((60, 60), 250, np.uint8)
    top_dark[:30] = 10
    Image.fromarray(top_dark).convert("RGB").save(tmp_path / "turned.png", exif=exif)
    turned = read_square(tmp_path / "turned.png", 60)
    assert turned[:, 45].mean() < 20 and turned[:, 15].mean() > 240


def test_unreadable_and_tiny_photos_are_photo_errors(tmp_path):
    (tmp_path / "text.jpg").write_text("no photo")
    Image.new("RGB", (300, 12)).save(tmp_path / "thin.png")
    with pytest.raises(PhotoError, match=r"text\.jpg"):
        read_square(tmp_path / "text.jpg", 250)
    with pytest.raises(PhotoError, match="side of 12 pixels"):
        read_square(tmp_path / "thin.png", 250)
    with pytest.raises(PhotoError, match="does not exist"):
        read_square(tmp_path / "none.png", 250)


@given(seed=st.integers(0, 2**32), crop=st.integers(16, 60), more=st.integers(0, 20))
@settings(deadline=None, max_examples=30)
def test_a_plain_view_is_a_window_of_the_square(seed, crop, more):
    views = Views(resize_side=crop + more, crop_side=crop)
    square = np.random.default_rng(seed).integers(0, 256, (crop + more,) * 2 + (3,), np.uint8)
    view = make_view(square, views, np.random.default_rng(seed))
    windows = np.lib.stride_tricks.sliding_window_view(square, (crop, crop), axis=(0, 1))
    same = (windows == view.transpose(2, 0, 1)).all(axis=(2, 3, 4))
    assert same.sum() >= 1


def test_every_window_is_drawn():
    views = Views(resize_side=18, crop_side=16)
    square = coordinates(18)
    corners = {
        tuple(make_view(square, views, np.random.default_rng(seed))[0, 0, :2])
        for seed in range(200)
    }
    assert len(corners) == 9


@given(
    seed=st.integers(0, 2**32),
    gamma=st.sampled_from([0.25, 0.354, 0.5, 0.707, 0.9, 1.0]),
    side=st.integers(40, 130),
)
@settings(deadline=None, max_examples=40)
def test_a_scaled_view_shows_the_same_window(seed, gamma, side):
    """Whatever the stored side and the scale, the same part of the photo is seen."""
    views = Views(resize_side=100, crop_side=80)
    x, y = np.random.default_rng(seed).integers(0, 21, 2)  # as make_view draws it
    view = make_view(coordinates(side), views, np.random.default_rng(seed), gamma=gamma)
    out = max(16, round(80 * gamma))
    assert view.shape == (out, out, 3)
    middle = view[out // 4 : -(out // 4), out // 4 : -(out // 4), :2].astype(float).mean((0, 1))
    expected = (np.array([x, y]) + 40) / 100 * 250
    assert np.abs(middle - expected).max() < 6


def test_flips_mirror_half_of_the_views():
    views = Views(resize_side=20, crop_side=20, flip=True)
    square = coordinates(20)
    flipped = 0
    for seed in range(100):
        view = make_view(square, views, np.random.default_rng(seed))
        assert np.array_equal(view, square) or np.array_equal(view, square[:, ::-1])
        flipped += np.array_equal(view, square[:, ::-1])
    assert 30 < flipped < 70
    plain = Views(resize_side=20, crop_side=20)
    assert np.array_equal(make_view(square, plain, np.random.default_rng(1)), square)


@given(seed=st.integers(0, 2**32), side=st.integers(16, 200))
@settings(deadline=None, max_examples=40)
def test_strong_views_stay_within_the_photo(seed, side):
    """A photo of one colour stays of one colour: nothing from outside its edges is shown."""
    views = Views(resize_side=64, crop_side=48)
    square = np.full((side, side, 3), (90, 120, 60), np.uint8)
    view = make_view(square, views, np.random.default_rng(seed), varied=True)
    assert view.shape == (48, 48, 3)
    assert np.ptp(view, axis=(0, 1)).max() <= 1


def test_strong_views_zoom_and_move():
    views = Views(resize_side=64, crop_side=48, strong=True)
    square = coordinates(views.side(False))
    spans, middles = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        view = make_view(square, Views(resize_side=64, crop_side=48), rng, varied=True)
        assert np.array_equal(view, make_view(square, views, np.random.default_rng(seed)))
        grey = view.astype(float)
        spans.append(grey[24, -1, 0] - grey[24, 0, 0])
        middles.append(grey[24, 24, 0])
    assert np.std(middles) > 15 and np.ptp(spans) > 50


def test_colours_change_by_brightness_contrast_and_saturation():
    views = Views(resize_side=16, crop_side=16, colour=1.0)
    square = np.full((16, 16, 3), (100, 120, 90), np.uint8)
    means = np.array(
        [make_view(square, views, np.random.default_rng(s)).mean((0, 1)) for s in range(200)]
    )
    # A photo of one colour has no contrast: its luminance changes by the brightness alone.
    weights = np.array([0.299, 0.587, 0.114])
    factors = means @ weights / (np.array([100, 120, 90]) @ weights)
    assert 1 / 1.8 - 0.02 < factors.min() < 0.65 and 1.6 < factors.max() < 1.8 + 0.02
    assert np.std(means[:, 1] - means[:, 2]) > 5  # saturation
    grey = np.full((16, 16, 3), 128, np.uint8)
    assert np.ptp(make_view(grey, views, np.random.default_rng(3)), axis=2).max() <= 1


def test_zero_colour_changes_nothing():
    square = coordinates(16)
    views = Views(resize_side=16, crop_side=16)
    assert np.array_equal(make_view(square, views, np.random.default_rng(0)), square)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (Views(resize_side=100, crop_side=120), "resize_side must be at least 120"),
        (Views(crop_side=8), "crop_side must be at least 16"),
        (Views(colour=1.5), "colour"),
        (Views(colour=float("nan")), "colour"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(views, message):
    with pytest.raises(ValueError, match=message):
        views.check()


def test_draws_depend_on_all_that_they_are_for_and_on_nothing_else():
    draws = {
        (state, purpose, numbers): generator(state, purpose, *numbers).integers(2**62)
        for state in (0, 1, 2**63 - 1)
        for purpose in (Purpose.VIEW, Purpose.ORDER)
        for numbers in ((0,), (1,), (0, 0), (0, 1), (1, 0), (2**40,))
    }
    assert len(set(draws.values())) == len(draws)
    for (state, purpose, numbers), value in draws.items():
        assert generator(state, purpose, *numbers).integers(2**62) == value
