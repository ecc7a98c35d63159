"""The false pairs of benchmarks/selection.py: no photo in them shows what the query shows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from delfsearch.evaluation import TruePair
from delfsearch.evaluation.folder import PhotoFolder, QueryTruth

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
N = 12


@pytest.fixture(scope="module")
def selection():
    if not BENCHMARKS.is_dir():
        pytest.skip("a source distribution has no benchmarks")
    sys.path.insert(0, str(BENCHMARKS))
    import selection

    yield selection
    sys.path.remove(str(BENCHMARKS))


def pairs_of(scenes):
    return [TruePair(f"{s}/query.jpg", f"{s}/positive.jpg", f"pair of {s}", s) for s in scenes]


def folder(tmp_path, links):
    """Scenes 00 ... 11 of a query and a positive each; links: scenes whose positives are shared."""
    scenes = {f"{n:02}/{name}.jpg": f"{n:02}" for n in range(N) for name in ("query", "positive")}
    for path in scenes:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
    shown = {f"{n:02}": [f"{n:02}/positive.jpg"] for n in range(N)}
    for one, other in links:
        shown[one].append(f"{other}/positive.jpg")
    queries = {
        f"{scene}/query.jpg": QueryTruth(scene, "", "", tuple(positives), ())
        for scene, positives in shown.items()
    }
    roles = {path: "query" if "query" in path else "db" for path in scenes}
    return PhotoFolder(tmp_path, tuple(scenes), roles, scenes, {}, {}, queries, tuple(scenes))


@pytest.mark.parametrize("seed", range(4))
def test_false_pairs_are_of_scenes_that_show_something_else(selection, tmp_path, seed):
    # 00 is linked to 02 by way of 01; 05 to 06.
    linked = [("00", "01"), ("01", "02"), ("05", "06")]
    groups = selection.scene_groups(folder(tmp_path, linked))
    assert groups["00"] == groups["01"] == groups["02"] != groups["05"] == groups["06"]
    assert len(set(groups.values())) == N - 3
    pairs = pairs_of(sorted(groups))
    found = selection.false_pairs(pairs, groups, N, seed)
    assert len({pair.id for pair in found}) == N == len({pair.query for pair in found})
    for pair in found:
        other = pair.positive.split("/")[0]
        assert pair.query == f"{pair.scene}/query.jpg" and groups[other] != groups[pair.scene]
    # A few of them come from everywhere, not from the first scenes alone.
    few = selection.false_pairs(pairs, groups, 5, seed)
    assert few == found[:5] and [pair.scene for pair in few] != ["00", "01", "02", "03", "04"]
    assert selection.false_pairs(pairs_of(["00", "01", "02"]), groups, 5, seed) == []
    unknown = TruePair("q.jpg", "p.jpg", "of no scene")
    assert not selection.false_pairs([unknown, *pairs[:1]], groups, 5, seed)


def test_folds_get_false_pairs_of_scenes_that_they_have_not_seen(selection):
    groups = {f"{n:02}": f"{n:02}" for n in range(N)}
    judged = [("fold-0", pairs_of(sorted(groups)[:4])), ("fold-1", pairs_of(sorted(groups)[4:]))]
    found = selection.strangers_of(judged, groups, 6, 0)
    assert [(file, len(own)) for file, own in found] == [("fold-0", 2), ("fold-1", 4)]
    for (_, own), (_, held) in zip(found, judged):
        scenes = {pair.scene for pair in held}
        assert all({p.scene, p.positive.split("/")[0]} <= scenes for p in own)
    assert selection.strangers_of([("fold-0", pairs_of(["00"]))], groups, 6, 0) == []
