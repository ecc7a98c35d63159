"""Which photos a step sees, and the threads that prepare the steps ahead of the network.

Step s is step s % steps_per_epoch of epoch s // steps_per_epoch. What it sees depends on
(random_state, epoch, place in the epoch, photo) and on nothing that happened before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delfsearch.errors import PhotoError
from delfsearch.training.draws import Purpose, generator
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.photo_store import PhotoStore
from delfsearch.training.views import Views, make_view

Item = TypeVar("Item")


class Batch(NamedTuple):
    """inputs : photos (b, s, s, 3) uint8, or features (b, n, 1024) of any float type.

    labels (b,) int64. weights (b,) float32 : 0 where the photo could not be read, else 1.
    gamma : scale of the views.
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor
    gamma: float

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """What the model takes."""
        return (self.inputs,)


class Plan:
    """Which photos each step sees.

    sampling : "photos", every photo once an epoch; "classes", as many draws an epoch, each of a
        class drawn evenly and of a photo of it. A last batch that is not full is left out: another
        epoch leaves out other photos.
    n_parts, part : processes that share a batch, and which of them this is.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        *,
        batch_size: int,
        sampling: str,
        random_state: int,
        n_parts: int = 1,
        part: int = 0,
    ) -> None:
        self._labels = labels
        self._sampling = sampling
        self._seed = random_state
        whole = min(batch_size, len(labels) - len(labels) % n_parts)
        if batch_size % n_parts or not whole:
            raise ValueError(
                f"batch_size must be a multiple of the number of processes, and there must be a "
                f"photo for each; got batch_size={batch_size}, {n_parts} processes, "
                f"{len(labels)} photos"
            )
        self.batch_size = whole
        self.steps_per_epoch = len(labels) // whole
        self._slice = slice(part * (whole // n_parts), (part + 1) * (whole // n_parts))
        self._orders: dict[int, NDArray[np.int64]] = {}

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the photos of an epoch, by row."""
        order = self._orders.get(epoch)
        if order is None:
            rng = generator(self._seed, Purpose.ORDER, epoch)
            n = len(self._labels)
            if self._sampling == "photos":
                order = rng.permutation(n)
            else:
                by_class = np.argsort(self._labels, kind="stable")
                counts = np.bincount(self._labels)
                drawn = rng.integers(0, len(counts), n)
                within = (rng.random(n) * counts[drawn]).astype(np.int64)
                order = by_class[(np.cumsum(counts) - counts)[drawn] + within]
            # Threads prepare steps of at most two epochs at a time.
            self._orders = {e: o for e, o in self._orders.items() if abs(e - epoch) <= 1}
            self._orders[epoch] = order
        return order

    def step(self, step: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        """Return the epoch of a step, the places in it and the photos that this process sees."""
        epoch, within = divmod(step, self.steps_per_epoch)
        begin = within * self.batch_size
        places = np.arange(begin, begin + self.batch_size)[self._slice]
        return epoch, places, self.order(epoch)[places]


class PhotoBatches:
    """Makes the batch of a step: random views of its photos.

    gamma_of : scale of the views of a step; None means 1.
    """

    def __init__(
        self,
        plan: Plan,
        photos: LabelledPhotos,
        store: PhotoStore,
        views: Views,
        *,
        random_state: int,
        gamma_of: Callable[[int], float] | None = None,
    ) -> None:
        self._plan = plan
        self._photos = photos
        self._store = store
        self._views = views
        self._seed = random_state
        self._gamma_of = gamma_of

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step; an unreadable photo is grey and has weight 0."""
        epoch, places, rows = self._plan.step(step)
        gamma = 1.0 if self._gamma_of is None else self._gamma_of(step)
        side = self._views.output_side(gamma)
        inputs = np.full((len(rows), side, side, 3), 128, np.uint8)
        weights = np.ones(len(rows), np.float32)
        for i, (place, row) in enumerate(zip(places.tolist(), rows.tolist())):
            rng = generator(self._seed, Purpose.VIEW, epoch, place, row)
            try:
                square = self._store.pixels(row)
            except PhotoError:
                weights[i] = 0.0
                continue
            inputs[i] = make_view(
                square, self._views, rng, gamma=gamma, varied=bool(self._photos.varied[row])
            )
        return Batch(
            torch.from_numpy(inputs),
            torch.from_numpy(self._photos.labels[rows]),
            torch.from_numpy(weights),
            gamma,
        )


def prepared(
    make: Callable[[int], Item], first: int, end: int, *, n_threads: int
) -> Generator[Item, None, None]:
    """Yield make(step) for steps first ... end - 1 in order, some steps ahead on other threads."""
    pool = ThreadPoolExecutor(n_threads, "delfsearch-batches")
    pending: deque[Future[Item]] = deque()
    upcoming = first
    try:
        for _ in range(first, end):
            while upcoming < min(end, first + n_threads + 2):
                pending.append(pool.submit(make, upcoming))
                upcoming += 1
            item = pending.popleft().result()
            first += 1
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
