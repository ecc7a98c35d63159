"""A folder of immutable array folders and one catalog: what an index is on disk (docs/format.md).

Order of a commit: write and fsync the new array folders, commit one SQLite transaction that names
them, delete the folders that it dropped, seal. A crash before the transaction leaves folders that
the catalog does not name; they are deleted at the next commit. A store without a path keeps the
same things in RAM.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.errors import IndexFormatError
from delfsearch.storage import arrays as array_files
from delfsearch.storage.array_writer import ArrayWriter
from delfsearch.storage.catalog import FILE_NAME, Catalog, to_json
from delfsearch.storage.seal import seal_problems, write_seal

Arrays = dict[str, NDArray[Any]]

_FOLDER = re.compile(r"(segment|chunk|part|codes|attachment)-\d{6,}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_NEW_CATALOG = FILE_NAME + ".new"
_OURS = {FILE_NAME + "-journal", _NEW_CATALOG, _NEW_CATALOG + "-journal"}
BUILDING, COMPLETE = "building", "complete"


class IndexStore:
    """The catalog and the arrays of one index, in RAM or in a folder.

    Changes gather in an open transaction and in RAM until `commit`; others see the last commit.
    """

    def __init__(self, catalog: Catalog, path: Path | None) -> None:
        self.catalog = catalog
        self.path = path
        self._loaded: dict[str, Arrays] = {}  # in RAM where the store or the folder is uncommitted
        self._pending: set[str] = set()
        self._dropped: set[str] = set()

    # -- opening ------------------------------------------------------------------------------

    @classmethod
    def in_memory(cls) -> IndexStore:
        """Return an empty store in RAM."""
        store = cls(Catalog.in_memory(), None)
        store.catalog.set_value("generation", 0)
        store.catalog.set_value("state", COMPLETE)
        return store

    @classmethod
    def create(cls, path: Path) -> IndexStore:
        """Start an index under construction in a folder that is absent or empty."""
        check_target(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in (_NEW_CATALOG, _NEW_CATALOG + "-journal"):
                (path / name).unlink(missing_ok=True)
        except OSError as error:
            raise _not_writable(path, error) from error
        catalog = Catalog.create(path / _NEW_CATALOG)
        catalog.set_value("generation", 0)
        catalog.set_value("state", BUILDING)
        catalog.commit()
        catalog.close()
        os.replace(path / _NEW_CATALOG, path / FILE_NAME)
        array_files.sync_folder(path)
        array_files.sync_folder(path.absolute().parent)
        return cls(Catalog.open(path / FILE_NAME), path)

    @classmethod
    def open(cls, path: Path) -> IndexStore:
        """Open the last committed state. IndexFormatError where the folder holds none."""
        if not path.is_dir():
            raise IndexFormatError(f"{path} is not an index of delfsearch: there is no such folder")
        return cls(Catalog.open(path / FILE_NAME), path)

    @property
    def state(self) -> str:
        """`building` while the first fit runs, then `complete`."""
        return str(self.catalog.value("state"))

    def close(self) -> None:
        """Close the catalog; what is uncommitted is forgotten."""
        self.catalog.close()

    def discard(self) -> None:
        """Delete an index under construction and leave its folder empty."""
        self.catalog.close()
        if self.path is None:
            return
        for entry in self.path.iterdir():
            if _FOLDER.fullmatch(entry.name):
                shutil.rmtree(entry)
        # The catalog last: without it the rest would be taken for somebody else's files.
        (self.path / FILE_NAME).unlink()

    # -- folders of arrays --------------------------------------------------------------------

    def folders(self, kind: str) -> list[str]:
        """Return the names of the array folders of a kind, oldest first."""
        rows = self.catalog.select("folders", "kind = ?", (kind,))
        return sorted((row[0] for row in rows), key=lambda name: int(name.split("-")[1]))

    def arrays(self, folder: str) -> Arrays:
        """Return the arrays of a folder by name, memory-mapped and read-only once on disk."""
        if folder not in self._loaded:
            assert self.path is not None
            base = self.path / folder
            self._loaded[folder] = {
                name: array_files.map_array(
                    base / f"{name}.npy", dtype=dtype, shape=json.loads(shape), n_bytes=n_bytes
                )
                for _, name, dtype, shape, n_bytes, _ in self.catalog.select(
                    "arrays", "folder = ?", (folder,)
                )
            }
        return self._loaded[folder]

    def lazy_arrays(self, folder: str) -> Mapping[str, NDArray[Any]]:
        """Return the arrays of a folder, each opened when asked for and closed when let go.

        A build has thousands of chunks; a map of every array of each would exhaust the files that
        a process may have open.
        """
        if not self.is_stored(folder):
            return self._loaded[folder]
        assert self.path is not None
        rows = self.catalog.select("arrays", "folder = ?", (folder,))
        return _LazyArrays(self.path / folder, {row[1]: row[2:5] for row in rows})

    def is_stored(self, folder: str) -> bool:
        """Return whether the arrays of a folder are on disk."""
        return self.path is not None and folder not in self._pending

    def add_folder(self, kind: str, arrays: Mapping[str, NDArray[Any]]) -> str:
        """Take arrays into the open transaction; returns the name of their folder."""
        for name in arrays:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"array names must be letters, digits, '_', '-', '.'; got {name!r}"
                )
        folder = self._new_folder(kind)
        self._loaded[folder] = {name: np.asarray(array) for name, array in arrays.items()}
        self._pending.add(folder)
        return folder

    def write_folder(
        self, kind: str, write: Callable[[ArrayWriter], None], *, in_ram: bool = False
    ) -> str:
        """Take arrays into the open transaction that `write` puts into a writer, piece by piece.

        On disk they are written at once, and seen by others after the commit; in_ram : small ones
        wait for it in RAM, as those of add_folder do. Returns their folder.
        """
        folder = self._new_folder(kind)
        target = None if self.path is None or in_ram else self.path / folder
        if target is not None:
            shutil.rmtree(target, ignore_errors=True)  # of a writer that stopped
        writer = ArrayWriter(target)
        try:
            write(writer)
            arrays, described = writer.finish()
        except BaseException as error:
            writer.close()
            self.drop_folder(folder)
            if target is not None and isinstance(error, OSError):
                raise _not_writable(target, error) from error
            raise
        if target is None:
            self._loaded[folder] = arrays
            self._pending.add(folder)
        else:
            self.catalog.insert(
                "arrays",
                [
                    (folder, name, dtype, to_json(list(shape)), n_bytes, blake2b)
                    for name, dtype, shape, n_bytes, blake2b in described
                ],
            )
        return folder

    def _new_folder(self, kind: str) -> str:
        number = self.catalog.value(f"next_{kind}", 1)
        self.catalog.set_value(f"next_{kind}", number + 1)
        folder = f"{kind}-{number:06d}"
        self.catalog.insert("folders", [(folder, kind)])
        return folder

    def drop_folder(self, folder: str) -> None:
        """Drop a folder of arrays; its files go after the commit."""
        self.catalog.delete("folders", "name = ?", (folder,))
        self.catalog.delete("arrays", "folder = ?", (folder,))
        self.catalog.delete("deletions", "folder = ?", (folder,))
        self._loaded.pop(folder, None)
        self._pending.discard(folder)
        self._dropped.add(folder)

    # -- committing ---------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """Whether there is anything to commit."""
        return self.path is not None and self.catalog.writing

    def commit(self) -> None:
        """Make all changes durable and visible; after an error they wait to be tried again."""
        if self.path is None or not self.dirty:
            return
        self._write_pending()
        self.catalog.set_value("generation", self.catalog.value("generation") + 1)
        self.catalog.commit()
        self._after_commit()

    def finish(self) -> None:
        """Turn an index under construction into a complete one, its catalog written afresh.

        The fresh file depends on the rows only, not on how many commits made them.
        """
        self.catalog.set_value("state", COMPLETE)
        self.catalog.set_value("generation", 1)
        self.catalog.delete("meta", "name IN ('next_chunk', 'next_part')")
        if self.path is None:
            return
        self._write_pending()
        new = self.path / _NEW_CATALOG
        new.unlink(missing_ok=True)
        fresh = Catalog.create(new)
        self.catalog.copy_to(fresh)
        fresh.commit()
        fresh.close()
        write_seal(self.path, 1, catalog=new)
        self.catalog.rollback()
        self.catalog.close()
        os.replace(new, self.path / FILE_NAME)
        array_files.sync_folder(self.path)
        self.catalog = Catalog.open(self.path / FILE_NAME)
        self._after_commit()

    def copy_to(self, path: Path) -> None:
        """Write everything, uncommitted changes included, to a new folder and live there."""
        check_target(path)
        temporary = path.absolute().parent / f".{path.name}.partial-{os.getpid()}"
        try:
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
        except OSError as error:
            raise _not_writable(path, error) from error
        try:
            fresh = Catalog.create(temporary / FILE_NAME)
            self.catalog.copy_to(fresh)
            for (folder,) in [(row[0],) for row in self.catalog.select("folders")]:
                self._copy_folder(folder, temporary, fresh)
            fresh.set_value("generation", 1)
            fresh.commit()
            fresh.close()
            write_seal(temporary, 1)
            array_files.sync_folder(temporary)
            if path.exists():
                path.rmdir()
            os.rename(temporary, path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise _not_writable(path, error) from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        array_files.sync_folder(path.absolute().parent)
        self.catalog.rollback()
        self.catalog.close()
        self.path, self.catalog = path, Catalog.open(path / FILE_NAME)
        self._loaded, self._pending, self._dropped = {}, set(), set()

    def _copy_folder(self, folder: str, target: Path, catalog: Catalog) -> None:
        if folder in self._pending:
            catalog.insert("arrays", self._write_folder(target, folder))
            return
        assert self.path is not None
        (target / folder).mkdir()
        for _, name, _, _, _, blake2b in self.catalog.select("arrays", "folder = ?", (folder,)):
            source = self.path / folder / f"{name}.npy"
            copy = target / folder / f"{name}.npy"
            shutil.copyfile(source, copy)
            if array_files.hash_file(copy) != blake2b:
                raise IndexFormatError(f"{source} is damaged: it does not fit its checksum")
            with copy.open("rb+") as file:
                os.fsync(file.fileno())
        array_files.sync_folder(target / folder)

    def _write_pending(self) -> None:
        assert self.path is not None
        self.catalog.begin()
        self._delete_orphans()
        try:
            for folder in sorted(self._pending):
                rows = self._write_folder(self.path, folder)
                self.catalog.delete("arrays", "folder = ?", (folder,))
                self.catalog.insert("arrays", rows)
            array_files.sync_folder(self.path)
        except OSError as error:
            raise _not_writable(self.path, error) from error

    def _write_folder(self, base: Path, folder: str) -> list[tuple[Any, ...]]:
        target = base / folder
        target.mkdir()
        rows = []
        for name, array in sorted(self._loaded[folder].items()):
            n_bytes, blake2b = array_files.write_array(target / f"{name}.npy", array)
            dtype = array.dtype.newbyteorder("<").str
            rows.append((folder, name, dtype, to_json(list(array.shape)), n_bytes, blake2b))
        array_files.sync_folder(target)
        return rows

    def _after_commit(self) -> None:
        assert self.path is not None
        for folder in self._dropped:
            # Somebody may still have it mapped (Windows refuses then): the next commit tries again.
            shutil.rmtree(self.path / folder, ignore_errors=True)
        for folder in self._pending:
            self._loaded.pop(folder, None)  # from now on by memory map
        self._pending, self._dropped = set(), set()
        if self.state == COMPLETE:
            write_seal(self.path, self.catalog.value("generation"))

    def _delete_orphans(self) -> None:
        """Delete array folders that no commit names: what a crash left, or a failed commit."""
        assert self.path is not None
        named = {row[0] for row in self.catalog.select("folders")}
        keep = (named - self._pending) | self._dropped
        for entry in self.path.iterdir():
            if _FOLDER.fullmatch(entry.name) and entry.name not in keep:
                shutil.rmtree(entry, ignore_errors=True)

    # -- checking -----------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Return what is damaged on disk, file by file; empty where every byte is as written."""
        if self.path is None:
            return []
        found = self.catalog.problems()
        try:
            generation = int(self.catalog.value("generation", 0))
            if self.state == COMPLETE:
                found += seal_problems(self.path, generation)
            rows = self.catalog.select("arrays")
        except (IndexFormatError, ValueError) as error:
            return [*found, str(error)]
        for folder, name, _, _, n_bytes, blake2b in rows:
            file = self.path / folder / f"{name}.npy"
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_size != n_bytes:
                    found.append(f"{folder}/{name}.npy: has another size than when it was written")
                elif array_files.hash_file(file) != blake2b:
                    found.append(f"{folder}/{name}.npy: does not fit its checksum")
                continue
            found.append(f"{folder}/{name}.npy: is missing")
        return found


class _LazyArrays(Mapping[str, NDArray[Any]]):
    def __init__(self, base: Path, described: dict[str, tuple[Any, ...]]) -> None:
        self._base = base
        self._described = described

    def __getitem__(self, name: str) -> NDArray[Any]:
        dtype, shape, n_bytes = self._described[name]
        return array_files.map_array(
            self._base / f"{name}.npy", dtype=dtype, shape=json.loads(shape), n_bytes=n_bytes
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)


def check_target(path: Path) -> None:
    """Refuse to write an index over anything but an absent or empty folder."""
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file; give a folder that does not exist yet")
    others = [p.name for p in path.iterdir() if p.name not in _OURS]
    if FILE_NAME in others:
        raise FileExistsError(f"{path} already holds an index; give another folder or delete it")
    if others:
        raise FileExistsError(
            f"{path} is not empty (it holds {others[0]!r}) and no index; give a new folder"
        )


def _not_writable(path: Path, error: OSError) -> OSError:
    if isinstance(error, PermissionError) or error.errno == 30:  # EROFS
        return PermissionError(f"{path} cannot be written ({error.strerror}); choose another place")
    return OSError(error.errno, f"{path} cannot be written: {error.strerror or error}")
