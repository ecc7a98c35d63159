"""What a run is told: the system that is ready, how hard to search, what else the search does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from delfsearch.evaluation.running.feature_store import FeatureShelf

# what is being done, done, total
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, order=True)
class Effort:
    """How hard the index of local features is searched: K neighbours, T leaves."""

    k: int
    max_leaves: int

    def __str__(self) -> str:
        return f"K={self.k}, T={self.max_leaves}"


@dataclass(frozen=True)
class SearchSettings:
    """What the search does beside the effort.

    leaf_size : descriptors in a leaf of the tree; the paper states none, 1 is FLANN's.
    lists : parameters of DelfIndex(method="ivf") where posting lists take the place of the tree
        (Sec. 5.4), such as {"n_lists": 8000}; T are then leaves of each list. None: the tree.
    max_candidates : photos verified for each query, those with most votes.
    max_squared_distance : neighbours beyond it are no putative matches; None keeps all K, as the
        paper says nothing of a limit.
    min_inliers : photos with fewer are no answers at all; precision and recall need low scores.
    max_answers : answers kept of a global system, best first; mean average precision counts
        positives ranked below as not found.
    random_state : seeds RANSAC. n_jobs : threads, which change no answer.
    """

    leaf_size: int = 1
    lists: Mapping[str, Any] | None = None
    max_candidates: int = 500
    max_squared_distance: float | None = None
    min_inliers: int = 3
    max_answers: int = 1000
    random_state: int = 0
    n_jobs: int | None = -1

    def key(self) -> dict[str, Any]:
        """Return what the answers depend on."""
        told = asdict(self)
        del told["n_jobs"]
        if told["lists"] is None:
            del told["lists"]  # as before there were any
        return told


@dataclass(frozen=True)
class Runnable:
    """A system that is ready to run.

    kind : "local" or "global". ran : what actually runs. shelf : where its features are.
    view : what becomes of stored features before they are used (the best ones, reduced; a vector
    whitened).
    view_key : says in JSON what view does. query_expansion : rounds, of global systems.
    """

    kind: Literal["local", "global"]
    ran: str
    shelf: FeatureShelf
    view: Callable[[Any], Any] = lambda features: features
    view_key: Mapping[str, Any] = field(default_factory=dict)
    query_expansion: int = 0
