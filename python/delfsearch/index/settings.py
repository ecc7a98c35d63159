"""What an index is told, and the engine that this makes: the half of DelfIndex that decides."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from delfsearch._validation import check_choice, check_integer, check_n_jobs, check_real, check_seed
from delfsearch.index.code_model import check_split, parse_code
from delfsearch.index.contents import IndexContents
from delfsearch.index.engines import (
    AUTO_LISTS_FROM,
    AUTO_PHOTOS_FROM,
    EPS,
    LEAF_SIZE,
    METHODS,
    POSTINGS,
    Engine,
    ListEngine,
    TreeEngine,
)
from delfsearch.storage.store import IndexStore

logger = logging.getLogger("delfsearch")

# Parameters that belong to the machine, not to the index: not stored.
_NOT_STORED = ("n_jobs",)
# That what an interrupted build has encoded depends on.
_BUILT_BY = ("method", "n_lists", "code", "leaf_size", "postings", "clip_quantile")


class IndexSettings(IndexContents, BaseEstimator):  # type: ignore[misc]
    """Parameters, see DelfIndex, and what of them was settled when the index was made."""

    method: str
    k: int
    max_leaves: int | None
    leaf_size: int | None
    clip_quantile: float
    max_candidates: int
    max_squared_distance: float | None
    vote: str
    merge_factor: float
    n_lists: int
    n_probe: int
    code: str
    eps: float | None
    rerank: int
    postings: str
    random_state: Any
    n_jobs: int | None

    def _check_parameters(self) -> None:
        """Refuse parameters that make no sense, whatever is indexed."""
        check_choice(self.method, "method", ("kdtree", "ivf", "auto"))
        check_choice(self.postings, "postings", ("auto", *POSTINGS))
        for name in ("k", "max_candidates"):
            check_integer(getattr(self, name), name, minimum=1)
        check_real(
            self.clip_quantile, "clip_quantile", minimum=0, maximum=1, exclusive_minimum=True
        )
        if not isinstance(self.random_state, (np.random.RandomState, np.random.Generator)):
            check_seed(self.random_state)  # others would be drawn from
        for name in ("max_leaves", "leaf_size"):
            if getattr(self, name) is not None:
                check_integer(getattr(self, name), name, minimum=1)
        if self.method != "kdtree":
            engine = self._engine("ivf")
            assert isinstance(engine, ListEngine)
            engine.check()
        if self.postings == "photos" and self.rerank:
            raise ValueError(
                'rerank must be 0 with postings="photos", which compare the shortlist by 8 bits in '
                f"any case; got {self.rerank}"
            )
        if self.max_squared_distance is not None:
            check_real(self.max_squared_distance, "max_squared_distance", minimum=0.0)
        check_choice(self.vote, "vote", ("count", "distance"))
        check_real(self.merge_factor, "merge_factor", minimum=0.0)
        check_n_jobs(self.n_jobs)

    def _check_code(self, dimension: int) -> None:
        """Refuse a code that cannot be made of descriptors of a dimension."""
        if self.method == "ivf":
            check_split(self.code, dimension)

    def _choose(self, n_descriptors: int, store: IndexStore) -> Engine:
        """Settle the method of a new index, in its store, and return its engine."""
        method, dimension = self.method, int(store.catalog.value("dimension"))
        if method == "auto":
            method = "ivf" if self._are_many(n_descriptors, dimension) else "kdtree"
        postings = self.postings
        if postings == "auto":
            many = n_descriptors >= AUTO_PHOTOS_FROM and self.rerank == 0
            postings = "photos" if many else "features"
        store.catalog.set_value("method", method)
        engine = self._engine(method, postings)
        chosen = f'method="{method}"'
        if isinstance(engine, ListEngine):
            store.catalog.set_value("postings", postings)
            chosen += f', postings="{postings}", n_lists={engine.n_lists}'
        if "auto" in (self.method, self.postings):
            logger.info("%d descriptors: %s, leaf_size=%d", n_descriptors, chosen, engine.leaf_size)
        return engine

    def _are_many(self, n_descriptors: int, dimension: int) -> bool:
        """Return whether method="auto" puts so many descriptors into lists."""
        return n_descriptors >= AUTO_LISTS_FROM and dimension % parse_code(self.code)[0] == 0

    def _warn_of_growth(self, before: int, now: int, dimension: int) -> None:
        """Say that an index which chose trees has just grown to where fit would not."""
        grown = self._are_many(now, dimension) and not self._are_many(before, dimension)
        if grown and self.method == "auto" and self._method() == "kdtree":
            logger.warning(
                '%d descriptors in trees, which fit(method="auto") would put into posting lists: '
                "they take a fraction of the memory. An index keeps its method; fit or build a new "
                "one to have them",
                now,
            )

    def _settle(self, store: IndexStore) -> None:
        """Take method and postings from a store."""
        # Before there were posting lists nothing was written.
        self._settled = check_choice(store.catalog.value("method", "kdtree"), "method", METHODS)
        postings = store.catalog.value("postings", "features")
        self._settled_postings = check_choice(postings, "postings", POSTINGS)

    @property
    def method_(self) -> str:
        """The method of what is indexed."""
        self._check_fitted()
        return self._method()

    def _method(self) -> str:
        """Return the method that was settled, or else the one asked for, a tree where none is."""
        settled: str | None = getattr(self, "_settled", None)
        return settled or ("kdtree" if self.method == "auto" else self.method)

    @property
    def postings_(self) -> str:
        """What the lists of what is indexed name."""
        self._check_fitted()
        return self._settled_postings

    def _engine(self, method: str | None = None, postings: str | None = None) -> Engine:
        method = method or self._method()
        postings = postings or getattr(self, "_settled_postings", None) or self.postings
        postings = "features" if postings == "auto" else postings
        default = LEAF_SIZE["kdtree" if method == "kdtree" else postings]
        leaf_size = default if self.leaf_size is None else self.leaf_size
        if self.method == "auto" and method == "ivf":
            leaf_size = -(-leaf_size // 64) * 64
        if method == "kdtree":
            return TreeEngine(leaf_size, self.clip_quantile, self.n_jobs)
        return ListEngine(
            self.n_lists,
            self.n_probe,
            self.code,
            leaf_size,
            EPS[postings] if self.eps is None else self.eps,
            self.rerank,
            self.clip_quantile,
            self.random_state,
            self.n_jobs,
            postings,
        )

    def _check_begun(self, store: IndexStore) -> None:
        """Refuse to go on with a build of other parameters."""
        begun = store.catalog.value("index")
        for name in _BUILT_BY:
            if begun.get(name) != getattr(self, name):
                raise ValueError(
                    f"the build in {store.path} was begun with {name}={begun.get(name)!r}; got "
                    f"{getattr(self, name)!r}: go on with that, or build into another folder"
                )

    def _store_parameters(self, store: IndexStore) -> None:
        parameters = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params().items()
            if name not in _NOT_STORED
        }
        if not isinstance(self.random_state, (int, type(None))):
            parameters["random_state"] = 0  # only fit draws, and that is over
        if store.catalog.value("index") != parameters:
            store.catalog.set_value("index", parameters)
