"""What the trainers share: photos in, a job run, weights out."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from delfsearch import __version__
from delfsearch._validation import check_integer, check_n_jobs
from delfsearch.errors import DatasetError
from delfsearch.extraction.weights import Weights, load_weights, save_weights
from delfsearch.extraction.weights_io.safetensors_files import digest_arrays
from delfsearch.training import loop
from delfsearch.training.batches import Plan
from delfsearch.training.checkpoint import CheckpointError, latest_path, refuse_differences
from delfsearch.training.curves import FILE_NAME, read_curves
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.loop import Job, RunOptions, resolve_amp
from delfsearch.training.optimization import Optimization
from delfsearch.training.photo_store import PhotoStore
from delfsearch.training.processes import Processes, make_processes
from delfsearch.training.views import Views

logger = logging.getLogger("delfsearch")

PathLike = str | os.PathLike[str]
ProgressCallback = Callable[[str, int, int], None]
WEIGHTS_NAME, LEFT_OUT_NAME = "weights.safetensors", "left_out.csv"
_SHOWN = 3


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
    # Set by the constructors of all subclasses.
    weights: PathLike
    output: PathLike | None
    views: Any
    optimization: Optimization | None
    precision: str
    random_state: int
    run: RunOptions | None

    def fit(
        self, photos: LabelledPhotos, y: Any = None, *, progress: ProgressCallback | None = None
    ) -> Any:
        """Train; go on where an earlier run with the same output folder stopped; return self.

        photos : what to learn from, at least two photos of each class that is not varied.
        progress : called as progress(what, done, total), what being "photos", "features", "steps".
        Raises DatasetError for classes with too few photos; CheckpointError where output holds a
        run of other settings or photos, or there is no space; WeightsError.
        """
        if not isinstance(photos, LabelledPhotos):
            raise TypeError(
                "photos must be LabelledPhotos, as read_photos returns; got "
                f"{type(photos).__name__}"
            )
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
        folder = None if self.output is None else Path(self.output)
        weights = load_weights(self.weights)
        n_threads = check_n_jobs(options.n_jobs) or os.cpu_count() or 1
        with _torch_threads(n_threads):
            readers = min(n_threads, 8)
            store = self._store(photos, views)
            place = None if folder is None else folder / "photos"
            processes.main_first(
                lambda: store.keep(options.keep_photos, place, n_threads=readers, progress=progress)
            )
            _check_readable(photos, store)
            known = len(store.unreadable)
            plan = Plan(
                photos.labels,
                batch_size=optimization.batch_size,
                sampling=optimization.sampling,
                random_state=seed,
                n_parts=processes.count,
                part=processes.index,
            )
            settings = self._settings(photos, weights, precision, views, optimization)
            if folder is not None:
                _refuse_other_run(folder, settings)
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
            rows = loop.run(job, folder, processes, options, n_threads=readers, progress=progress)
        self.classes_ = photos.classes
        self.n_steps_ = optimization.epochs * plan.steps_per_epoch
        self.left_out_ = [
            (photos.paths[row], str(error)) for row, error in sorted(store.unreadable.items())
        ]
        self.weights_ = self._described(learned(), photos, settings)
        self.curves_ = _as_curves(job.columns, rows)
        if folder is not None and processes.is_main:
            if (folder / FILE_NAME).is_file():
                self.curves_ = read_curves(folder)
            try:
                self.save(folder / WEIGHTS_NAME)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"weights cannot be written to {folder / WEIGHTS_NAME} ({error}); the last "
                    "checkpoint is there: free some space and run the same again"
                ) from error
            _write_left_out(folder / LEFT_OUT_NAME, self.left_out_)
        if len(self.left_out_) > known:  # some more were found on the way
            logger.warning(_left_out_text(self.left_out_, len(photos)))
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

    def _described(
        self, learned: Weights, photos: LabelledPhotos, settings: Mapping[str, Any]
    ) -> Weights:
        return dataclasses.replace(
            learned,
            name=f"{self._mode} trained on {photos.source}",
            sha256=digest_arrays(learned.to_arrays()),
            provenance=(
                f"{learned.provenance}; then {self._mode} trained in {self.n_steps_} steps on "
                f"{len(photos)} photos of {len(photos.classes)} classes ({photos.source})"
            ),
            recipe={"delfsearch": __version__, "before": learned.recipe, **settings},
        )


def save_learned(trainer: Any, path: PathLike, half: bool) -> Path:
    """Write the weights_ of a fitted trainer."""
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors; got {os.fspath(path)!r}")
    learned: Weights | None = getattr(trainer, "weights_", None)
    if learned is None:
        raise NotFittedError(f"{type(trainer).__name__} has learned nothing yet: call fit first")
    dtype = "float16" if half else "float32"
    save_weights(target, learned.to_arrays(), learned.to_meta(), dtype=dtype)
    return target


def _check_readable(photos: LabelledPhotos, store: PhotoStore) -> None:
    """Say which photos are known to be unreadable; refuse a set that has too few others."""
    gone = sorted(store.unreadable)
    if not gone:
        return
    reasons = [(photos.paths[row], str(store.unreadable[row])) for row in gone]
    logger.warning(_left_out_text(reasons, len(photos)))
    n_classes = len(np.unique(np.delete(photos.labels, gone)))
    if n_classes < 2:
        raise DatasetError(
            f"training needs readable photos of at least two classes; of {len(photos)} photos "
            f"{len(gone)} cannot be read, which leaves {n_classes} classes: {reasons[0][1]}"
        )


def _left_out_text(left_out: list[tuple[str, str]], n_photos: int) -> str:
    more = ", ..." if len(left_out) > _SHOWN else ""
    reasons = "; ".join(reason for _, reason in left_out[:_SHOWN])
    return f"left out {len(left_out)} of {n_photos} photos that cannot be read: {reasons}{more}"


def _write_left_out(path: Path, left_out: list[tuple[str, str]]) -> None:
    if not left_out:
        path.unlink(missing_ok=True)
        return
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([("path", "reason"), *left_out])


def _refuse_other_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a run of other settings before hours go into features for it."""
    place = latest_path(folder)
    if place is None:
        return
    with contextlib.suppress(OSError, ValueError, KeyError):  # the loop says what is damaged
        held = json.loads((place / "state.json").read_text(encoding="utf-8"))["settings"]
        refuse_differences(held, settings, str(folder))


def _as_curves(columns: tuple[str, ...], rows: list[tuple[float, ...]]) -> dict[str, NDArray[Any]]:
    table = np.array(rows, np.float64).reshape(len(rows), len(columns))
    return {
        name: table[:, i].astype(np.int64) if name in ("step", "epoch") else table[:, i]
        for i, name in enumerate(columns)
    }


@contextlib.contextmanager
def _torch_threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
