from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from delfsearch import plotting
from delfsearch.errors import PhotoError
from delfsearch.matches import Hit


def a_photo(width, height, level=128):
    return np.full((height, width, 3), level, np.uint8)


def a_hit(n=20, **changes):
    rng = np.random.default_rng(0)
    inliers = rng.uniform(10, 90, (n, 4)).astype(np.float32)
    values = {"id": 7, "score": float(n), "n_inliers": n, "path": "a/b.jpg", "label": "tower"}
    return Hit(affine=np.eye(2, 3), inliers=inliers, **(values | changes))


def test_match_lines_join_the_keypoints_wherever_the_photos_are_drawn():
    hit = a_hit(3)
    ax = plotting.plot_matches(a_photo(100, 100), a_photo(300, 200), hit)
    segments = np.array(ax.collections[0].get_segments())
    # Both are drawn 200 high: the query at twice its size, the answer to the right of a gap of 4.
    assert np.allclose(segments[:, 0], (hit.inliers[:, :2] + 0.5) * 2)
    assert np.allclose(segments[:, 1], hit.inliers[:, 2:] + 0.5 + [200 + 4, 0])
    assert ax.get_title() == "score 3 (3 verified matches)  b.jpg"


def test_match_lines_are_green():
    ax = plotting.plot_matches(a_photo(50, 40), a_photo(50, 40), a_hit(5))
    red, green, blue, _ = ax.collections[0].get_colors()[0]
    assert green > 0.6 > max(red, blue)


def test_photos_over_the_drawn_size_keep_the_original_pixels():
    ax = plotting.plot_matches(a_photo(3000, 2000), a_photo(100, 100), a_hit(4))
    assert max(ax.images[0].get_array().shape) <= 1200
    assert tuple(ax.images[0].get_extent()) == (0, 3000, 2000, 0)


@pytest.mark.filterwarnings("ignore:Glyph")  # boxes are drawn for what the font lacks
@pytest.mark.parametrize(
    "name", ["price $5 and $6.jpg", "caf\u00e9 \u6771\u4eac.jpg", "bad\udcff.jpg"]
)
def test_any_file_name_can_be_a_title(tmp_path, name):
    ax = plotting.plot_matches(a_photo(50, 40), a_photo(50, 40), a_hit(0, path=name))
    ax.figure.savefig(tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size[0] > 100


def a_level(scale, rows, columns, step):
    y, x = np.mgrid[:rows, :columns].astype(np.float32) * step
    scores = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    return SimpleNamespace(scale=scale, scores=scores, keypoints_xy=np.dstack([x, y]))


def test_score_map_covers_its_cells():
    ax = plotting.plot_scores(a_photo(64, 48), [a_level(1.0, 2, 3, 16)])
    # Cells of 16 px around (0, 0) ... (32, 16); pixel centres are drawn at halves.
    assert tuple(ax.images[1].get_extent()) == (-7.5, 40.5, 24.5, -7.5)
    assert ax.get_xlim() == (0, 64) and ax.get_ylim() == (48, 0)


def test_score_map_draws_the_level_nearest_in_scale():
    levels = [a_level(0.25, 1, 1, 64), a_level(0.71, 2, 2, 23), a_level(1.41, 4, 6, 11)]
    for scale, shape in ((0.1, (1, 1)), (0.7, (2, 2)), (1.2, (4, 6)), (9.0, (4, 6))):
        ax = plotting.plot_scores(a_photo(64, 48), levels, scale=scale)
        assert ax.images[1].get_array().shape == shape


def test_score_map_of_one_cell_covers_the_photo():
    level = a_level(1.0, 1, 1, 16)
    level.keypoints_xy[...] = (31.5, 23.5)
    ax = plotting.plot_scores(a_photo(64, 48), [level])
    assert tuple(ax.images[1].get_extent()) == (0, 64, 48, 0)


def test_score_map_without_cells_draws_the_photo_alone():
    empty = SimpleNamespace(scale=1.0, scores=np.zeros((0, 0)), keypoints_xy=np.zeros((0, 0, 2)))
    assert len(plotting.plot_scores(a_photo(64, 48), [empty]).images) == 1
    with pytest.raises(ValueError, match="at least one pyramid level"):
        plotting.plot_scores(a_photo(64, 48), [])


def test_heat_maps_stand_in_rows_of_photos_and_columns_of_scores(tmp_path):
    path = tmp_path / "tower.png"
    Image.fromarray(a_photo(64, 48)).save(path)
    photos = [path, a_photo(40, 80)]
    low = [[a_level(1.0, 2, 3, 16)], [a_level(1.0, 4, 2, 16), a_level(0.5, 2, 1, 32)]]
    high = [[a_level(1.0, 3, 4, 16)], [a_level(1.0, 5, 3, 16)]]
    for level in (high[0][0], high[1][0]):
        level.scores += 100
    figure = plotting.plot_heat_maps(photos, {"some $weights\nl2": low, "attention": high})
    panels = figure.axes[:6]  # colour bars come after
    assert [panel.get_title() for panel in panels] == [
        *("tower.png", "some $weights\nl2", "attention"),
        *("", "", ""),
    ]
    assert [len(panel.images) for panel in panels] == [1, 2, 2, 1, 2, 2]
    for panel, size in zip(panels, [(64, 48)] * 3 + [(40, 80)] * 3):
        for image in panel.images:
            assert tuple(image.get_extent()) == (0, size[0], size[1], 0)
    # Each panel has its own range of colours, and a bar that says which.
    ranges = [panels[i].images[1].get_clim() for i in (1, 2, 4, 5)]
    assert ranges[0] == (0, 5) and ranges[1] == (100, 111) and ranges[3] == (100, 114)
    assert len(figure.axes) == 6 + 4
    figure.savefig(tmp_path / "maps.png")


def test_heat_maps_merge_the_levels_of_the_whole_photo():
    one, other = a_level(1.0, 2, 2, 32), a_level(1.0, 2, 2, 32)
    one.scores[...], other.scores[...] = 1, 4
    for merge, value in (("mean", 2.5), ("max", 4)):
        figure = plotting.plot_heat_maps([a_photo(64, 48)], {"": [[one, other]]}, merge=merge)
        drawn = figure.axes[1].images[1].get_array()
        assert drawn.shape == (48, 64) and (drawn == value).all()


def test_heat_maps_refuse_what_does_not_fit():
    level = a_level(1.0, 2, 2, 32)
    with pytest.raises(ValueError, match=r"score_maps\['l2'\] must have one map per photo \(2\)"):
        plotting.plot_heat_maps([a_photo(9, 9), a_photo(9, 9)], {"l2": [[level]]})
    for photos, maps in (([], {"l2": []}), ([a_photo(9, 9)], {})):
        with pytest.raises(ValueError, match="must not be empty"):
            plotting.plot_heat_maps(photos, maps)


def test_ranked_answers_are_framed_green_and_red():
    hits = [a_hit(9), a_hit(8)]
    figure = plotting.plot_ranked(
        a_photo(60, 40),
        hits,
        relevant=[True, False],
        photo_of=lambda hit: a_photo(50, 70),
        title="$x",
    )
    frames = [ax.spines["left"].get_edgecolor()[:3] for ax in figure.axes]
    assert frames[1][1] > 0.6 and frames[1][0] < 0.1
    assert frames[2][0] > 0.6 and frames[2][1] < 0.1
    assert not figure.axes[0].spines["left"].get_visible()


def test_ranked_without_hits_says_no_match():
    figure = plotting.plot_ranked(a_photo(60, 40), [])
    assert figure.axes[1].texts[0].get_text() == "no match"


def test_ranked_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="one value per hit"):
        plotting.plot_ranked(a_photo(9, 9), [a_hit()], relevant=[])
    with pytest.raises(ValueError, match="no path"):
        plotting.plot_ranked(a_photo(9, 9), [a_hit(path=None)])
    with pytest.raises(ValueError, match=r"photo_of=search\.path_of"):
        plotting.plot_ranked(a_photo(9, 9), [a_hit(path="not/there.jpg")])
    with pytest.raises(ValueError, match="n_shown"):
        plotting.plot_ranked(a_photo(9, 9), [], n_shown=0)


def test_orientation_and_grey_photos_are_drawn_as_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    path = tmp_path / "turned.jpg"
    Image.new("L", (80, 40), 90).save(path, exif=exif)
    ax = plotting.plot_matches(str(path), path, a_hit(0))
    assert ax.images[0].get_array().shape == (80, 40, 3)


def test_unreadable_photo(tmp_path):
    (tmp_path / "text.jpg").write_text("not a photo")
    with pytest.raises(PhotoError, match=r"text\.jpg"):
        plotting.plot_matches(tmp_path / "text.jpg", a_photo(9, 9), a_hit(0))


def test_missing_matplotlib_names_the_extra(monkeypatch):
    import sys

    for name in ("matplotlib.backends.backend_agg", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install delfsearch\[plot\]"):
        plotting.plot_matches(a_photo(9, 9), a_photo(9, 9), a_hit(0))


def test_pyplot_stays_unused():
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from delfsearch.plotting import plot_ranked\n"
        "plot_ranked(np.zeros((9, 9, 3), np.uint8), [])\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
