"""InvertedFileBuilder: an inverted file larger than memory, from rows that pass through once.

Rows are encoded and sorted into lists some millions at a time; each such part goes to disk. At the
end the parts' lists are merged, some at a time.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_choice, check_integer, check_matrix, check_n_jobs
from delfsearch.errors import IndexFormatError
from delfsearch.index.code_model import CodeModel
from delfsearch.index.engines import POSTINGS
from delfsearch.index.inverted_file import MAX_ROWS, InvertedFile
from delfsearch.index.list_merge import BLOCK, ListWriter, Part, merge_lists
from delfsearch.index.uniform_quantizer import check_codes
from delfsearch.storage.array_writer import ArrayWriter
from delfsearch.storage.arrays import open_array, sync_folder

_STATE = "state.json"
_LISTS = "lists"


class InvertedFileBuilder:
    """Takes rows in, photo after photo, and makes an InvertedFile of them in a folder.

    model : what codes mean (CodeModel.learn). folder : absent, empty, or of a builder that was
        interrupted: then `n_photos` says how many are in, and the next ones follow.
    postings : "features", ids are row numbers; "photos", numbers of the photos that rows belong to.
    keep_exact : also keep the 8-bit descriptors. leaf_size : see InvertedFile. part_rows : rows
        held at a time, some 150 bytes each. n_jobs : threads.
    Raises FileExistsError where the folder holds a finished inverted file, IndexFormatError where
    it holds something else, ValueError where it was begun with other parameters.
    """

    def __init__(
        self,
        model: CodeModel,
        folder: str | os.PathLike[str],
        *,
        postings: str = "features",
        keep_exact: bool = True,
        leaf_size: int = 2048,
        part_rows: int = 1 << 22,
        n_jobs: int | None = None,
    ) -> None:
        check_choice(postings, "postings", POSTINGS)
        leaf_size = InvertedFile.check_leaf_size(leaf_size)
        self._grouped, self._keep_exact = postings == "photos", bool(keep_exact)
        self._leaf_size = leaf_size
        self._part_rows = check_integer(part_rows, "part_rows", minimum=1, maximum=MAX_ROWS)
        self._model, self._folder, self._n_jobs = model, Path(folder), n_jobs
        self._threads = check_n_jobs(n_jobs)
        self._waiting: list[NDArray[np.uint8]] = []
        self._waiting_counts: list[NDArray[np.int64]] = []
        self._n_waiting = 0
        self._settings = {
            "postings": postings,
            "keep_exact": self._keep_exact,
            "leaf_size": leaf_size,
            "dimension": model.dimension,
            "n_lists": model.n_lists,
            "model": model.digest(),
        }
        self._parts: list[dict[str, int]] = []  # rows and photos of each
        self._open()

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        state = self._folder / _STATE
        if not state.exists():
            if self.is_finished(self._folder):
                raise FileExistsError(
                    f"{self._folder} holds a finished inverted file; open it with open_lists, or "
                    "take another folder"
                )
            unfinished = self._folder / (_STATE + ".new")
            if any(entry != unfinished for entry in self._folder.iterdir()):
                raise IndexFormatError(f"{self._folder} is not empty and holds no builder's parts")
            self._write_state([])
            return
        try:
            found = json.loads(state.read_text())
            settings, self._parts = found["settings"], found["parts"]
        except (KeyError, TypeError, ValueError) as error:
            raise IndexFormatError(f"{state} is damaged: {error}") from error
        for name, value in self._settings.items():
            if settings.get(name) != value:
                raise ValueError(
                    f"{self._folder} was begun with {name}={settings.get(name)!r}; got {value!r}: "
                    "go on with that, or take another folder"
                )
        for entry in self._folder.iterdir():  # what a crash left
            if entry.name not in (_STATE, *map(_part_name, range(len(self._parts)))):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _write_state(self, parts: list[dict[str, int]]) -> None:
        new = self._folder / (_STATE + ".new")
        with new.open("w") as file:
            json.dump({"settings": self._settings, "parts": parts}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._folder / _STATE)
        self._parts = parts
        sync_folder(self._folder)

    @property
    def n_photos(self) -> int:
        """Photos that are safe on disk."""
        return sum(part["photos"] for part in self._parts)

    @property
    def n_rows(self) -> int:
        """Rows that are safe on disk."""
        return sum(part["rows"] for part in self._parts)

    def add(self, X: Any, counts: Any) -> None:
        """Take in rows of some photos.

        X : (n, d) float32, or uint8 made by model.quantize. counts : (p,) integers that sum to n,
        rows of each photo. Where rows were many enough to be written and could not be, they were
        taken in all the same: call `commit` again, not `add`.
        """
        if getattr(X, "dtype", None) == np.uint8:
            codes = check_codes(X, self._model.dimension)
        else:
            codes = self._model.quantize(check_matrix(X, "X", n_columns=self._model.dimension))
        per_photo = np.asarray(counts, np.int64)
        if per_photo.ndim != 1 or (per_photo < 0).any() or per_photo.sum() != len(codes):
            raise ValueError(f"counts must be (p,) integers that sum to {len(codes)} rows")
        if self.n_rows + self._n_waiting + len(codes) > MAX_ROWS:
            raise ValueError(f"an inverted file holds at most {MAX_ROWS} rows")
        self._waiting.append(codes)
        self._waiting_counts.append(per_photo)
        self._n_waiting += len(codes)
        if self._n_waiting >= self._part_rows:
            self.commit()

    def commit(self) -> None:
        """Make what was taken in durable, as one part. Where that fails, it waits for the next."""
        if not self._waiting_counts:
            return
        codes, counts = np.concatenate(self._waiting), np.concatenate(self._waiting_counts)
        if len(codes):
            part = InvertedFile.from_codes(
                codes,
                self._model,
                counts if self._grouped else None,
                keep_exact=self._keep_exact,
                leaf_size=0,
                n_jobs=self._n_jobs,
            )
            target = self._folder / _part_name(len(self._parts))
            shutil.rmtree(target, ignore_errors=True)  # of a try that failed
            writer = ArrayWriter(target)
            for name, array in part.arrays().items():
                writer.write(name, array)
            writer.finish()
        parts = [*self._parts, {"rows": len(codes), "photos": len(counts)}]
        try:
            self._write_state(parts)
        finally:
            if self._parts is parts:
                self._waiting, self._waiting_counts, self._n_waiting = [], [], 0

    def finish(self) -> InvertedFile:
        """Merge the parts; returns the inverted file, its arrays mapped from folder/lists."""
        self.commit()
        if self.n_rows == 0:
            raise ValueError("rows must be at least 1; got 0")
        parts, exact, first = [], [], 0
        for number, described in enumerate(self._parts):
            if described["rows"]:
                file = _read(
                    self._folder / _part_name(number), self._model, {"n_jobs": self._n_jobs}
                )
                parts.append(Part(file, None, first))
                exact.append(file)
            first += described["photos" if self._grouped else "rows"]
        target = self._folder / _LISTS
        shutil.rmtree(target, ignore_errors=True)
        sink = ArrayWriter(target)
        leaf_blocks = self._leaf_size // BLOCK
        n = merge_lists(
            parts, self._model, ListWriter(self._model, first, leaf_blocks, sink, self._threads)
        )
        assert n == self.n_rows
        for file in exact:
            sink.append("exact", file.arrays()["exact"])
        sink.write("shape", np.array([n, leaf_blocks, first, self._grouped], np.int64))
        sink.finish()
        # Without a state the lists are complete, and parts that are left are of no use.
        (self._folder / _STATE).unlink()
        sync_folder(self._folder)
        for number in range(len(self._parts)):
            shutil.rmtree(self._folder / _part_name(number), ignore_errors=True)
        return open_lists(self._folder, self._model, leaf_size=self._leaf_size, n_jobs=self._n_jobs)

    @staticmethod
    def is_finished(folder: str | os.PathLike[str]) -> bool:
        """Whether a folder holds what `finish` made."""
        return (Path(folder) / _LISTS).is_dir() and not (Path(folder) / _STATE).exists()


def open_lists(folder: str | os.PathLike[str], model: CodeModel, **params: Any) -> InvertedFile:
    """Open what InvertedFileBuilder.finish made, by memory map; params as InvertedFile's.

    Raises IndexFormatError where the folder holds no such thing.
    """
    if not InvertedFileBuilder.is_finished(folder):
        raise IndexFormatError(f"{folder} holds no finished inverted file")
    return _read(Path(folder) / _LISTS, model, params)


def _read(folder: Path, model: CodeModel, params: dict[str, Any]) -> InvertedFile:
    arrays = {path.stem: open_array(path) for path in folder.glob("*.npy")}
    return InvertedFile.from_arrays(arrays, model, params)


def _part_name(number: int) -> str:
    return f"part-{number:06d}"
