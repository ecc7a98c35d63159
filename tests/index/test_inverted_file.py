from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from delfsearch import _core
from delfsearch.errors import IndexFormatError
from delfsearch.index.code_model import CodeModel, parse_code
from delfsearch.index.inverted_file import InvertedFile

SMALL = {"n_lists": 12, "code": "4x4", "leaf_size": 64, "min_rotation_rows": 60}


def clusters(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, d))
    return (centres[rng.integers(20, size=n)] + rng.normal(0, 0.3, (n, d))).astype(np.float32)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return clusters(3000)


@pytest.fixture(scope="module")
def file(rows) -> InvertedFile:
    return InvertedFile(**SMALL).fit(rows)


def decoded(file: InvertedFile) -> np.ndarray:
    """What every row's code stands for, by the model alone."""
    cells, numbers = file.model_.encode(file.codes(), 1)
    return file.model_.view.decode(numbers, cells)


def test_all_lists_and_leaves_give_what_comparing_all_codes_gives(file, rows):
    queries = clusters(40, seed=1)
    squared, ids = file.query(queries, k=20, n_probe=file.n_lists_)
    cells, numbers = file.model_.encode(file.codes(), 1)
    every = file.model_.view.distances(queries, numbers, cells, 1)
    np.testing.assert_array_equal(squared, np.sort(every, axis=1)[:, :20])
    np.testing.assert_array_equal(np.take_along_axis(every, ids, axis=1), squared)
    # Rotations of 8 bits are not quite orthogonal.
    stands_for = file.model_.view.decode(numbers, cells).astype(np.float64)
    exact = ((queries[:, None] - stands_for[None]) ** 2).sum(2)
    np.testing.assert_allclose(every, exact, rtol=0.05, atol=1e-3)
    assert all(len(set(row)) == 20 for row in ids.tolist())


@pytest.mark.parametrize("n_probe", [1, 3])
def test_only_the_nearest_lists_are_searched(file, rows, n_probe):
    queries = clusters(30, seed=2)
    _, ids = file.query(queries, k=3000, n_probe=n_probe)
    coarse = file.model_.coarse
    nearest = np.argsort(((queries[:, None] - coarse[None]) ** 2).sum(2), axis=1)[:, :n_probe]
    cells, _ = file.model_.encode(file.codes(), 1)
    for found, lists in zip(ids, nearest):
        np.testing.assert_array_equal(
            np.sort(found[found >= 0]), np.flatnonzero(np.isin(cells, lists))
        )


def test_leaves_cost_recall_and_never_correctness(file):
    queries = clusters(50, seed=3)
    whole, _ = file.query(queries, k=10, n_probe=4)
    one, ids = file.query(queries, k=10, n_probe=4, max_leaves=1)
    assert (one >= whole).all() and (ids[:, 0] >= 0).all()
    unleaved = InvertedFile(**{**SMALL, "leaf_size": 0}).fit(clusters(3000))
    np.testing.assert_array_equal(unleaved.query(queries, k=10, n_probe=4)[0], whole)


@pytest.mark.parametrize("eps", [0.2, 3.0])
def test_eps_bounds_the_error_and_minds_no_other_query(file, eps):
    queries = clusters(80, seed=5)
    whole, _ = file.query(queries, k=10, n_probe=6)
    some, ids = file.query(queries, k=10, n_probe=6, eps=eps)
    assert (some >= whole).all() and (np.sqrt(some) <= np.sqrt(whole) * (1 + eps) * 1.000001).all()
    assert eps < 3 or (some > whole).any()
    for i in range(0, 80, 7):
        alone, alone_ids = file.query(queries[i : i + 1], k=10, n_probe=6, eps=eps)
        np.testing.assert_array_equal(alone[0], some[i])
        np.testing.assert_array_equal(alone_ids[0], ids[i])


def test_reranking_orders_by_the_exact_descriptors(file, rows):
    queries = clusters(30, seed=4)
    squared, ids = file.query(queries, k=5, n_probe=file.n_lists_, rerank=3000)
    stored = file.quantizer_.decode(file.codes())
    exact = ((queries[:, None].astype(np.float64) - stored[None]) ** 2).sum(2)
    np.testing.assert_allclose(squared, np.sort(exact, axis=1)[:, :5], rtol=1e-6)
    np.testing.assert_array_equal(ids, np.argsort(exact, axis=1, kind="stable")[:, :5])


def test_threads_change_nothing_and_a_seed_gives_the_same(rows):
    queries = clusters(70, seed=5)
    one, four = (InvertedFile(**SMALL, n_jobs=n).fit(rows) for n in (1, 4))
    for a, b in zip(one.query(queries, k=9), four.query(queries, k=9)):
        np.testing.assert_array_equal(a, b)
    arrays = four.arrays()
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, arrays[name])


def test_removed_rows_never_come_back(rows):
    file = InvertedFile(**SMALL).fit(rows)
    queries = rows[:20]
    _, before = file.query(queries, k=3, n_probe=12)
    gone = np.unique(before[:, 0])
    file.remove(gone[:5])
    file.remove(gone)
    _, after = file.query(queries, k=2000, n_probe=12)
    assert not np.isin(after, gone).any()
    assert len(np.unique(after[after >= 0])) == len(rows) - len(gone)
    restored = pickle.loads(pickle.dumps(file))
    np.testing.assert_array_equal(restored.query(queries, k=50)[1], file.query(queries, k=50)[1])
    file.remove(np.arange(len(rows)))
    assert (file.query(queries, k=4)[1] == -1).all()


def test_arrays_come_back(file, rows):
    back = InvertedFile.from_arrays(file.arrays(), file.model_, file.get_params())
    model = CodeModel.from_arrays(file.model_.arrays(), "codes-1")
    again = InvertedFile.from_arrays(file.arrays(), model)
    for other in (back, again):
        for a, b in zip(other.query(rows[:9], k=7), file.query(rows[:9], k=7)):
            np.testing.assert_array_equal(a, b)
    assert len(back) == 3000 and set(file.memory_usage()) == {"codes", "ids", "leaves", "exact"}
    np.testing.assert_array_equal(file.codes(10, 20), file.quantizer_.quantize(rows[10:20]))


@pytest.mark.parametrize(
    "name",
    ["shape", "first_block", "sizes", "blocks", "first_leaf", "present", "id_words", "exact"],
)
def test_damaged_arrays_are_refused(file, name):
    arrays = file.arrays()
    for bad in (
        {key: value for key, value in arrays.items() if key != name},
        {**arrays, name: arrays[name][:-1]},
        {**arrays, name: arrays[name].astype(np.float64)},
    ):
        with pytest.raises(IndexFormatError):
            InvertedFile.from_arrays(bad, file.model_)


def test_a_damaged_model_is_refused(file):
    arrays = file.model_.arrays()
    for name in arrays:
        with pytest.raises(IndexFormatError, match="codes-7"):
            CodeModel.from_arrays({k: v for k, v in arrays.items() if k != name}, "codes-7")
    other = {**arrays, "rotation_of": arrays["rotation_of"] + 10_000}
    with pytest.raises(IndexFormatError, match="damaged"):
        CodeModel.from_arrays(other, "codes-7")


@pytest.mark.parametrize("n", [1, 2, 15, 16, 63, 64, 65, 200])
def test_few_rows(n):
    rows = clusters(n, seed=n)
    file = InvertedFile(**SMALL).fit(rows)
    squared, ids = file.query(rows, k=n + 2, n_probe=12)
    assert (np.sort(ids, axis=1)[:, 2:] == np.arange(n)).all() and np.isinf(squared[:, n:]).all()


def test_duplicates_and_constant_dimensions():
    rows = np.repeat(clusters(3), 100, axis=0)
    rows[:, 2] = 5.0
    file = InvertedFile(**SMALL).fit(rows)
    squared, ids = file.query(rows[:1], k=300, n_probe=12, rerank=300)
    assert sorted(ids[0]) == list(range(300)) and squared[0, 0] < 1e-3
    np.testing.assert_array_equal(ids[0, :100], np.arange(100))  # equal distances: by id


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**16), st.sampled_from([0, 64, 128]))
def test_every_row_is_found_once(n, seed, leaf_size):
    rows = clusters(n, seed=seed)
    file = InvertedFile(n_lists=5, code="2x4", leaf_size=leaf_size).fit(rows)
    _, ids = file.query(rows[:3], k=n, n_probe=5)
    for row in ids:
        np.testing.assert_array_equal(np.sort(row), np.arange(n))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"code": "10-5"}, "code must be parts x bits"),
        ({"code": "4x9"}, "4 to 8 bits"),
        ({"code": "3x5"}, "divide the dimension, 8"),
        ({"leaf_size": 100}, "multiple of 64"),
        ({"n_lists": 0}, "n_lists"),
        ({"n_probe": 0}, "n_probe"),
        ({"rerank": -1}, "rerank"),
        ({"eps": -0.1}, "eps must be at least 0"),
    ],
)
def test_parameters_that_make_no_sense(rows, options, match):
    with pytest.raises(ValueError, match=match):
        InvertedFile(**{**SMALL, **options}).fit(rows)


def test_bad_input(file, rows):
    with pytest.raises(NotFittedError):
        InvertedFile().query(rows)
    with pytest.raises(ValueError, match="8 columns"):
        file.query(rows[:, :4])
    with pytest.raises(ValueError, match="finite"):
        file.query(np.full((1, 8), np.nan, np.float32))
    with pytest.raises(ValueError, match="rows must lie"):
        file.remove([3000])
    assert file.query(rows[:0], k=4)[0].shape == (0, 4)
    assert clone(file).get_params() == file.get_params()
    assert parse_code("10x5") == (10, 5)


def test_cells_with_few_rows_share_with_their_neighbours():
    """Each family has a rotation of its own, and its codes are nearer than those of one for all."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(4, 8, 8)))[0]
    far = rng.normal(0, 40, (4, 8))
    spread = np.geomspace(4, 0.05, 8)
    X = np.concatenate([c + (rng.normal(size=(900, 8)) * spread) @ a for c, a in zip(far, axes)])
    options = {"n_lists": 24, "code": "4x4", "min_rotation_rows": 100}
    ours = InvertedFile(**options, min_codebook_rows=400).fit(X.astype(np.float32))
    shared = InvertedFile(**options, min_codebook_rows=10**6).fit(X.astype(np.float32))
    families = ours.model_.learned["codebook_of"]
    # All have rows enough: none is left with number 0, which all would share.
    assert 3 <= len(set(families.tolist())) <= 10 and (families > 0).all()
    assert set(shared.model_.learned["codebook_of"].tolist()) == {0}
    # Cells of one family lie about one of the four centres.
    centre = ((ours.model_.coarse[:, None] - far) ** 2).sum(2).argmin(1)
    for family in set(families[families > 0].tolist()):
        assert len(set(centre[families == family].tolist())) == 1

    def error(file):
        return float(((decoded(file) - file.model_.quantizer.decode(file.codes())) ** 2).mean())

    assert error(ours) < 0.8 * error(shared)


def test_models_of_float32_are_read(file, rows):
    """As they were before rotations and codebooks took 8 bits."""
    arrays = file.model_.arrays()
    d = file.n_features_in_
    steps = arrays.pop("rotation_steps")[:, None, None], arrays.pop("codebook_steps")
    rotations = np.zeros((len(steps[0]), d, -(-d // 16) * 16), np.float32)
    rotations[:, :, :d] = arrays["rotations"] * steps[0]
    codebooks = arrays["codebooks"] * steps[1][:, None, None, None]
    old = CodeModel.from_arrays(
        {**arrays, "rotations": rotations, "codebooks": codebooks.astype(np.float32)}, "codes"
    )
    again = InvertedFile.from_arrays(file.arrays(), old, SMALL)
    for ours, theirs in zip(again.query(rows[:20], k=5), file.query(rows[:20], k=5)):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["coarse", "rotation_steps", "codebook_steps", "lower"])
def test_models_that_are_not_finite_are_refused(file, name):
    arrays = {key: array.copy() for key, array in file.model_.arrays().items()}
    arrays[name].reshape(-1)[-1] = np.nan
    with pytest.raises(IndexFormatError, match="damaged"):
        CodeModel.from_arrays(arrays, "codes")
    with pytest.raises(ValueError, match="finite"):
        _core.CoarseSearch(np.full((1000, 4), np.nan, np.float32))


def test_removal_is_counted_and_read_once(file, rows):
    before = sum(file.memory_usage().values())
    removed = pickle.loads(pickle.dumps(file))
    removed.remove([3, 5])
    added = sum(removed.memory_usage().values()) - before
    _, ids = removed.query(rows[3:4], k=5, n_probe=4)
    assert 3 not in ids
    assert sum(removed.memory_usage().values()) - before == added >= removed.n_ids_


def test_bits_of_what_was_removed_before_are_not_kept(file, rows, monkeypatch):
    """A removal while a query reads the ids: the next query must not find what it removed."""
    changing = pickle.loads(pickle.dumps(file))
    changing.remove([3])
    bits_of = InvertedFile._bits_of

    def slow(self, wanted):
        bits = bits_of(self, wanted)
        if not self._removed[5]:
            self.remove([5])
        return bits

    monkeypatch.setattr(InvertedFile, "_bits_of", slow)
    changing.query(rows[:1], k=5)
    found = changing.query(rows[[3, 5]], k=5, n_probe=12)[1]
    assert 3 not in found and 5 not in found
