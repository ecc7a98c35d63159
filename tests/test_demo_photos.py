import hashlib

import numpy as np
import pytest
from PIL import Image

from delfsearch import demo_photos
from delfsearch.demo_photos import View, changed_view, write_demo_photos


def a_ramp(width=120, height=80):
    """A photo whose red says x and whose green says y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.dstack([2 * x, 3 * y, 0 * x]).astype(np.uint8))


def test_no_change_changes_nothing():
    ramp = a_ramp()
    assert np.array_equal(changed_view(ramp, View(), seed=0), ramp)


def test_crop_and_zoom():
    view = changed_view(a_ramp(), View(crop=(0.25, 0.5, 0.75, 1.0), zoom=2.0), seed=0)
    assert view.size == (120, 80)
    red, green, _ = np.asarray(view, np.int64)[40, 60]
    assert abs(red - 2 * 60) <= 2 and abs(green - 3 * 60) <= 3


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    shrunk = np.asarray(changed_view(stripes, View(zoom=0.5), seed=0))
    assert np.abs(shrunk[4:-4, 4:-4].astype(int) - 128).max() <= 2


def test_tilt_shows_the_near_side_larger():
    view = np.asarray(changed_view(a_ramp(), View(tilt_x=0.2), seed=0), np.int64)
    height_seen_left = view[-1, 1, 1] - view[0, 1, 1]
    height_seen_right = view[-1, -2, 1] - view[0, -2, 1]
    assert height_seen_right < 0.75 * height_seen_left


@pytest.mark.parametrize(
    "view",
    [view for *_, view in demo_photos.VIEWS]
    + [View(rotation=45.0, tilt_x=0.3, tilt_y=-0.3), View(tilt_x=-0.4, crop=(0, 0.3, 0.4, 1))],
)
def test_a_view_never_leaves_its_photo(view):
    light = View(**{**vars(view), "gamma": 1.0, "tint": (1.0, 1.0, 1.0), "noise": 0.0})
    white = Image.new("RGB", (200, 150), "white")
    assert np.asarray(changed_view(white, light, seed=0)).min() == 255


def test_light_and_noise():
    grey = Image.new("RGB", (100, 100), (64, 64, 64))
    dark = np.asarray(changed_view(grey, View(gamma=2.0, tint=(1.0, 0.5, 0.0)), seed=0))
    assert tuple(dark[50, 50]) == (16, 8, 0)
    one, again, other = (
        np.asarray(changed_view(grey, View(noise=5.0), seed=seed), float) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert 4.5 < one.std() < 5.5


def test_written_photos_are_complete_and_the_same_each_time(tmp_path):
    first = write_demo_photos(tmp_path / "a")
    again = write_demo_photos(tmp_path / "b")
    names = {path.name for path in first.labels}
    assert len(names) == len(first.labels) >= 10
    assert sum(query.truth is not None for query in first.queries) >= 8
    assert sum(query.truth is None for query in first.queries) >= 4
    for query, copy in zip(first.queries, again.queries):
        assert query.truth is None or query.truth in names
        assert query.path.name not in names
        assert digest(query.path) == digest(copy.path)
        with Image.open(query.path) as photo:
            photo.load()
    assert first.packages == ("matplotlib", "scikit-image", "scikit-learn")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install delfsearch\[demo\]"):
        demo_photos.find_photo("skimage", "coffee.png")


def test_missing_photo_names_the_package():
    with pytest.raises(ImportError, match=r"scikit-image does not carry no\.png"):
        demo_photos.find_photo("skimage", "no.png")
