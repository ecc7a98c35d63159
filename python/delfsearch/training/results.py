"""What comes after a run: weights that say what they are, curves, what was left out."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from sklearn.exceptions import NotFittedError

from delfsearch import __version__
from delfsearch.extraction.weights import Weights, save_weights
from delfsearch.extraction.weights_io.safetensors_files import digest_arrays
from delfsearch.training.checkpoint import (
    CheckpointError,
    latest_path,
    refuse_differences,
    remedy,
)
from delfsearch.training.curves import FILE_NAME, read_curves
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.loop import Job, Ran, RunOptions
from delfsearch.training.processes import Processes

WEIGHTS_NAME, LEFT_OUT_NAME = "weights.safetensors", "left_out.csv"
# What an attention score means, by what taught it. Any other training ends what it meant before.
SCORE_MEANINGS = {
    "inlier attention": "-log(1 - p), p the estimated share of a photo's verified pairs in which "
    "the cell ends up as an inlier",
}
_SHOWN = 3
_STARTED = "started from "


def conclude(
    trainer: Any,
    learned: Weights,
    job: Job,
    ran: Ran,
    photos: LabelledPhotos,
    folder: Path | None,
    processes: Processes,
    *,
    licence: str | None = None,
) -> None:
    """Set a trainer's weights_ and curves_, and write them into its folder.

    learned : the weights. job, ran : what loop.run ran and returned. photos : learned from.
    licence : of the photos. The trainer has its n_steps_ and left_out_. No process returns before
    the files are there.
    """
    mode = job.settings["mode"]
    trainer.weights_ = dataclasses.replace(
        learned,
        name=f"{mode} trained on {photos.source}",
        sha256=digest_arrays(learned.to_arrays()),
        provenance=(
            f"{learned.provenance}; then {mode} trained in {trainer.n_steps_} steps on "
            f"{len(photos)} photos of {len(photos.classes)} classes ({photos.source})"
        ),
        licence=trained_licence(learned, licence),
        score_meaning=SCORE_MEANINGS.get(mode, ""),
        recipe={
            "delfsearch": __version__,
            "before": learned.recipe,
            **job.settings,
            "made_with": ran.made_with,
        },
    )
    trainer.curves_ = _as_curves(job.columns, ran.rows)
    if folder is None:
        return
    try:
        if processes.is_main:
            _write(trainer, folder, ran.is_new)
    finally:
        processes.wait()
    if (folder / FILE_NAME).is_file():
        trainer.curves_ = read_curves(folder)


def _write(trainer: Any, folder: Path, is_new: bool) -> None:
    path = folder / WEIGHTS_NAME
    try:
        for stale in folder.glob(f"{WEIGHTS_NAME}.*.part"):  # of a writer that was killed
            stale.unlink()
        trainer.save(path)
        path = folder / LEFT_OUT_NAME
        if trainer.left_out_:
            _write_left_out(path, trainer.left_out_)
        elif is_new:  # it is of another run
            path.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}); the last checkpoint is there: {remedy(error)}"
        ) from error


def check_licence(licence: str | None) -> None:
    """Refuse what cannot stand as the photos' licence, before the work."""
    if licence is not None and not (isinstance(licence, str) and licence.strip()):
        raise ValueError(
            f"licence must say in words that of the photos, or be None; got {licence!r}"
        )


def trained_licence(before: Weights, photos: str | None) -> str:
    """Name the licences of what the weights started from and of the photos."""
    begun = before.licence
    if not begun.startswith(_STARTED):
        begun = f"{_STARTED}{Path(before.name).name}: {begun}"
    trained = f"; photos trained on: {'not stated' if photos is None else photos.strip()}"
    return begun if begun.endswith(trained) else begun + trained


def save_learned(trainer: Any, path: str | os.PathLike[str], half: bool) -> Path:
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


def left_out_text(left_out: Sequence[tuple[str, str]], n_photos: int) -> str:
    """Say how many photos were left out, and why the first of them were."""
    more = ", ..." if len(left_out) > _SHOWN else ""
    reasons = "; ".join(reason for _, reason in left_out[:_SHOWN])
    return f"left out {len(left_out)} of {n_photos} photos that cannot be read: {reasons}{more}"


def _write_left_out(path: Path, left_out: Sequence[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([("path", "reason"), *left_out])


def output_folder(output: str | os.PathLike[str] | None, options: RunOptions) -> Path | None:
    """Return the folder of a run, None if it keeps nothing; refuse options that need one."""
    if output is None and options.tensorboard:
        raise ValueError("tensorboard=True needs output, a folder to write its files to")
    return None if output is None else Path(output)


def refuse_other_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a run of other settings before hours go into features for it."""
    place = latest_path(folder)
    if place is None:
        return
    try:
        held = json.loads((place / "state.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):  # the loop says what is damaged
        return
    refuse_differences(held, settings, str(folder))


def _as_curves(columns: tuple[str, ...], rows: list[tuple[float, ...]]) -> dict[str, NDArray[Any]]:
    table = np.array(rows, np.float64).reshape(len(rows), len(columns))
    return {
        name: table[:, i].astype(np.int64) if name in ("step", "epoch") else table[:, i]
        for i, name in enumerate(columns)
    }


@contextlib.contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Have torch compute on n threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
