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
from delfsearch.training.checkpoint import CheckpointError, latest_path, refuse_differences
from delfsearch.training.curves import FILE_NAME, read_curves
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.loop import Job
from delfsearch.training.processes import Processes

WEIGHTS_NAME, LEFT_OUT_NAME = "weights.safetensors", "left_out.csv"
_SHOWN = 3


def conclude(
    trainer: Any,
    learned: Weights,
    job: Job,
    rows: list[tuple[float, ...]],
    photos: LabelledPhotos,
    folder: Path | None,
    processes: Processes,
) -> None:
    """Set a trainer's weights_ and curves_, and write them into its folder.

    learned : the weights. job, rows : what loop.run ran and returned. photos : learned from. The
    trainer has its n_steps_ and left_out_.
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
        recipe={"delfsearch": __version__, "before": learned.recipe, **job.settings},
    )
    trainer.curves_ = _as_curves(job.columns, rows)
    if folder is None or not processes.is_main:
        return
    if (folder / FILE_NAME).is_file():
        trainer.curves_ = read_curves(folder)
    try:
        trainer.save(folder / WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"weights cannot be written to {folder / WEIGHTS_NAME} ({error}); the last "
            "checkpoint is there: free some space and run the same again"
        ) from error
    _write_left_out(folder / LEFT_OUT_NAME, trainer.left_out_)


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
    if not left_out:
        path.unlink(missing_ok=True)
        return
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([("path", "reason"), *left_out])


def refuse_other_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a run of other settings before hours go into features for it."""
    place = latest_path(folder)
    if place is None:
        return
    try:
        held = json.loads((place / "state.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError):  # the loop says what is damaged
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
