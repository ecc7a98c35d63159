"""Extraction on a GPU: levels of equal size, of several photos, go through the network together.

A window of photos is read on other threads, which also lay a photo's levels side by side in
page-locked memory. They are sent on a stream of their own, and those of equal size are one batch.
The scores of a window come back in one transfer; another thread selects among them as the processor
does among its own, and the features of what it selected come back in another. While the GPU is at
one window the processor prepares the next and finishes the one before. Nothing here needs a GPU: on
a processor the transfers are copies.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delfsearch.errors import PhotoError
from delfsearch.extraction.network import N_CHANNELS
from delfsearch.extraction.pipeline import single_threaded_torch_pool
from delfsearch.extraction.pyramid import Level
from delfsearch.extraction.reduction import PcaReduction
from delfsearch.extraction.runtime import Cells, Runtime
from delfsearch.extraction.selection import Selected, keep, selected

# Photos of a window, and pixels of all their levels. A pixel leaves 8 bytes of features on the
# device until its window is finished, and about 200 of activations while its batch runs.
MAX_WINDOW = 32
_MAX_WINDOW_PIXELS = 256 << 20
_MAX_BATCH_PIXELS = 16 << 20
_MEMORY_PER_WINDOW_PIXEL = 100  # bytes that the device has for each: 24 of them are used
_MEMORY_PER_BATCH_PIXEL = 1000
_N_IN_FLIGHT = 3

Item = TypeVar("Item")


class Opened(NamedTuple):
    """What is known of a photo when it has been read.

    size : (width, height) of the original. border_cells : left out of its levels.
    """

    size: tuple[int, int]
    border_cells: int


class Staged(NamedTuple):
    """A photo that is ready to be sent: its levels' pixels (n,) uint8, one after the other.

    scales, sizes (width, height) : of the levels, in order.
    """

    opened: Opened
    scales: list[float]
    sizes: list[tuple[int, int]]
    pixels: Tensor

    @property
    def n_pixels(self) -> int:
        """Of all levels."""
        return len(self.pixels) // 3


@dataclass
class _Photo:
    """A photo on its way, with what the device knows of each level by now."""

    staged: Staged
    features: list[Tensor] = field(default_factory=list)  # (cells, 1024) each, on the device
    scores: list[Tensor] = field(default_factory=list)  # (cells,) each, on the device


@dataclass
class _Launched:
    photos: list[_Photo]
    scores: Tensor  # of all levels of all photos in a row, on the host
    done: Any = None  # the event after which they are there


class _Chosen(NamedTuple):
    """cells : candidates of each level. rows : wanted of each level. kept : as `keep` returns."""

    cells: list[Cells]
    rows: list[NDArray[np.int64]]
    kept: NDArray[np.int64]


class BatchedExtraction:
    """Network and selection for windows of photos; launch some before collecting the first.

    runtime : of any device. finish : applied to the selected features (n, 1024) float32 there, as
        reduction_on returns. Others : as DelfExtractor's; best : cells kept of a level, None all.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        max_features: int,
        iou_threshold: float,
        score_threshold: float | None,
        best: int | None,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.runtime = runtime
        self.finish = finish
        self.max_features, self.iou_threshold = max_features, iou_threshold
        self.score_threshold, self.best = score_threshold, best
        self.max_window_pixels, self.max_batch_pixels = _MAX_WINDOW_PIXELS, _MAX_BATCH_PIXELS
        self._cuda = runtime.device.type == "cuda"
        self._uploads: Any = None
        if self._cuda:
            self._uploads = torch.cuda.Stream(runtime.device)  # type: ignore[no-untyped-call]
            memory = torch.cuda.get_device_properties(runtime.device).total_memory
            self.max_window_pixels = min(_MAX_WINDOW_PIXELS, memory // _MEMORY_PER_WINDOW_PIXEL)
            self.max_batch_pixels = min(_MAX_BATCH_PIXELS, memory // _MEMORY_PER_BATCH_PIXEL)

    def stage(self, opened: Opened, levels: list[Level]) -> Staged:
        """Lay a photo's levels where the device can fetch them; by any thread."""
        parts = [level.rgb.reshape(-1) for level in levels]
        pixels = torch.empty(sum(map(len, parts)), dtype=torch.uint8, pin_memory=self._cuda)
        if parts:
            np.concatenate(parts, out=pixels.numpy())
        return Staged(
            opened, [level.scale for level in levels], [level.size for level in levels], pixels
        )

    def launch(self, photos: list[Staged]) -> _Launched:
        """Start a window; returns before the device has finished."""
        window = [_Photo(photo) for photo in photos]
        by_size: dict[tuple[int, int], list[tuple[int, int, Tensor]]] = defaultdict(list)
        with torch.inference_mode():
            for i, photo in enumerate(window):
                sizes = photo.staged.sizes
                photo.features = [torch.empty(0)] * len(sizes)
                photo.scores = [torch.empty(0)] * len(sizes)
                sent = self._send(photo.staged.pixels)
                images = torch.split(sent, [3 * width * height for width, height in sizes])
                for j, (image, (width, height)) in enumerate(zip(images, sizes)):
                    by_size[width, height].append((i, j, image.view(height, width, 3)))
            for size, members in sorted(by_size.items(), reverse=True):
                step = max(1, self.max_batch_pixels // (size[0] * size[1]))
                for begin in range(0, len(members), step):
                    self._run_batch(window, members[begin : begin + step])
            scores = [s for photo in window for s in photo.scores]
            on_host = self._fetch(torch.cat(scores)) if scores else torch.empty(0)
        done = None
        if self._cuda:
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(torch.cuda.current_stream(self.runtime.device))
        return _Launched(window, on_host, done)

    def _run_batch(self, photos: list[_Photo], members: list[tuple[int, int, Tensor]]) -> None:
        """Run images of one size; by halves where the device has too little memory for all."""
        try:
            features = self.runtime.dense_batch(torch.stack([image for _, _, image in members]))
            scores = self.runtime.scorer(features).flatten(1)
        except torch.cuda.OutOfMemoryError:
            if len(members) == 1:
                raise
        else:
            for (i, j, _), f, s in zip(members, features.flatten(1, 2), scores):
                photos[i].features[j], photos[i].scores[j] = f, s
            return
        torch.cuda.empty_cache()
        self.max_batch_pixels = max(1, self.max_batch_pixels // 2)
        half = len(members) // 2
        self._run_batch(photos, members[:half])
        self._run_batch(photos, members[half:])

    def collect(self, window: _Launched) -> list[Selected]:
        """Return what is selected of each photo of a window, when it is done; by any thread."""
        if window.done is not None:
            window.done.synchronize()
        chosen, begin = [], 0
        for photo in window.photos:
            end = begin + sum(map(len, photo.scores))
            chosen.append(self._choose(photo, window.scores[begin:end].numpy()))
            begin = end
        with torch.inference_mode():
            fetched = self._fetch_rows(window.photos, chosen)
        return [
            selected(cells, kept, features.numpy()) if cells else Selected.none(features.shape[1])
            for (cells, _, kept), features in zip(chosen, fetched)
        ]

    def _choose(self, photo: _Photo, scores: NDArray[np.float32]) -> _Chosen:
        cells, rows, begin = [], [], 0
        for scale, size, of_level in zip(photo.staged.scales, photo.staged.sizes, photo.scores):
            end = begin + len(of_level)
            numbers, candidates = self.runtime.candidates(
                scale,
                size,
                photo.staged.opened.size,
                scores[begin:end],
                score_threshold=self.score_threshold,
                best=self.best,
                border_cells=photo.staged.opened.border_cells,
            )
            begin = end
            cells.append(candidates)
            rows.append(numbers)
        if not cells:
            return _Chosen([], [], np.zeros(0, np.int64))
        kept = keep(cells, max_features=self.max_features, iou_threshold=self.iou_threshold)
        ends = np.cumsum([len(numbers) for numbers in rows])
        inside = np.split(np.sort(kept), np.searchsorted(np.sort(kept), ends[:-1]))
        starts = ends - [len(numbers) for numbers in rows]
        return _Chosen(cells, [r[k - s] for r, k, s in zip(rows, inside, starts)], kept)

    def _fetch_rows(self, photos: list[_Photo], chosen: list[_Chosen]) -> list[Tensor]:
        """Return the finished features of each photo's selected cells, best first, on the host.

        In one transfer there and one back, on a stream of the calling thread.
        """
        counts = [len(choice.kept) for choice in chosen]
        wanted = [
            (features, rows)
            for photo, choice in zip(photos, chosen)
            for features, rows in zip(photo.features, choice.rows)
        ]
        # Level by level first, then where each of them belongs, best first.
        starts = np.cumsum(counts) - counts
        order = [
            start + np.argsort(np.argsort(choice.kept)) for start, choice in zip(starts, chosen)
        ]
        n = sum(counts)
        numbers = torch.from_numpy(np.concatenate([*(r for _, r in wanted), *order, []])).long()
        if not self._cuda:
            return list(torch.split(self._gathered(wanted, numbers, n), counts))
        stream = torch.cuda.Stream(self.runtime.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            there = numbers.pin_memory().to(self.runtime.device, non_blocking=True)
            fetched = self._fetch(self._gathered(wanted, there, n))
        # The window's features were made on another stream: they must live until this.
        stream.synchronize()
        return list(torch.split(fetched, counts))

    def _gathered(
        self, wanted: list[tuple[Tensor, NDArray[np.int64]]], numbers: Tensor, n: int
    ) -> Tensor:
        """numbers (2 n,) : the rows wanted of each of the features, then the order of them all."""
        rows = torch.split(numbers[:n], [len(of_level) for _, of_level in wanted])
        parts = [features[of_level].float() for (features, _), of_level in zip(wanted, rows)]
        parts = parts or [torch.zeros(0, N_CHANNELS, device=self.runtime.device)]
        joined = torch.cat(parts)[numbers[n:]]
        return joined if self.finish is None else self.finish(joined)

    def _send(self, x: Tensor) -> Tensor:
        """Send a tensor ahead of the work that is queued; what uses it next waits for it."""
        if self._uploads is None:
            return x.to(self.runtime.device)
        current = torch.cuda.current_stream(self.runtime.device)
        with torch.cuda.stream(self._uploads):
            sent = x.to(self.runtime.device, non_blocking=True)
        current.wait_stream(self._uploads)
        sent.record_stream(current)
        return sent

    def _fetch(self, x: Tensor) -> Tensor:
        """Queue a transfer to the processor; it is there after the stream's next event."""
        result = torch.empty(x.shape, dtype=x.dtype, pin_memory=self._cuda)
        return result.copy_(x, non_blocking=self._cuda)


def reduction_on(device: torch.device, pca: PcaReduction | None) -> Callable[[Tensor], Tensor]:
    """Return pca.transform, or L2 alone, as a function of float32 tensors on a device."""
    if pca is None:
        return _normalized
    matrix, mean = (
        torch.from_numpy(x.astype(np.float32)).to(device) for x in (pca.projection(), pca.mean_)
    )

    def reduce(features: Tensor) -> Tensor:
        return _normalized(_normalized(features) @ matrix.T - matrix @ mean)

    return reduce


def _normalized(rows: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    return torch.where(norms > 0, rows / norms, 0.0).to(rows.dtype)


def run_in_windows(
    items: Iterable[Item],
    *,
    read: Callable[[Item], tuple[Opened, list[Level]]],
    extraction: BatchedExtraction,
    n_readers: int,
    max_window: int = MAX_WINDOW,
) -> Iterator[tuple[Item, tuple[Selected, tuple[int, int]] | PhotoError]]:
    """Yield (photo, (its selected cells, its size)) in input order, three windows in flight.

    read : runs on n_readers threads, returns what it opened and its levels. A PhotoError from it is
    the photo's result; other exceptions stop the stream. max_window : photos of a window.
    """
    source = iter(items)
    reading = single_threaded_torch_pool(n_readers, "delfsearch-read")
    finishing = single_threaded_torch_pool(min(_N_IN_FLIGHT, n_readers), "delfsearch-finish")
    pending: deque[tuple[Item, Future[Staged]]] = deque()
    launched: deque[tuple[list[tuple[Item, Staged | PhotoError]], Future[list[Selected]]]] = deque()

    def staged(item: Item) -> Staged:
        return extraction.stage(*read(item))

    def next_window() -> list[tuple[Item, Staged | PhotoError]]:
        window: list[tuple[Item, Staged | PhotoError]] = []
        n_pixels = 0
        while len(window) < max_window:
            while len(pending) < max(max_window, 2 * n_readers):
                item = next(source, _END)
                if item is _END:
                    break
                pending.append((item, reading.submit(staged, item)))  # type: ignore[arg-type]
            if not pending:
                break
            item, future = pending[0]
            photo: Staged | PhotoError
            try:
                photo = future.result()
                n_pixels += photo.n_pixels
            except PhotoError as error:
                photo = error
            if window and n_pixels > extraction.max_window_pixels:
                break
            pending.popleft()
            window.append((item, photo))
        return window

    def finished() -> Iterator[tuple[Item, tuple[Selected, tuple[int, int]] | PhotoError]]:
        photos, future = launched.popleft()
        results = iter(future.result())
        for item, value in photos:
            if isinstance(value, PhotoError):
                yield item, value
            else:
                yield item, (next(results), value.opened.size)

    try:
        while photos := next_window():
            good = [value for _, value in photos if not isinstance(value, PhotoError)]
            window = extraction.launch(good)
            light = [
                (item, v if isinstance(v, PhotoError) else v._replace(pixels=_NOTHING))
                for item, v in photos
            ]
            for photo in window.photos:
                photo.staged = photo.staged._replace(pixels=_NOTHING)
            del photos, good
            launched.append((light, finishing.submit(extraction.collect, window)))
            del window
            while len(launched) >= _N_IN_FLIGHT:
                yield from finished()
        while launched:
            yield from finished()
    finally:
        reading.shutdown(wait=True, cancel_futures=True)
        finishing.shutdown(wait=True, cancel_futures=True)


_END: Any = object()
_NOTHING = torch.empty(0, dtype=torch.uint8)
