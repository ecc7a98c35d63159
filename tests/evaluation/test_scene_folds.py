"""Folds of scenes against a slow deal by hand, and what weights say that they have not seen."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delfsearch.errors import WeightsError
from delfsearch.evaluation.folder import PhotoFolder, QueryTruth
from delfsearch.evaluation.scene_folds import (
    deal_scenes,
    held_out_scenes,
    linked_scenes,
    trained_photos,
)

NAMES = st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=30, unique=True)


def dealt_by_hand(scenes, n_folds, seed):
    """One card after the other, as siaMAC's two halves have always been dealt."""
    names = sorted(scenes)
    folds = [[] for _ in range(n_folds)]
    for place, i in enumerate(np.random.default_rng(seed).permutation(len(names))):
        folds[place % n_folds].append(names[i])
    return tuple(tuple(sorted(fold)) for fold in folds)


@given(NAMES, st.data(), st.integers(0, 5))
def test_folds_are_those_dealt_by_hand(scenes, data, seed):
    n_folds = data.draw(st.integers(2, len(scenes)))
    folds = deal_scenes(scenes, n_folds, random_state=seed)
    assert folds == dealt_by_hand(scenes, n_folds, seed)
    assert sorted(name for fold in folds for name in fold) == sorted(scenes)
    sizes = [len(fold) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    mixed = data.draw(st.permutations([*scenes, scenes[0]]))
    assert deal_scenes(iter(mixed), n_folds, random_state=seed) == folds


def test_a_fixed_deal():
    """Weights that ship were trained on these folds: they must not change."""
    scenes = [f"scene {i}" for i in range(7)]
    assert deal_scenes(scenes, 3) == (
        ("scene 1", "scene 2", "scene 6"),
        ("scene 4", "scene 5"),
        ("scene 0", "scene 3"),
    )
    assert deal_scenes(scenes, 3, random_state=1) != deal_scenes(scenes, 3)


@pytest.mark.parametrize(
    ("scenes", "n_folds", "message"),
    [
        (["a", "b"], 3, "at most the number of scenes, 2; got 3"),
        (["a", "a"], 2, "at most the number of scenes, 1; got 2"),
        (["a", "b"], 1, "n_folds must be"),
        (["a", ""], 2, "must have names"),
        ([], 2, "at most the number of scenes, 0"),
    ],
)
def test_bad_deals(scenes, n_folds, message):
    with pytest.raises(ValueError, match=message):
        deal_scenes(scenes, n_folds)


def test_folds_do_not_need_torch():
    code = "import sys, delfsearch.evaluation.scene_folds; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def weights(**recipe):
    return SimpleNamespace(name="some.safetensors", recipe=recipe)


def test_what_weights_say():
    assert held_out_scenes(weights()) is None and trained_photos(weights()) is None
    assert held_out_scenes(weights(held_out_scenes=[])) == frozenset()
    assert held_out_scenes(weights(held_out_scenes=["a", "b"])) == {"a", "b"}
    assert trained_photos(weights(trained_photos=["x/1.jpg"])) == {"x/1.jpg"}


def test_what_weights_were_trained_from_counts():
    before = {"held_out_scenes": ["a", "b"], "trained_photos": ["1"], "before": {"mode": "x"}}
    after = weights(held_out_scenes=["a"], trained_photos=["2"], before=before)
    assert held_out_scenes(after) == {"a"} and trained_photos(after) == {"1", "2"}
    # What is said of an earlier step alone says nothing of the last one.
    assert held_out_scenes(weights(before=before)) is None
    assert trained_photos(weights(before=before)) is None
    deeper = weights(held_out_scenes=["a", "c"], before={"before": before})
    with pytest.raises(WeightsError, match=r"some\.safetensors.*has 'c' \(1 in all\).*same fold"):
        held_out_scenes(deeper)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("abc", "must be a list of names; got str"),
        ({"a": 1}, "must be a list of names; got dict"),
        (7, "must be a list of names; got int"),
        (["a", 7], "one of them is 7"),
        (["a", ""], "one of them is ''"),
        ([["a"]], r"one of them is \['a'\]"),
        (["b", "a", "b"], "'b' is there more often"),
    ],
)
def test_nonsense_is_refused(value, message):
    with pytest.raises(WeightsError, match=f"held_out_scenes of the recipe .*{message}"):
        held_out_scenes(weights(held_out_scenes=value))
    with pytest.raises(WeightsError, match=f"trained_photos of the recipe .*{message}"):
        trained_photos(weights(trained_photos=value))


@given(
    names=st.sets(st.text("abcdefgh", min_size=1, max_size=3), min_size=4, max_size=30),
    data=st.data(),
)
def test_scenes_that_are_linked_are_dealt_together(names, data):
    ordered = sorted(names)
    links = data.draw(
        st.lists(st.tuples(st.sampled_from(ordered), st.sampled_from(ordered)), max_size=2)
    )
    folds = deal_scenes(names, 2, together=links)
    assert sorted(name for fold in folds for name in fold) == ordered
    for a, b in links:
        assert any(a in fold and b in fold for fold in folds)
    assert deal_scenes(names, 2, together=[(name,) for name in ordered]) == deal_scenes(names, 2)


def test_what_links_scenes(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1"), ("d", b"4"), ("e", b"5")):
        (tmp_path / name).write_bytes(content)
    truth = QueryTruth(scene="B", kind="", subset="", positives=("d",), junk=("e",))
    folder = PhotoFolder(
        root=tmp_path,
        paths=tuple("abcde"),
        roles=dict.fromkeys("abcde", "db"),
        scenes={name: name.upper() for name in "abcde"},
        kinds={},
        subsets={},
        queries={"b": truth},
        database=tuple("acde"),
    )
    assert linked_scenes(folder) == [("A", "C"), ("B", "D"), ("B", "E")]
    folds = deal_scenes("ABCDE", 2, together=linked_scenes(folder))
    assert sorted(map("".join, folds)) == ["AC", "BDE"]
    with pytest.raises(ValueError, match="groups of scenes, 2; got 3"):
        deal_scenes("ABCDE", 3, together=linked_scenes(folder))
