"""Extraction on a GPU: levels of equal size, of several photos, go through the network together.

A window of photos is read on other threads. Their levels are sent from page-locked memory on a
stream of its own, those of equal size in one batch. The scores of all levels of a photo come back
in one transfer; the processor selects among them as it does among its own; the features of what it
selected come back in another. While the GPU is at one window the processor prepares the next and
finishes the one before. Nothing here needs a GPU: on a processor the transfers are copies.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from delfsearch.errors import PhotoError
from delfsearch.extraction.pyramid import Level
from delfsearch.extraction.runtime import Cells, Runtime
from delfsearch.extraction.selection import Selected, keep, selected

WINDOW = 8  # photos
_MAX_BATCH_PIXELS = 16 << 20  # of a batch: five levels of 2048 x 1536, about 3 GB of activations

Item = TypeVar("Item")


class Opened(NamedTuple):
    """What is known of a photo when it has been read.

    size : (width, height) of the original. border_cells : left out of its levels.
    """

    size: tuple[int, int]
    border_cells: int


@dataclass
class _Photo:
    """A photo on its way, with what the device knows of each level by now."""

    opened: Opened
    levels: list[Level]
    features: list[Tensor] = field(default_factory=list)  # (cells, 1024) each, on the device
    scores: list[Tensor] = field(default_factory=list)  # (cells,) each, on the device
    host_scores: Tensor = field(default_factory=lambda: torch.empty(0))  # of all levels in a row


@dataclass
class _Launched:
    photos: list[_Photo]
    done: Any = None  # the event after which host_scores are there


class BatchedExtraction:
    """Network and selection for windows of photos; launch one before collecting the last.

    runtime : of any device. Others : as DelfExtractor's; best : cells kept of a level, None all.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        max_features: int,
        iou_threshold: float,
        score_threshold: float | None,
        best: int | None,
    ) -> None:
        self.runtime = runtime
        self.max_features, self.iou_threshold = max_features, iou_threshold
        self.score_threshold, self.best = score_threshold, best
        self._cuda = runtime.device.type == "cuda"
        self._uploads, self._downloads = (
            torch.cuda.Stream(runtime.device) if self._cuda else None  # type: ignore[no-untyped-call]
            for _ in range(2)
        )

    def launch(self, photos: list[tuple[Opened, list[Level]]]) -> _Launched:
        """Start a window: what is known of each photo, and its levels."""
        window = _Launched([_Photo(*photo) for photo in photos])
        by_size: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for i, photo in enumerate(window.photos):
            photo.features = [torch.empty(0)] * len(photo.levels)
            photo.scores = [torch.empty(0)] * len(photo.levels)
            for j, level in enumerate(photo.levels):
                by_size[level.size].append((i, j))
        with torch.inference_mode():
            for size, members in sorted(by_size.items(), reverse=True):
                step = max(1, _MAX_BATCH_PIXELS // (size[0] * size[1]))
                for begin in range(0, len(members), step):
                    self._run_batch(window.photos, members[begin : begin + step])
            for photo in window.photos:
                if photo.levels:
                    photo.host_scores = self._to_host(torch.cat(photo.scores))
        if self._cuda:
            window.done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            window.done.record(torch.cuda.current_stream(self.runtime.device))
        return window

    def _run_batch(self, photos: list[_Photo], members: list[tuple[int, int]]) -> None:
        images = [photos[i].levels[j].rgb for i, j in members]
        batch = torch.empty(len(images), *images[0].shape, dtype=torch.uint8, pin_memory=self._cuda)
        for target, image in zip(batch, images):
            target.copy_(torch.from_numpy(image))
        features = self.runtime.dense_batch(self._to_device(batch))
        scores = self.runtime.scorer(features)
        for (i, j), f, s in zip(members, features.flatten(1, 2), scores.flatten(1)):
            photos[i].features[j], photos[i].scores[j] = f, s

    def collect(self, window: _Launched) -> list[Selected]:
        """Return what is selected of each photo of a window; waits for the device."""
        if window.done is not None:
            window.done.synchronize()
        chosen = [self._choose(photo) for photo in window.photos]
        with torch.inference_mode(), self._on(self._downloads):
            if self._downloads is not None:
                self._downloads.wait_event(window.done)
            fetched = [
                self._to_host(self._gather(photo, rows))
                for photo, (_, rows, _) in zip(window.photos, chosen)
            ]
        if self._downloads is not None:
            self._downloads.synchronize()
        results = []
        for (cells, _, kept), tensor in zip(chosen, fetched):
            if not cells:
                results.append(Selected.none())
                continue
            # The rows came level by level; back to best first.
            order = np.argsort(np.argsort(kept))
            results.append(selected(cells, kept, tensor.float().numpy()[order]))
        return results

    def _choose(self, photo: _Photo) -> tuple[list[Cells], list[np.ndarray], np.ndarray]:
        """Return a photo's candidates, the rows wanted of each level, and the selected cells."""
        cells, rows, begin = [], [], 0
        for level in photo.levels:
            end = begin + self.runtime.n_inner_cells(level, 0)
            scores = photo.host_scores[begin:end].numpy()
            begin = end
            numbers, candidates = self.runtime.candidates(
                level,
                photo.opened.size,
                scores,
                score_threshold=self.score_threshold,
                best=self.best,
                border_cells=photo.opened.border_cells,
            )
            cells.append(candidates)
            rows.append(numbers)
        if not cells:
            return [], [], np.zeros(0, np.int64)
        kept = keep(cells, max_features=self.max_features, iou_threshold=self.iou_threshold)
        ends = np.cumsum([len(numbers) for numbers in rows])
        inside = np.split(np.sort(kept), np.searchsorted(np.sort(kept), ends[:-1]))
        starts = ends - [len(numbers) for numbers in rows]
        return cells, [r[k - s] for r, k, s in zip(rows, inside, starts)], kept

    def _gather(self, photo: _Photo, rows: list[np.ndarray]) -> Tensor:
        """Return the features (n, 1024) of the wanted rows of each level, on the device."""
        parts = [
            features[self._to_device(torch.from_numpy(numbers))]
            for features, numbers in zip(photo.features, rows)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, device=self.runtime.device)

    def _to_device(self, x: Tensor) -> Tensor:
        """Send a tensor ahead of the work that is queued; what uses it next waits for it."""
        if self._uploads is None:
            return x.to(self.runtime.device)
        current = torch.cuda.current_stream(self.runtime.device)
        with torch.cuda.stream(self._uploads):
            sent = (x if x.is_pinned() else x.pin_memory()).to(
                self.runtime.device, non_blocking=True
            )
        current.wait_stream(self._uploads)
        sent.record_stream(current)
        return sent

    def _to_host(self, x: Tensor) -> Tensor:
        """Queue a transfer to the processor; it is there after the stream's next event."""
        result = torch.empty(x.shape, dtype=x.dtype, pin_memory=self._cuda)
        return result.copy_(x, non_blocking=self._cuda)

    def _on(self, stream: Any) -> AbstractContextManager[Any]:
        return nullcontext() if stream is None else torch.cuda.stream(stream)


def run_in_windows(
    items: Iterable[Item],
    *,
    read: Callable[[Item], tuple[Opened, list[Level]]],
    extraction: BatchedExtraction,
    n_readers: int,
    window: int = WINDOW,
) -> Iterator[tuple[Item, tuple[Selected, tuple[int, int]] | PhotoError]]:
    """Yield (photo, (its selected cells, its size)) in input order, three windows in flight.

    read : runs on n_readers threads, returns what it opened and its levels. A PhotoError from it is
    the photo's result; other exceptions stop the stream.
    """
    source = iter(items)
    reading = ThreadPoolExecutor(n_readers, "delfsearch-read")
    pending: deque[tuple[Item, Any]] = deque()

    def next_window() -> list[tuple[Item, Any]]:
        while len(pending) < 2 * window:
            item = next(source, _END)
            if item is _END:
                break
            pending.append((item, reading.submit(read, item)))  # type: ignore[arg-type]
        done = []
        for item, future in [pending.popleft() for _ in range(min(window, len(pending)))]:
            try:
                done.append((item, future.result()))
            except PhotoError as error:
                done.append((item, error))
        return done

    def finish(
        photos: list[tuple[Item, Any]], launched: _Launched
    ) -> Iterator[tuple[Item, tuple[Selected, tuple[int, int]] | PhotoError]]:
        results = iter(extraction.collect(launched))
        for item, value in photos:
            yield item, value if isinstance(value, PhotoError) else (next(results), value[0].size)

    try:
        before: tuple[list[tuple[Item, Any]], _Launched] | None = None
        while photos := next_window():
            good = [value for _, value in photos if not isinstance(value, PhotoError)]
            launched = extraction.launch(good)
            if before is not None:
                yield from finish(*before)
            before = photos, launched
        if before is not None:
            yield from finish(*before)
    finally:
        reading.shutdown(wait=True, cancel_futures=True)


_END: Any = object()
