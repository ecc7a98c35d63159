"""The training curves: one row a step in a CSV file, and in TensorBoard where asked for.

Losses are written with all their digits, so that two curves can be compared to the last bit.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.storage.arrays import sync_folder
from delfsearch.training.checkpoint import written

logger = logging.getLogger("delfsearch")

FILE_NAME = "curves.csv"
COLUMNS = ("step", "epoch", "loss", "accuracy", "learning_rate", "seconds")
JOINT_COLUMNS = (*COLUMNS[:4], "attention_loss", "attention_accuracy", *COLUMNS[4:])
_WHOLE = ("step", "epoch")


class CurveWriter:
    """Appends rows to a folder's curves.

    columns : COLUMNS or JOINT_COLUMNS; step counts those that are done, from 1. done : steps that
        are kept of what is there, for a run that goes on; where some of them are missing, that is
        logged as a warning, and the curves have a gap. tensorboard : write its event files too,
        in the subfolder tensorboard. Raises ImportError that names the extra where it is absent;
        like add, CheckpointError where nothing can be written.
    """

    def __init__(
        self, folder: Path, columns: Sequence[str], *, done: int, tensorboard: bool = False
    ) -> None:
        self.columns = tuple(columns)
        self._path = folder / FILE_NAME
        self._events: Any = None
        with self._written():
            kept = self._rows_until(done) if done else []
            part = self._path.with_name(FILE_NAME + ".part")
            with part.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([self.columns, *kept])
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self._path)
            sync_folder(folder)
            self._file = self._path.open("a", newline="", encoding="utf-8")
            if tensorboard:
                self._events = _event_writer(folder / "tensorboard", done)

    def add(self, rows: Sequence[Sequence[float]]) -> None:
        """Append rows, and hand them to the system."""
        with self._written():
            csv.writer(self._file).writerows([repr(value) for value in row] for row in rows)
            self._file.flush()
            if self._events is not None:
                for row in rows:
                    values = dict(zip(self.columns, row))
                    for name, value in values.items():
                        if name not in _WHOLE:
                            self._events.add_scalar(name, value, int(values["step"]))
                self._events.flush()

    def sync(self) -> None:
        """Make what was added durable: it outlives the machine, as a checkpoint does."""
        with self._written():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files; add has written all that was added, or has said that it could not."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()

    def _rows_until(self, done: int) -> list[list[str]]:
        kept: list[list[str]] = []
        last = 0
        for row in _whole_lines(self._path) if self._path.is_file() else []:
            step = _step(row, len(self.columns))
            if step is not None and last < step <= done:
                kept.append(row)
                last = step
        if len(kept) < done:
            logger.warning(
                "%s lacks %d of the %d steps that the checkpoint is of: the curves have a gap; "
                "the training itself goes on as if they were there",
                self._path,
                done - len(kept),
                done,
            )
        return kept

    def _written(self) -> contextlib.AbstractContextManager[None]:
        return written("training curves", self._path)


def read_curves(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Return the columns of a curves file, or of the output folder that it is in, by name.

    step and epoch are int64, the others float64. Raises ValueError where it is no such file.
    """
    file = Path(path)
    file = file / FILE_NAME if file.is_dir() else file
    header, *rows = _whole_lines(file) or [[]]
    if tuple(header) not in (COLUMNS, JOINT_COLUMNS):
        raise ValueError(f"{file} must be training curves, with the columns {', '.join(COLUMNS)}")
    whole = [row for row in rows if _step(row, len(header)) is not None]
    columns: dict[str, NDArray[Any]] = {}
    for place, name in enumerate(header):
        dtype = np.int64 if name in _WHOLE else np.float64
        columns[name] = np.array([row[place] for row in whole]).astype(dtype)
    return columns


def _whole_lines(path: Path) -> list[list[str]]:
    """Return the fields of each line of a file, without a last one that a killed run left torn."""
    lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    return [line.rstrip("\r").split(",") for line in lines[:-1]]


def _step(row: list[str], n_columns: int) -> int | None:
    """Return the step of a row of numbers, None where it is no such row."""
    try:
        finite = all(math.isfinite(float(value)) for value in row)
        return int(row[0]) if finite and len(row) == n_columns else None
    except ValueError:
        return None


def _event_writer(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard=True needs TensorBoard, which is not installed: "
            "pip install delfsearch[tensorboard]"
        ) from error
    # Rows of steps that are done again replace the earlier ones.
    return SummaryWriter(os.fspath(folder), purge_step=done + 1)
