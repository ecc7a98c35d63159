"""The training curves: one row a step in a CSV file, and in TensorBoard where asked for.

Losses are written with all their digits, so that two curves can be compared to the last bit.
"""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.training.checkpoint import CheckpointError

FILE_NAME = "curves.csv"
COLUMNS = ("step", "epoch", "loss", "accuracy", "learning_rate", "seconds")
JOINT_COLUMNS = (*COLUMNS[:4], "attention_loss", "attention_accuracy", *COLUMNS[4:])
_WHOLE = ("step", "epoch")


class CurveWriter:
    """Appends rows to a folder's curves.

    columns : COLUMNS or JOINT_COLUMNS; step counts those that are done, from 1. done : steps that
        are kept of what is there, for a run that goes on. tensorboard : write its event files too,
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
            kept = _rows_until(self._path, done) if done else []
            part = self._path.with_name(FILE_NAME + ".part")
            with part.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([self.columns, *kept])
            os.replace(part, self._path)
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

    def close(self) -> None:
        """Close the files; add has written all that was added, or has said that it could not."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"training curves cannot be written to {self._path} ({error.strerror or error}); "
                "free some space and run the same again: it goes on from the last checkpoint"
            ) from error


def read_curves(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Return the columns of a curves file, or of the output folder that it is in, by name.

    step and epoch are int64, the others float64. Raises ValueError where it is no such file.
    """
    file = Path(path)
    file = file / FILE_NAME if file.is_dir() else file
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
    if not rows or tuple(rows[0]) not in (COLUMNS, JOINT_COLUMNS):
        raise ValueError(f"{file} must be training curves, with the columns {', '.join(COLUMNS)}")
    # A run that was killed may have left half a row.
    whole = [row for row in rows[1:] if len(row) == len(rows[0]) and row[-1]]
    columns: dict[str, NDArray[Any]] = {}
    for place, name in enumerate(rows[0]):
        dtype = np.int64 if name in _WHOLE else np.float64
        columns[name] = np.array([row[place] for row in whole]).astype(dtype)
    return columns


def _rows_until(path: Path, done: int) -> list[list[str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.reader(lines))[1:]
    return [row for row in rows if row and row[0].isdecimal() and int(row[0]) <= done]


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
