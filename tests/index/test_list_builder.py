"""InvertedFileBuilder: what passes through in parts gives what one fit of everything gives."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch.errors import IndexFormatError
from delfsearch.index.code_model import CodeModel
from delfsearch.index.inverted_file import InvertedFile
from delfsearch.index.list_builder import InvertedFileBuilder, open_lists
from delfsearch.index.list_merge import ListWriter, Part, merge_lists
from delfsearch.storage.array_writer import ArrayWriter

SMALL = {"n_lists": 12, "code": "4x4", "leaf_size": 64, "min_rotation_rows": 60}
COUNTS = np.array([0, 40, 7, 300, 0, 53, 100, 100, 250, 150, 0])


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 8))
    n = int(COUNTS.sum())
    return (centres[rng.integers(20, size=n)] + rng.normal(0, 0.3, (n, 8))).astype(np.float32)


@pytest.fixture(scope="module")
def model(rows) -> CodeModel:
    return InvertedFile(**SMALL).learn(rows)


def same_arrays(a: InvertedFile, b: InvertedFile) -> bool:
    one, other = a.arrays(), b.arrays()
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)


def add_in_pieces(builder: InvertedFileBuilder, rows: np.ndarray, first_photo: int = 0) -> None:
    starts = np.concatenate([[0], np.cumsum(COUNTS)])
    for i in range(first_photo, len(COUNTS), 2):
        photos = slice(i, min(i + 2, len(COUNTS)))
        builder.add(rows[starts[photos.start] : starts[photos.stop]], COUNTS[photos])


@pytest.mark.parametrize("postings", ["features", "photos"])
@pytest.mark.parametrize("part_rows", [1, 120, 10**6])
@pytest.mark.parametrize("leaf_size", [0, 64])
def test_parts_give_the_bytes_of_one_fit(tmp_path, rows, model, postings, part_rows, leaf_size):
    builder = InvertedFileBuilder(
        model, tmp_path / "b", postings=postings, leaf_size=leaf_size, part_rows=part_rows, n_jobs=2
    )
    add_in_pieces(builder, rows)
    made = builder.finish()
    counts = COUNTS if postings == "photos" else None
    whole = InvertedFile.from_codes(
        model.quantize(rows), model, counts, **{**SMALL, "leaf_size": leaf_size}
    )
    assert same_arrays(made, whole) and made.grouped == (postings == "photos")
    assert made.n_ids_ == (len(COUNTS) if counts is not None else len(rows))
    assert [entry.name for entry in (tmp_path / "b").iterdir()] == ["lists"]
    found = made.query(rows[:5], k=3, n_probe=12)
    for ours, theirs in zip(found, whole.query(rows[:5], k=3, n_probe=12)):
        np.testing.assert_array_equal(ours, theirs)


def test_an_interrupted_build_goes_on(tmp_path, rows, model):
    whole = InvertedFileBuilder(model, tmp_path / "whole", part_rows=120)
    add_in_pieces(whole, rows)
    expected = whole.finish()
    first = InvertedFileBuilder(model, tmp_path / "b", part_rows=120)
    starts = np.concatenate([[0], np.cumsum(COUNTS)])
    first.add(rows[: starts[4]], COUNTS[:4])  # a part
    first.add(rows[starts[4] : starts[6]], COUNTS[4:6])  # not yet
    (tmp_path / "b" / "part-000001").mkdir()  # what a crash leaves
    (tmp_path / "b" / "part-000001" / "sizes.npy").write_bytes(b"half")
    again = InvertedFileBuilder(model, tmp_path / "b", part_rows=120)
    assert again.n_photos == 4 and again.n_rows == starts[4]
    add_in_pieces(again, rows, first_photo=4)
    assert same_arrays(again.finish(), expected)
    assert same_arrays(open_lists(tmp_path / "b", model), expected)
    with pytest.raises(FileExistsError, match="holds a finished inverted file"):
        InvertedFileBuilder(model, tmp_path / "b")
    with pytest.raises(IndexFormatError, match="holds no finished"):
        open_lists(tmp_path, model)


def test_rows_that_could_not_be_written_wait(tmp_path, rows, model, monkeypatch):
    expected = InvertedFileBuilder(model, tmp_path / "whole")
    expected.add(rows, COUNTS)
    builder = InvertedFileBuilder(model, tmp_path / "b")
    builder.add(rows, COUNTS)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write", "finish"):
        with monkeypatch.context() as context:
            context.setattr(ArrayWriter, name, fails)
            with pytest.raises(OSError, match="No space"):
                builder.commit()
    with monkeypatch.context() as context:
        context.setattr(InvertedFileBuilder, "_write_state", fails)
        with pytest.raises(OSError, match="No space"):
            builder.commit()
    assert same_arrays(builder.finish(), expected.finish())


def test_another_model_does_not_go_on(tmp_path, rows, model):
    InvertedFileBuilder(model, tmp_path / "b")
    other = InvertedFile(**SMALL, random_state=7).learn(rows)
    with pytest.raises(ValueError, match="was begun with model="):
        InvertedFileBuilder(other, tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "state.json.new").write_text("{")  # died in its first write
    assert InvertedFileBuilder(model, tmp_path / "c").n_rows == 0


def test_without_exact_descriptors(tmp_path, rows, model):
    builder = InvertedFileBuilder(model, tmp_path / "b", keep_exact=False)
    builder.add(model.quantize(rows), COUNTS)
    file = builder.finish()
    assert not file.has_exact and file.memory_usage()["exact"] == 0
    whole = InvertedFile.from_codes(model.quantize(rows), model)
    for ours, theirs in zip(file.query(rows[:9], k=5), whole.query(rows[:9], k=5)):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="rerank must be 0, since this inverted file holds no"):
        file.query(rows[:1], rerank=10)
    with pytest.raises(ValueError, match="without its 8-bit descriptors"):
        file.codes()


def test_what_it_refuses(tmp_path, rows, model):
    builder = InvertedFileBuilder(model, tmp_path / "b")
    with pytest.raises(ValueError, match="counts must be"):
        builder.add(rows, COUNTS[2:])
    with pytest.raises(ValueError, match="counts must be"):
        builder.add(rows[:1], [2, -1])
    with pytest.raises(ValueError, match="8 columns"):
        builder.add(rows[:, :7], COUNTS)
    with pytest.raises(ValueError, match="rows must be at least 1"):
        builder.finish()
    with pytest.raises(ValueError, match="begun with leaf_size=2048; got 64"):
        InvertedFileBuilder(model, tmp_path / "b", leaf_size=64)
    with pytest.raises(ValueError, match="multiple of 64"):
        InvertedFileBuilder(model, tmp_path / "c", leaf_size=100)
    with pytest.raises(ValueError, match="postings"):
        InvertedFileBuilder(model, tmp_path / "c", postings="rows")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(IndexFormatError, match="is not empty"):
        InvertedFileBuilder(model, tmp_path / "other")
    (tmp_path / "b" / "state.json").write_text("{")
    with pytest.raises(IndexFormatError, match="damaged"):
        InvertedFileBuilder(model, tmp_path / "b")
    shutil.rmtree(tmp_path / "b")


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_merging_keeps_what_is_kept(data):
    """Any parts, any new numbers, some left out: as if the rows that are left were given so."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    X = rng.normal(size=(data.draw(st.integers(40, 400)), 8)).astype(np.float32)
    file_params = {**SMALL, "n_lists": 4, "leaf_size": data.draw(st.sampled_from([0, 64, 128]))}
    model = InvertedFile(**file_params).learn(X)
    cuts = sorted(data.draw(st.lists(st.integers(1, len(X) - 1), max_size=3, unique=True)))
    pieces = np.split(np.arange(len(X)), cuts)
    new = rng.permutation(len(X))
    gone = rng.random(len(X)) < data.draw(st.sampled_from([0.0, 0.3]))
    gone[0] = False
    kept = np.flatnonzero(~gone)
    rank = np.full(len(X), -1)
    rank[kept[np.argsort(new[kept])]] = np.arange(len(kept))
    parts = [
        Part(InvertedFile.from_codes(model.quantize(X[p]), model, leaf_size=64), rank[p])
        for p in pieces
    ]
    sink = ArrayWriter(None)
    writer = ListWriter(model, len(kept), file_params["leaf_size"] // 64, sink, 2)
    most = data.draw(st.sampled_from([1, 100, 10**6]))
    assert merge_lists(parts, model, writer, max_codes=most) == len(kept)
    arrays, _ = sink.finish()
    order = np.argsort(rank)[len(X) - len(kept) :]
    whole = InvertedFile.from_codes(model.quantize(X[order]), model, **file_params).arrays()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, whole[name], err_msg=name)
