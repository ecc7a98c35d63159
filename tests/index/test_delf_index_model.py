"""DelfIndex against a dictionary: any sequence of changes, saves and loads."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from search_helpers import as_dict, make_features

from delfsearch.features import LocalFeatures
from delfsearch.index.delf_index import DelfIndex

ALL = 10**6

# A pool of photos, some alike (ties) and some without features.
_RNG = np.random.default_rng(11)
POOL = [make_features(_RNG, n) for n in (0, 1, 2, 5, 9, 17, 40, 0, 3)]
POOL += [POOL[5], POOL[3][::-1]]
QUERY = make_features(_RNG, 6)

photos = st.sampled_from(range(len(POOL)))


class IndexMachine(RuleBasedStateMachine):
    """The model: photo by id, and the highest id ever used. Codes come from the index itself."""

    options: ClassVar = {"max_leaves": ALL, "leaf_size": 16}

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="delfsearch-model-"))
        self.saves = 0
        self.saved: tuple[dict, dict, int] | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(first=st.lists(photos, min_size=1, max_size=4), factor=st.sampled_from([0, 1, 4]))
    def fit(self, first, factor) -> None:
        # Photo 6 settles the range of the quantizer, so that no code is clipped much.
        chosen = [POOL[6], *(POOL[i] for i in first)]
        metadata = [{"path": f"{i}"} for i in range(len(chosen))]
        self.index = DelfIndex(merge_factor=factor, **self.options)
        self.index.fit(chosen, metadata=metadata)
        self.model = dict(enumerate(chosen))
        self.paths = {i: str(i) for i in self.model}
        self.next_id = len(chosen)

    @rule(new=st.lists(photos, max_size=3))
    def add(self, new) -> None:
        ids = self.index.add([POOL[i] for i in new])
        assert ids.tolist() == list(range(self.next_id, self.next_id + len(new)))
        for image_id, i in zip(ids.tolist(), new):
            self.model[image_id] = POOL[i]
            self.paths[image_id] = None
        self.next_id += len(new)

    @rule(data=st.data())
    def remove(self, data) -> None:
        if self.model:
            gone = data.draw(st.lists(st.sampled_from(sorted(self.model)), max_size=3))
            self.index.remove(gone)
            for image_id in set(gone):
                del self.model[image_id], self.paths[image_id]

    @rule(data=st.data(), new=photos)
    def update(self, data, new) -> None:
        if self.model:
            image_id = data.draw(st.sampled_from(sorted(self.model)))
            self.index.update([image_id], [POOL[new]])
            self.model[image_id] = POOL[new]

    @rule()
    def merge(self) -> None:
        self.index.merge()
        assert len(self.index._segments.view.segments) <= 1

    @rule(elsewhere=st.booleans())
    def save(self, elsewhere) -> None:
        if elsewhere or self.index.path is None:
            self.saves += 1
            self.index.save(self.folder / f"index-{self.saves}")
        else:
            self.index.save()
        self.saved = (dict(self.model), dict(self.paths), self.next_id)
        assert self.index.check() == []

    @rule()
    def load_the_last_save(self) -> None:
        if self.saved is not None:
            path = self.index.path
            self.index._store.close()
            self.index = DelfIndex.load(path, verify=True)
            self.model, self.paths, self.next_id = (
                dict(self.saved[0]),
                dict(self.saved[1]),
                self.saved[2],
            )

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert self.index.ids.tolist() == sorted(self.model)
        assert len(self.index) == len(self.model)
        assert self.index.n_descriptors == sum(map(len, self.model.values()))
        for image_id, photo in self.model.items():
            record = self.index.image(image_id)
            assert record.path == self.paths[image_id] and record.n_features == len(photo)
            stored = self.index.features_of(image_id)
            np.testing.assert_array_equal(stored.keypoints_xy, photo.keypoints_xy)
            np.testing.assert_array_equal(stored.scores, photo.scores)

    @invariant()
    def answers_as_one_index_of_the_same_codes_would(self) -> None:
        if not self.model:
            return
        for excluded in ([], sorted(self.model)[:1]):
            found = as_dict(self.index.query(QUERY, k=9, exclude_ids=excluded))
            kept = {i: self.index.features_of(i) for i in sorted(self.model) if i not in excluded}
            assert list(found.items()) == list(self._expected(kept).items())

    def _expected(self, decoded: dict[int, LocalFeatures]) -> dict:
        """All pairs, distances as one tree over everything computes them with all leaves."""
        fresh = [f for f in decoded.values() if len(f)]
        if not fresh:
            return {}
        segments = self.index._segments.view.segments
        engine = self.index._engine()
        shared = engine.shared_of(next(s.searcher for s in segments if s.searcher is not None))
        codes = shared.quantize(np.concatenate([f.descriptors for f in fresh]))
        counts = np.array([len(f) for f in fresh], np.int64)
        whole = engine.build(codes, shared, counts)
        squared, rows = whole.query(QUERY.descriptors, k=9, max_leaves=ALL)
        owner = np.repeat(list(decoded), [len(f) for f in decoded.values()])
        number = np.concatenate([np.arange(len(f)) for f in decoded.values()])
        pairs: dict[int, list] = {}
        for q in range(len(QUERY)):
            for distance, row in zip(squared[q], rows[q]):
                if row >= 0:
                    image_id = int(owner[row])
                    xy = decoded[image_id].keypoints_xy[number[row]]
                    pairs.setdefault(image_id, []).append(
                        (
                            q,
                            int(number[row]),
                            *map(float, QUERY.keypoints_xy[q]),
                            *map(float, xy),
                            float(distance),
                        )
                    )
        votes = {i: len({pair[0] for pair in p}) for i, p in pairs.items()}
        return {i: pairs[i] for i in sorted(pairs, key=lambda i: (-votes[i], i))}


class ListMachine(IndexMachine):
    """Posting lists, all of them searched and everything compared exactly."""

    options: ClassVar = {
        "method": "ivf",
        "n_lists": 3,
        "n_probe": ALL,
        "code": "4x4",
        "rerank": ALL,
        "leaf_size": 64,
        "max_leaves": ALL,
    }


TestIndexModel = IndexMachine.TestCase
TestListModel = ListMachine.TestCase
TestIndexModel.settings = TestListModel.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, derandomize=True
)
