"""Revisited Oxford and Paris: the pickle's truth, three protocols, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from evaluation.datasets.trees import empty, write_photos, write_revisited
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets import read_revisited, with_difficulty

IMLIST = ("keble_1", "keble_2", "oxford_3", "oxford_4", "oxford_5")
QIMLIST = ("all_souls_000013", "keble_000245")
GND = (
    {"bbx": [136.5, 34.1, 648.5, 955.7], "easy": [0, 1], "hard": [3], "junk": [4]},
    {"bbx": [0.0, 1.0, 2.0, 3.0], "easy": [], "hard": [2], "junk": []},
)


@pytest.fixture
def root(tmp_path) -> Path:
    return write_revisited(tmp_path, "roxford5k", IMLIST, QIMLIST, GND)


def rewrite(root: Path, **changes) -> None:
    content = {"imlist": list(IMLIST), "qimlist": list(QIMLIST), "gnd": list(GND), **changes}
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol=2))


def test_the_truth_is_read(root):
    dataset = read_revisited(root, "roxford5k")
    assert dataset.name == "roxford5k" and dataset.exclude_self
    assert dataset.database == IMLIST  # in the pickle's order
    assert dataset.paths["oxford_4"] == root / "jpg" / "oxford_4.jpg"
    first, second = dataset.queries
    assert first.id == first.photo == "all_souls_000013"
    assert first.path == root / "jpg" / "all_souls_000013.jpg"
    assert first.box == (136.5, 34.1, 648.5, 955.7)
    assert first.easy == {"keble_1", "keble_2"} and first.hard == {"oxford_4"}
    assert first.positives == first.easy | first.hard and first.junk == {"oxford_5"}
    assert second.positives == second.hard == {"oxford_3"} and second.easy == frozenset()


def test_three_protocols(root):
    dataset = read_revisited(root, "roxford5k")
    easy = with_difficulty(dataset, "easy")
    assert [q.id for q in easy.queries] == ["all_souls_000013"]
    assert easy.queries[0].positives == {"keble_1", "keble_2"}
    assert easy.queries[0].junk == {"oxford_4", "oxford_5"}
    assert easy.notes == ("1 query(ies) have no easy positive: 'keble_000245'",)
    medium = with_difficulty(dataset, "medium")
    assert medium == dataset
    hard = with_difficulty(dataset, "hard")
    assert [q.positives for q in hard.queries] == [{"oxford_4"}, {"oxford_3"}]
    assert hard.queries[0].junk == {"keble_1", "keble_2", "oxford_5"}
    # From any of them the others follow.
    assert with_difficulty(hard, "medium") == medium
    with pytest.raises(ValueError, match="difficulty must be one of 'easy', 'medium', 'hard'"):
        with_difficulty(dataset, "Easy")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_any_protocol(root, protocol):
    arrays = [
        {"bbx": np.array([q["bbx"]]), **{k: np.array(q[k], int) for k in ("easy", "hard", "junk")}}
        for q in GND
    ]
    before = read_revisited(root, "roxford5k")
    content = {"imlist": list(IMLIST), "qimlist": list(QIMLIST), "gnd": arrays}
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    assert read_revisited(root, "roxford5k") == before


def test_the_layouts_of_the_field(tmp_path):
    both = tmp_path / "datasets"
    write_revisited(both / "rparis6k", "rparis6k", IMLIST, QIMLIST, GND)
    read = read_revisited(both, "rparis6k")
    assert read.paths["keble_1"] == both / "rparis6k" / "jpg" / "keble_1.jpg"
    # The photos as Oxford5k unpacks, the pickle elsewhere.
    apart = tmp_path / "apart"
    write_photos(apart / "oxbuild_images", [f"{n}.jpg" for n in (*IMLIST, *QIMLIST, "more_1")])
    truth = both / "rparis6k" / "gnd_rparis6k.pkl"
    assert read_revisited(apart, "roxford5k", truth=truth).database == IMLIST
    photos = apart / "oxbuild_images"
    assert read_revisited(both, "rparis6k", photos=photos).paths["keble_1"].parent == photos


def test_what_is_absent_is_named(root, tmp_path):
    with pytest.raises(ValueError, match="name must be one of 'roxford5k', 'rparis6k'"):
        read_revisited(root, "oxford5k")
    with pytest.raises(DatasetError, match=r"'gnd_rparis6k\.pkl'.*get Revisited Paris"):
        read_revisited(root, "rparis6k")
    with pytest.raises(DatasetError, match="is no file"):
        read_revisited(root, "roxford5k", truth=root / "none.pkl")
    (root / "jpg" / "oxford_4.jpg").unlink()
    (root / "jpg" / "keble_000245.jpg").unlink()
    with pytest.raises(DatasetError, match=r"2 photo.* 'keble_000245', 'oxford_4'; get Revisited"):
        read_revisited(root, "roxford5k")
    kept = read_revisited(root, "roxford5k", missing="drop")
    assert kept.database == ("keble_1", "keble_2", "oxford_3", "oxford_5")
    assert [(q.id, q.hard) for q in kept.queries] == [("all_souls_000013", frozenset())]


def gnd(**changes):
    return [{**GND[0], **changes}, GND[1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imlist": "abc"}, "imlist must be a list of names"),
        ({"imlist": [1, 2]}, "imlist must be a list of names"),
        ({"imlist": [*IMLIST, "keble_1"]}, "imlist must hold every name once; 'keble_1'"),
        ({"qimlist": ["a", "a"]}, "qimlist must hold every name once; 'a'"),
        ({"gnd": GND[:1]}, "gnd must be a list of 2"),
        ({"gnd": {}}, "gnd must be a list of 2"),
        ({"gnd": [1, 2]}, "query 'all_souls_000013'"),
        ({"gnd": [{}, {}]}, "query 'all_souls_000013': KeyError: 'easy'"),
        ({"gnd": gnd(easy=[5])}, r"whole numbers in 0 \.\.\. 4 .*got 5"),
        ({"gnd": gnd(easy=[-1])}, "got -1"),
        ({"gnd": gnd(easy=[0.5])}, "got 0.5"),
        ({"gnd": gnd(easy=[float("nan")])}, "got nan"),
        ({"gnd": gnd(easy=[True])}, "got True"),
        ({"gnd": gnd(easy=["0"])}, "got 0"),
        ({"gnd": gnd(easy=[10**5000])}, "query 'all_souls_000013': ValueError"),
        ({"gnd": gnd(easy=[0, 0])}, "a position is there twice"),
        ({"gnd": gnd(easy="01")}, "lists of positions; got str"),
        ({"gnd": gnd(bbx=[1, 2, 3])}, "bbx must be four numbers"),
        ({"gnd": gnd(bbx=[3, 2, 1, 4])}, "x0 < x1"),
        ({"gnd": gnd(bbx=["a"] * 4)}, "box must be four finite numbers"),
        ({"gnd": gnd(junk=[0])}, "both in positives and junk; 'keble_1'"),
        ({"gnd": gnd(hard=[0])}, "both in easy and hard; 'keble_1'"),
        ({"gnd": gnd(easy=[], hard=[])}, "must have a positive; 'all_souls_000013'"),
        ({"imlist": []}, "query 'all_souls_000013'"),
    ],
)
def test_malformed_truth_is_refused(root, changes, message):
    rewrite(root, **changes)
    with pytest.raises(DatasetError, match=message):
        read_revisited(root, "roxford5k")


@pytest.mark.parametrize("content", [[], {}, {"imlist": []}, 1, "x"])
def test_another_pickle_is_refused(root, content):
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DatasetError, match="must be a dict with imlist, qimlist and gnd"):
        read_revisited(root, "roxford5k")


class Payload:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_a_hostile_pickle_is_refused_and_nothing_runs(root, tmp_path):
    target = tmp_path / "pwned"
    rewrite(root, extra=Payload(target))
    with pytest.raises(DatasetError, match=r"gnd_roxford5k\.pkl is refused, nothing .*\.system"):
        read_revisited(root, "roxford5k")
    assert not target.exists()


def test_with_difficulty_is_for_revisited_sets(root):
    dataset = read_revisited(root, "roxford5k")
    rewrite(root, gnd=gnd(easy=[], hard=[0]))
    assert with_difficulty(read_revisited(root, "roxford5k"), "hard").queries
    plain = dataclasses.replace(
        dataset,
        queries=tuple(
            dataclasses.replace(q, easy=frozenset(), hard=frozenset()) for q in dataset.queries
        ),
    )
    with pytest.raises(DatasetError, match="for the revisited sets; query 'all_souls_000013'"):
        with_difficulty(plain, "easy")


@st.composite
def revisited_truths(draw):
    imlist = [f"p_{i}" for i in range(draw(st.integers(1, 8)))]
    qimlist = [f"q_{i}" for i in range(draw(st.integers(1, 4)))]
    gnd = []
    for _ in qimlist:
        kinds = draw(st.lists(st.sampled_from("ehjb"), min_size=len(imlist), max_size=len(imlist)))
        if not set(kinds) & set("eh"):
            kinds[0] = "e"
        of = {k: [i for i, kind in enumerate(kinds) if kind == k] for k in "ehj"}
        gnd.append({"bbx": [0.0, 0.0, 9.0, 9.0], "easy": of["e"], "hard": of["h"], "junk": of["j"]})
    return imlist, qimlist, gnd


@given(revisited_truths(), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read_whatever_the_order_of_imlist(truth, random):
    imlist, qimlist, gnd = truth
    order = list(range(len(imlist)))
    random.shuffle(order)
    moved = {old: new for new, old in enumerate(order)}
    parts = ("easy", "hard", "junk")
    shuffled = [{"bbx": q["bbx"], **{k: [moved[i] for i in q[k]] for k in parts}} for q in gnd]
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        first = read_revisited(
            write_revisited(Path(a), "rparis6k", imlist, qimlist, gnd, empty), "rparis6k"
        )
        second = read_revisited(
            write_revisited(Path(b), "rparis6k", [imlist[i] for i in order], qimlist, shuffled),
            "rparis6k",
        )
    assert set(first.database) == set(second.database)
    for q, again, written in zip(first.queries, second.queries, gnd):
        for kind in parts:
            assert getattr(q, kind) == getattr(again, kind) == {imlist[i] for i in written[kind]}
