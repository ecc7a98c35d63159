"""Selection: the photos that may answer, in the form that each segment searches with."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.index.segment import Segment
from delfsearch.storage.catalog import Catalog
from delfsearch.storage.conditions import sql_of
from delfsearch.where import Where

# Selections kept for later queries: so many, and so many bytes of more than the last.
_KEPT = 16
_KEPT_BYTES = 1 << 28


@dataclass(frozen=True)
class Part:
    """What of one segment may answer.

    photos : (p,) bool. prepared : what its searcher takes as allowed; None where nothing may answer
    or everything may. is_empty, is_whole : which.
    """

    photos: NDArray[np.bool_]
    prepared: Any
    is_empty: bool
    is_whole: bool

    @staticmethod
    def of(segment: Segment, ids: NDArray[np.int64]) -> Part:
        """Select the photos of a segment whose ids are among ids, which are distinct and rise."""
        photos = _among(segment.image_ids, ids)
        photos &= ~segment.removed
        n_rows = int(np.diff(segment.offsets)[photos].sum())
        is_empty, is_whole = n_rows == 0, n_rows == segment.n_live_rows
        prepared = None if is_empty or is_whole else segment.prepare(photos)
        return Part(photos, prepared, is_empty, is_whole)

    @property
    def nbytes(self) -> int:
        """Bytes in RAM."""
        return self.photos.nbytes + (0 if self.prepared is None else int(self.prepared.nbytes))


Selection = tuple[Part, ...]  # one part for each segment of a View


@dataclass(eq=False)
class SelectionCache:
    """The selections of one View used last, each under a key. Safe to share between threads.

    Removing photos changes the segments of a view, and new metadata nothing of it: therefore all
    are forgotten when the image table has another revision.
    """

    _revision: int = -1
    _kept: OrderedDict[Hashable, Selection] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, revision: int, key: Hashable, make: Callable[[], Selection]) -> Selection:
        """Return what is kept under key, or make it and keep it."""
        with self._lock:
            if revision != self._revision:
                self._kept.clear()
                self._revision = revision
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and (
                len(self._kept) > _KEPT or _bytes_of(self._kept) > _KEPT_BYTES
            ):
                self._kept.popitem(last=False)
        return made

    @property
    def nbytes(self) -> int:
        """Bytes in RAM."""
        with self._lock:
            return _bytes_of(self._kept)


def photos_of(where: Where, catalog: Catalog) -> NDArray[np.int64]:
    """Return the ids, distinct and rising, of the photos of a catalog that satisfy where.

    Of a where with nothing but ids, all of these, in the catalog or not.
    """
    sql, arguments = sql_of(where)
    if not sql:
        assert where.id_array is not None  # Where.of has left nothing else
        return where.id_array
    ids = catalog.image_ids(sql, arguments)
    return ids if where.id_array is None else ids[_among(ids, where.id_array)]


def _among(ids: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return (n,) bool, which of ids are wanted; both are distinct and rise."""
    found = np.zeros(len(ids), bool)
    if len(ids) == 0 or len(wanted) == 0:
        return found
    begin, end = np.searchsorted(wanted, ids[0]), np.searchsorted(wanted, ids[-1], side="right")
    wanted = wanted[begin:end]
    if ids[-1] - ids[0] == len(ids) - 1:  # without gaps
        found[wanted - ids[0]] = True
        return found
    at = np.searchsorted(ids, wanted)
    found[at[ids[at] == wanted]] = True
    return found


def _bytes_of(kept: OrderedDict[Hashable, Selection]) -> int:
    return sum(part.nbytes for selection in kept.values() for part in selection)
