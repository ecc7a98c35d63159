"""What the trainers share: photos in, a job run, weights out."""

from __future__ import annotations

import dataclasses
import logging
import os
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from delfsearch._validation import check_integer, check_n_jobs
from delfsearch.errors import DatasetError
from delfsearch.extraction.weights import Weights, load_weights
from delfsearch.training import loop
from delfsearch.training.batches import Plan
from delfsearch.training.checkpoint import make_folder
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.loop import Job, RunOptions, resolve_amp
from delfsearch.training.optimization import Optimization
from delfsearch.training.photo_store import PhotoStore
from delfsearch.training.processes import Processes, make_processes
from delfsearch.training.results import (
    check_licence,
    conclude,
    left_out_text,
    output_folder,
    refuse_other_run,
    save_learned,
    torch_threads,
)
from delfsearch.training.views import Views

logger = logging.getLogger("delfsearch")

PathLike = str | os.PathLike[str]
ProgressCallback = Callable[[str, int, int], None]


class Setting(NamedTuple):
    """All that a trainer builds its job from."""

    photos: LabelledPhotos
    store: PhotoStore
    weights: Weights
    plan: Plan
    processes: Processes
    precision: torch.dtype | None
    random_state: int
    n_threads: int
    settings: dict[str, Any]
    folder: Path | None
    progress: ProgressCallback | None


class Trainer(BaseEstimator):  # type: ignore[misc]
    """Base of the trainers. A subclass stores its arguments and says what to build.

    Learned: weights_, a Weights; classes_, the names of the classes; curves_, the training curves
    by column (of this run, or of all if there is an output folder); left_out_, (path, reason) of
    the photos that could not be read; n_steps_, steps done in all.
    """

    _mode = ""
    _min_classes = 2
    # Set by the constructors of all subclasses.
    weights: PathLike
    output: PathLike | None
    views: Any
    optimization: Optimization | None
    precision: str
    random_state: int
    run: RunOptions | None

    def fit(
        self,
        photos: LabelledPhotos,
        y: Any = None,
        *,
        licence: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> Any:
        """Train; go on where an earlier run with the same output folder stopped; return self.

        photos : what to learn from, at least two photos of each class that is not varied.
        licence : of the photos, in words, for the weights' own: what these started from and its
            licence, then this; "not stated" if omitted.
        progress : called as progress(what, done, total), what being "photos", "features", "steps".
        Raises DatasetError for classes with too few photos; CheckpointError where output holds a
        run of other settings or photos, or there is no space; WeightsError.
        """
        if not isinstance(photos, LabelledPhotos):
            raise TypeError(
                "photos must be LabelledPhotos, as read_photos returns; got "
                f"{type(photos).__name__}"
            )
        check_licence(licence)
        views = self.default_views() if self.views is None else self.views
        optimization = self.optimization or self.default_optimization()
        options = self.run or RunOptions()
        for part in (views, optimization, options):
            part.check()
        self._check()
        seed = check_integer(self.random_state, "random_state", minimum=0, maximum=2**63 - 1)
        photos = self._with_enough(photos)
        processes = make_processes(options.accelerate, options.device)
        precision = resolve_amp(self.precision, processes.device)
        folder = output_folder(self.output, options)
        weights = load_weights(self.weights)
        n_threads = check_n_jobs(options.n_jobs) or os.cpu_count() or 1
        plan = Plan(
            photos.labels,
            batch_size=optimization.batch_size,
            sampling=optimization.sampling,
            random_state=seed,
            n_parts=processes.count,
            part=processes.index,
        )
        settings = self._settings(photos, weights, precision, views, optimization)
        if folder is not None:  # before it is touched
            refuse_other_run(folder, settings)
            make_folder(folder)
        with torch_threads(n_threads):
            readers = min(n_threads, 8)
            store = self._store(photos, views)
            place = None if folder is None else folder / "photos"
            processes.main_first(
                lambda: store.keep(
                    options.keep_photos,
                    place,
                    n_threads=readers,
                    n_processes=processes.count_here,
                    progress=progress,
                )
            )
            self._check_readable(photos, store)
            known = len(store.unreadable)
            setting = Setting(
                photos,
                store,
                weights,
                plan,
                processes,
                precision,
                seed,
                readers,
                settings,
                folder,
                progress,
            )
            job, learned = self._build(setting, views, optimization)
            job = dataclasses.replace(job, unreadable=store.unreadable)
            ran = loop.run(job, folder, processes, options, n_threads=readers, progress=progress)
        self.classes_ = photos.classes
        self.n_steps_ = optimization.epochs * plan.steps_per_epoch
        gone = dict(processes.joined([(row, str(e)) for row, e in store.unreadable.items()]))
        self.left_out_ = [(photos.paths[row], gone[row]) for row in sorted(gone)]
        conclude(self, learned(), job, ran, photos, folder, processes, licence=licence)
        if len(self.left_out_) > known:  # some more were found on the way
            logger.warning(left_out_text(self.left_out_, len(photos)))
        return self

    def save(self, path: PathLike, *, half: bool = False) -> Path:
        """Write the weights that fit learned; DelfExtractor(weights=path) takes them.

        path : ends in .safetensors. half : in half precision, half the size.
        Raises NotFittedError before fit.
        """
        return save_learned(self, path, half)

    # -- what a subclass says -----------------------------------------------------------------

    @classmethod
    def default_views(cls) -> Any:
        """Return what views=None stands for."""
        return Views()

    @classmethod
    def default_optimization(cls) -> Optimization:
        """Return what optimization=None stands for."""
        return Optimization()

    def _check(self) -> None:
        """Refuse arguments of the subclass's own that make no sense."""

    def _with_enough(self, photos: LabelledPhotos) -> LabelledPhotos:
        """Refuse photos that do not suffice."""
        return photos.with_enough()

    def _store(self, photos: LabelledPhotos, views: Any) -> PhotoStore:
        """Return where the pixels of the photos come from."""
        files = [photos.file(row) for row in range(len(photos))]
        return PhotoStore(files, [views.side(bool(varied)) for varied in photos.varied])

    @abstractmethod
    def _own_settings(self) -> dict[str, Any]:
        """Return the arguments of the subclass's own that the result depends on."""

    @abstractmethod
    def _build(
        self, setting: Setting, views: Any, optimization: Optimization
    ) -> tuple[Job, Callable[[], Weights]]:
        """Return the job, and a function that returns the weights after it."""

    # -- inside -------------------------------------------------------------------------------

    def _check_readable(self, photos: LabelledPhotos, store: PhotoStore) -> None:
        """Say which photos are known to be unreadable; refuse a set that has too few others.

        Where photos are not kept, so many are read now as it takes to know.
        """
        n_readable, classes = 0, set()
        for row in _class_by_class(photos.labels).tolist():
            if store.can_read(row):
                n_readable += 1
                classes.add(int(photos.labels[row]))
            if enough := n_readable > 1 and len(classes) >= self._min_classes:
                break
        gone = sorted(store.unreadable)
        if not gone:
            return
        reasons = [(photos.paths[row], str(store.unreadable[row])) for row in gone]
        logger.warning(left_out_text(reasons, len(photos)))
        if not enough:
            of = "" if self._min_classes < 2 else f" of at least {self._min_classes} classes"
            raise DatasetError(
                f"training needs at least two readable photos{of}; of {len(photos)} photos "
                f"{len(gone)} cannot be read, which leaves {n_readable} of {len(classes)} "
                f"classes: {reasons[0][1]}"
            )

    def _settings(
        self,
        photos: LabelledPhotos,
        weights: Weights,
        precision: torch.dtype | None,
        views: Any,
        optimization: Optimization,
    ) -> dict[str, Any]:
        return {
            "mode": self._mode,
            "weights_sha256": weights.sha256,
            "photos": {
                "n_photos": len(photos),
                "n_classes": len(photos.classes),
                "fingerprint": photos.fingerprint(),
            },
            "precision": "fp32" if precision is None else str(precision).removeprefix("torch."),
            "random_state": int(self.random_state),
            "views": dataclasses.asdict(views),
            "optimization": dataclasses.asdict(optimization),
            **self._own_settings(),
        }


def _class_by_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows so that the first photo of every class comes before all second ones."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[np.argsort(place, kind="stable")]
