"""+100k and starred sets: what is added, how it is drawn, what is refused."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest
from evaluation.datasets.trees import QueryFiles, write_oxford, write_paris, write_photos

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets import (
    PARIS6K_UNREADABLE,
    read_flickr100k,
    read_oxford5k,
    read_paris6k,
    with_distractor_queries,
    with_distractors,
)

BOX = (0.0, 0.0, 9.0, 9.0)
OXFORD = [f"oxford_{i:06d}" for i in range(5)]
PARIS = [f"paris_general_{i:06d}" for i in range(30)]
FLICKR = ["06/06_000443.jpg", "cat/cat_000001.jpg", "cat/cat_000000.JPG"]


@pytest.fixture
def oxford(tmp_path):
    truth = {"keble_1": QueryFiles(OXFORD[0], BOX, tuple(OXFORD[:2]))}
    return read_oxford5k(write_oxford(tmp_path / "oxford", OXFORD, truth))


@pytest.fixture
def paris(tmp_path):
    truth = {"eiffel_1": QueryFiles(PARIS[0], BOX, tuple(PARIS[:2]))}
    names = [*PARIS, *sorted(PARIS6K_UNREADABLE)]
    return read_paris6k(write_paris(tmp_path / "paris", names, truth))


@pytest.fixture
def flickr(tmp_path):
    write_photos(tmp_path / "flickr" / "oxc1_100k", FLICKR)
    (tmp_path / "flickr" / "oxc1_100k" / "cat" / "list.txt").touch()
    return tmp_path / "flickr"


def test_flickr100k_is_read_from_its_folder_or_the_one_above(flickr):
    read = read_flickr100k(flickr)
    assert read.database == (
        "flickr100k/06/06_000443.jpg",
        "flickr100k/cat/cat_000000.JPG",
        "flickr100k/cat/cat_000001.jpg",
    )
    assert read.paths[read.database[0]] == flickr / "oxc1_100k" / "06" / "06_000443.jpg"
    assert read.queries == () and read.absent_photos() == ()
    assert read_flickr100k(flickr / "oxc1_100k") == read
    (flickr / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"no photo .* get the Flickr100k distractors"):
        read_flickr100k(flickr / "empty")
    with pytest.raises(DatasetError, match="does not exist; get the Flickr100k"):
        read_flickr100k(flickr / "absent")


def test_105k_and_106k(oxford, paris, flickr):
    larger = with_distractors(oxford, flickr)
    assert larger.name == "oxford105k"
    assert larger.database == oxford.database + read_flickr100k(flickr).database
    assert larger.queries == oxford.queries and larger.exclude_self is False
    assert larger.paths["flickr100k/06/06_000443.jpg"].is_file()
    assert larger.paths[OXFORD[0]] == oxford.paths[OXFORD[0]]
    assert larger.absent_photos() == ()
    assert with_distractors(paris, read_flickr100k(flickr)).name == "paris106k"
    # Any set may be the distractors.
    assert with_distractors(oxford, paris).name == "oxford5k+paris6k"
    assert with_distractors(larger, paris).name == "oxford105k+paris6k"
    with pytest.raises(DatasetError, match="every id once"):
        with_distractors(larger, flickr)


def test_distractor_queries_are_whole_photos_that_nothing_answers(oxford, paris):
    starred = with_distractor_queries(oxford, paris, 10)
    assert starred.name == "oxford5k*" and starred.queries == oxford.queries
    assert starred.database == oxford.database
    assert len(starred.distractor_queries) == len(starred.all_queries) - 1 == 10
    for query in starred.distractor_queries:
        photo = query.id.removeprefix("paris6k/")
        assert photo in PARIS
        assert query.path == paris.paths[photo] and query.path.is_file()
        assert query.box is None and not query.positives and not query.junk
        assert query.kind == "distractor" and query.subset == "paris6k"
    assert with_distractor_queries(paris, oxford, 2).name == "paris6k*"
    assert with_distractor_queries(oxford, paris, 0).distractor_queries == ()


def ids(dataset):
    return [query.id for query in dataset.distractor_queries]


def test_fewer_are_the_first_of_more_and_seeds_differ(oxford, paris):
    everyone = ids(with_distractor_queries(oxford, paris, 30))
    assert sorted(everyone) == [f"paris6k/{photo}" for photo in PARIS]
    for n in range(31):
        assert ids(with_distractor_queries(oxford, paris, n)) == everyone[:n]
    assert ids(with_distractor_queries(oxford, paris, 30, random_state=1)) != everyone
    generator = [
        ids(with_distractor_queries(oxford, paris, 9, random_state=np.random.default_rng(3)))
        for _ in range(2)
    ]
    assert generator[0] == generator[1]


def test_the_draw_does_not_depend_on_the_order_of_the_other_database(oxford, paris):
    backwards = dataclasses.replace(paris, database=paris.database[::-1])
    drawn = ids(with_distractor_queries(oxford, paris, 7))
    assert ids(with_distractor_queries(oxford, backwards, 7)) == drawn


def test_the_draw_is_pinned(oxford, paris):
    """The same photos on every machine and in every version."""
    drawn = [int(name[-6:]) for name in ids(with_distractor_queries(oxford, paris, 6))]
    assert drawn == [17, 0, 15, 1, 25, 26]


def test_a_photo_more_in_the_other_database_shifts_no_other(oxford, paris):
    fewer = dataclasses.replace(paris, database=paris.database[:20] + paris.database[21:])
    everyone = ids(with_distractor_queries(oxford, paris, 30))
    gone = f"paris6k/{paris.database[20]}"
    drawn = ids(with_distractor_queries(oxford, fewer, 29))
    assert drawn == [name for name in everyone if name != gone]


def test_every_photo_is_as_likely_as_any(oxford, paris):
    """How often each is among the first three of ten, over seeds: 200 times 0.3, give or take."""
    times = collections.Counter(
        name
        for seed in range(200)
        for name in ids(
            with_distractor_queries(oxford, paris, 3, random_state=seed, unreadable=ALL_BUT_TEN)
        )
    )
    # Standard deviation 6.5; the seeds are fixed.
    assert len(times) == 10 and all(35 < count < 85 for count in times.values())


ALL_BUT_TEN = (*PARIS6K_UNREADABLE, *PARIS[10:])


def test_unreadable_photos_are_not_drawn(oxford, paris):
    with pytest.raises(DatasetError, match=r"n must be at most 30, the readable .* got 31"):
        with_distractor_queries(oxford, paris, 31)
    every = with_distractor_queries(oxford, paris, 50, unreadable=())
    assert len(every.distractor_queries) == 50
    few = with_distractor_queries(oxford, paris, 1, unreadable=(*PARIS6K_UNREADABLE, *PARIS[1:]))
    assert ids(few) == [f"paris6k/{PARIS[0]}"]


def test_what_is_refused(oxford, paris):
    with pytest.raises(DatasetError, match="must come from another set; both are in"):
        with_distractor_queries(oxford, oxford, 1)
    with pytest.raises(ValueError, match="n must be at least 0; got -1"):
        with_distractor_queries(oxford, paris, -1)
    with pytest.raises(TypeError, match="n must be an integer; got 2"):
        with_distractor_queries(oxford, paris, 2.0)
    starred = with_distractor_queries(oxford, paris, 3)
    with pytest.raises(DatasetError, match="queries must have different ids"):
        with_distractor_queries(starred, paris, 3)
