"""Features of a frozen trunk, computed once for many epochs: some random crops of every photo.

One crop would be learned by heart, so there are at least two for each scale. A round is a crop of
every photo at one scale, the same for all; a step draws a round, and takes its photos' features
from it. A round is one .npy file in half precision, written beside and moved into place, so that
what is finished survives an interruption.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from delfsearch.errors import PhotoError
from delfsearch.extraction.network import N_CHANNELS
from delfsearch.training.batches import Batch, Plan, prepared
from delfsearch.training.checkpoint import CheckpointError, refuse_unshared, written
from delfsearch.training.draws import Purpose, generator
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.models import FrozenTrunk, half
from delfsearch.training.photo_store import PhotoStore
from delfsearch.training.processes import Processes
from delfsearch.training.views import Views, make_view

logger = logging.getLogger("delfsearch")

_TABLE = "features.json"
_GROUP = 8  # photos that are prepared at a time


class FeatureCache:
    """Rounds of features in a folder.

    gammas : scale of each round. key : JSON-able, all that the features depend on; features of
        another key are thrown away.
    """

    def __init__(
        self,
        folder: Path,
        photos: LabelledPhotos,
        views: Views,
        *,
        gammas: tuple[float, ...],
        random_state: int,
        key: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.gammas = gammas
        self._photos = photos
        self._views = views
        self._seed = random_state
        self._key = json.loads(json.dumps({"gammas": list(gammas), **key}))
        self._rounds: list[NDArray[np.float16]] = []
        self._weights = np.ones(len(photos), np.float32)

    def fill(
        self,
        trunk: FrozenTrunk,
        store: PhotoStore,
        processes: Processes,
        *,
        n_threads: int = 2,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Compute the rounds that are not there yet.

        Raises CheckpointError where the disk is too small for them, or the processes, which share
        the work, do not share the folder; WeightsError where they do not fit half precision.
        """
        if processes.is_main:
            self._open()
        processes.wait()
        refuse_unshared(self.folder, processes)
        n = len(self._photos)
        missing = [r for r in range(len(self.gammas)) if not self._path(r).is_file()]
        if processes.is_main and missing:
            self._check_space(trunk, missing)
        done = (len(self.gammas) - len(missing)) * n
        for r in missing[processes.index :: processes.count]:
            for count in self._compute(r, trunk, store, n_threads):
                if progress is not None and processes.is_main:
                    progress("features", done + count * processes.count, n * len(self.gammas))
            done += n * processes.count
        processes.wait()
        self._rounds = [np.load(self._path(r), mmap_mode="r") for r in range(len(self.gammas))]
        for r in range(len(self.gammas)):
            unreadable = json.loads(self._path(r).with_suffix(".json").read_text("utf-8"))
            for row, reason in unreadable.items():
                self._weights[int(row)] = 0.0
                store.unreadable.setdefault(int(row), PhotoError(reason))

    def batches(self, plan: Plan) -> Callable[[int], Batch]:
        """Return the function that makes the batch of a step."""

        def make(step: int) -> Batch:
            _, _, rows = plan.step(step)
            drawn = generator(self._seed, Purpose.ROUND, step).integers(len(self.gammas))
            features = np.asarray(self._rounds[drawn][rows])
            return Batch(
                torch.from_numpy(features),
                torch.from_numpy(self._photos.labels[rows]),
                torch.from_numpy(self._weights[rows]),
                self.gammas[drawn],
            )

        return make

    def _path(self, r: int) -> Path:
        return self.folder / f"round-{r:04d}.npy"

    def _open(self) -> None:
        table = self.folder / _TABLE
        try:
            known = json.loads(table.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
        with _written(table):
            self.folder.mkdir(parents=True, exist_ok=True)
            if known != self._key:
                for file in self.folder.glob("round-*"):
                    file.unlink()
                table.write_text(json.dumps(self._key), encoding="utf-8")

    def _check_space(self, trunk: FrozenTrunk, missing: list[int]) -> None:
        needed = 0
        for r in missing:
            side = self._views.output_side(self.gammas[r])
            grey = torch.full((1, side, side, 3), 128, dtype=torch.uint8, device=trunk.device)
            needed += 2 * N_CHANNELS * len(self._photos) * trunk(grey).shape[1]
        free = shutil.disk_usage(self.folder).free
        logger.info("features of frozen trunk: %.1f GB in %s", needed / 1e9, self.folder)
        if needed > free:
            raise CheckpointError(
                f"the features take {needed / 1e9:.1f} GB in {self.folder}, {free / 1e9:.1f} GB "
                "are free: ask for fewer cached_crops or a smaller crop_side, or for none"
            )

    def _compute(self, r: int, trunk: FrozenTrunk, store: PhotoStore, n_threads: int) -> Any:
        """Write a round; yield how many of its photos are done."""
        gamma, n = self.gammas[r], len(self._photos)
        side = self._views.output_side(gamma)
        unreadable: dict[int, str] = {}

        def make(group: int) -> NDArray[np.uint8]:
            rows = range(group * _GROUP, min(n, (group + 1) * _GROUP))
            inputs = np.full((len(rows), side, side, 3), 128, np.uint8)
            for i, row in enumerate(rows):
                rng = generator(self._seed, Purpose.CACHED_VIEW, r, row)
                try:
                    square = store.pixels(row)
                except PhotoError as error:
                    unreadable[row] = str(error)
                    continue
                varied = bool(self._photos.varied[row])
                inputs[i] = make_view(square, self._views, rng, gamma=gamma, varied=varied)
            return inputs

        part = self._path(r).with_suffix(".part")
        done = 0
        try:
            # Not through a memory map: on a full disk that would end the process.
            with _written(part), part.open("wb") as file:
                for inputs in prepared(make, 0, -(-n // _GROUP), n_threads=n_threads):
                    features = trunk(torch.from_numpy(inputs).to(trunk.device))
                    values = half(
                        features, weights=trunk.name, instead="train without cached_crops"
                    )
                    if not done:
                        header = {"descr": "<f2", "fortran_order": False}
                        shape = (n, *values.shape[1:])
                        np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
                    file.write(values.tobytes())
                    done += len(values)
                    yield done
                file.flush()
                os.fsync(file.fileno())
            with _written(self._path(r)):
                self._path(r).with_suffix(".json").write_text(json.dumps(unreadable), "utf-8")
                os.replace(part, self._path(r))
        finally:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()


def _written(path: Path) -> contextlib.AbstractContextManager[None]:
    return written("features", path, or_else="ask for fewer cached_crops")


def cached_gammas(
    gammas: tuple[float, ...] | str, n_crops: int, lowest: float, random_state: int
) -> tuple[float, ...]:
    """Return the scale of each round: every one of a set n_crops times, or 5 n_crops drawn."""
    if not isinstance(gammas, str):
        return tuple(gammas) * n_crops
    return tuple(
        float(generator(random_state, Purpose.CACHED_GAMMA, r).uniform(lowest, 1.0))
        for r in range(5 * n_crops)
    )
