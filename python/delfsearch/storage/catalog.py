"""The SQLite file of an index: which photos, which arrays, which parameters.

Every table has a checksum that is kept with each change: the sum, modulo 2**128, of the BLAKE2b-128
of every row. A sum needs no order and can be taken back, so adding one photo to a million costs one
hash. What is uncommitted is seen by the connection that wrote it and by nobody else.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from delfsearch.errors import IndexFormatError

APPLICATION_ID = 0x44454C46  # "DELF", at byte 68 of the file
FORMAT_VERSION = 1
FILE_NAME = "catalog.sqlite"
_PAGE_ROWS = 4096
_SYNCHRONOUS = "EXTRA"  # every commit is on the disk, the folder's entry too, before it returns
_BUSY_SECONDS = 5.0  # that a writer waits for another one, or for readers to finish a row

# Columns in the order of their checksum, primary key first.
TABLES: dict[str, tuple[str, ...]] = {
    "meta": ("name", "value"),
    "images": (
        "id",
        "path",
        "content_hash",
        "width",
        "height",
        "n_features",
        "label",
        "latitude",
        "longitude",
        "metadata",
    ),
    "folders": ("name", "kind"),
    "arrays": ("folder", "name", "dtype", "shape", "n_bytes", "blake2b"),
    "deletions": ("folder", "image_id"),
    "not_indexed": ("path", "reason", "image_id", "content_hash"),
}
_KEYS = {
    "meta": ("name",),
    "images": ("id",),
    "folders": ("name",),
    "arrays": ("folder", "name"),
    "deletions": ("folder", "image_id"),
    "not_indexed": ("path",),
}
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE images (id INTEGER PRIMARY KEY, path TEXT, content_hash TEXT,
    width INTEGER NOT NULL, height INTEGER NOT NULL, n_features INTEGER NOT NULL, label TEXT,
    latitude REAL, longitude REAL, metadata TEXT NOT NULL);
CREATE INDEX images_path ON images (path);
CREATE INDEX images_content_hash ON images (content_hash);
CREATE INDEX images_label ON images (label);
CREATE INDEX images_position ON images (latitude, longitude);
CREATE TABLE folders (name TEXT PRIMARY KEY, kind TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE arrays (folder TEXT, name TEXT, dtype TEXT NOT NULL, shape TEXT NOT NULL,
    n_bytes INTEGER NOT NULL, blake2b TEXT NOT NULL, PRIMARY KEY (folder, name)) WITHOUT ROWID;
CREATE TABLE deletions (folder TEXT, image_id INTEGER, PRIMARY KEY (folder, image_id))
    WITHOUT ROWID;
CREATE TABLE not_indexed (path TEXT PRIMARY KEY, reason TEXT NOT NULL, image_id INTEGER,
    content_hash TEXT) WITHOUT ROWID;
CREATE INDEX not_indexed_image ON not_indexed (image_id);
CREATE INDEX not_indexed_content_hash ON not_indexed (content_hash);
CREATE TABLE checksums (name TEXT PRIMARY KEY, n_rows INTEGER NOT NULL, sum TEXT NOT NULL)
    WITHOUT ROWID;
"""


def to_json(value: Any) -> str:
    """Return the one JSON text of value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _row_sum(table: str, row: Sequence[Any]) -> int:
    text = json.dumps([table, *row], separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


class Catalog:
    """One connection to the tables of an index, in memory or in a file.

    Safe to share between threads (a lock serialises them). Opened read-only; `begin` turns it into
    the one writer, `commit` or `rollback` ends that.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path | None) -> None:
        self._connection = connection
        self.path = path
        self._lock = threading.RLock()
        self._sums: dict[str, tuple[int, int]] = {}
        self._generation: Any = None  # of the last commit seen here
        self.writing = False
        self.revision = 0  # rises with every change of the image table made here, or taken back

    # -- opening and closing ------------------------------------------------------------------

    @classmethod
    def in_memory(cls) -> Catalog:
        """Return an empty catalog that lives in RAM and is always writable."""
        catalog = cls(_connect(None), None)
        catalog._create_tables()
        return catalog

    @classmethod
    def create(cls, path: Path) -> Catalog:
        """Create the file with empty tables and leave its first transaction open."""
        catalog = cls(_connect(path), path)
        catalog._create_tables()
        return catalog

    @classmethod
    def open(cls, path: Path) -> Catalog:
        """Open an existing file read-only; IndexFormatError where it is not one of ours."""
        check_header(path)
        journal = path.with_name(path.name + "-journal")
        if journal.exists():
            # A writer died in its transaction: a writable connection rolls it back on first read.
            try:
                with _translated(path):
                    connection = _connect(path, "rw")
                    connection.execute("SELECT count(*) FROM meta").fetchone()
                    connection.close()
            except OSError:
                raise PermissionError(
                    f"{path.parent} was being written when the writer stopped, and cannot be "
                    "recovered because it is read-only here; load it once where it is writable"
                ) from None
        catalog = cls(_connect(path, "ro"), path)
        catalog._generation = catalog.value("generation")
        return catalog

    def _create_tables(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA page_size = 2048")
        execute("BEGIN IMMEDIATE")
        execute(f"PRAGMA application_id = {APPLICATION_ID}")
        execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        for statement in _SCHEMA.split(";"):
            if statement.strip():
                execute(statement)
        self._sums = {table: (0, 0) for table in TABLES}
        self.writing = True

    def begin(self) -> None:
        """Become the one writer. Raises PermissionError, or OSError where another one is at work.

        IndexFormatError where another writer has committed since this catalog was opened.
        """
        if self.writing:
            return
        assert self.path is not None  # an in-memory catalog is always writing
        with self._lock, _translated(self.path):
            connection = _connect(self.path, "rw")
            try:
                connection.execute("BEGIN IMMEDIATE")
                row = connection.execute(
                    "SELECT value FROM meta WHERE name = 'generation'"
                ).fetchone()
                if row is None or json.loads(row[0]) != self._generation:
                    raise IndexFormatError(
                        f"{self.path.parent} was changed by another writer since it was loaded; "
                        "load it again"
                    )
                sums = connection.execute("SELECT name, sum, n_rows FROM checksums").fetchall()
            except BaseException:
                connection.close()
                raise
            self._connection.close()
            self._connection = connection
            self._sums = {name: (int(total, 16), n_rows) for name, total, n_rows in sums}
            self.writing = True

    def commit(self) -> None:
        """Make everything since begin visible at once, checksums included."""
        with self._lock, _translated(self.path):
            self._connection.execute("DELETE FROM checksums")
            self._connection.executemany(
                "INSERT INTO checksums VALUES (?, ?, ?)",
                [(name, n, f"{total:032x}") for name, (total, n) in sorted(self._sums.items())],
            )
            if self.path is not None:
                self._connection.execute("COMMIT")
                self._reopen()

    def rollback(self) -> None:
        """Forget everything since begin."""
        with self._lock:
            if self.writing and self.path is not None:
                self.revision += 1
                self._connection.execute("ROLLBACK")
                self._reopen()

    def _reopen(self) -> None:
        assert self.path is not None
        self._connection.close()
        self._connection = _connect(self.path, "ro")
        self.writing = False
        self._generation = self.value("generation")

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back."""
        with self._lock:
            self._connection.close()

    # -- rows ---------------------------------------------------------------------------------

    def select(
        self, table: str, where: str = "", arguments: Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        """Return the rows of a table in the order of its key; where is SQL after WHERE."""
        return list(self.iterate(table, where, arguments))

    def iterate(
        self, table: str, where: str = "", arguments: Sequence[Any] = ()
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a table in the order of its key, some thousands at a time.

        Each time anew from the last key on, so the table may change meanwhile.
        """
        keys = ", ".join(_KEYS[table])
        columns = [TABLES[table].index(key) for key in _KEYS[table]]
        conditions, values = ([f"({where})"], list(arguments)) if where else ([], [])
        while True:
            sql = f"SELECT {', '.join(TABLES[table])} FROM {table}"
            if conditions:
                sql += f" WHERE {' AND '.join(conditions)}"
            sql += f" ORDER BY {keys} LIMIT {_PAGE_ROWS}"
            with self._lock, _translated(self.path):
                rows = self._connection.execute(sql, values).fetchall()
            yield from rows
            if len(rows) < _PAGE_ROWS:
                return
            after = f"({keys}) > ({', '.join('?' * len(columns))})"
            conditions = [*([f"({where})"] if where else []), after]
            values = [*arguments, *(rows[-1][column] for column in columns)]

    def scalar(self, sql: str, arguments: Sequence[Any] = ()) -> Any:
        """Return the first column of the first row, or None."""
        with self._lock, _translated(self.path):
            row = self._connection.execute(sql, arguments).fetchone()
        return None if row is None else row[0]

    def column(self, table: str, name: str) -> list[Any]:
        """Return one column of a whole table, in its own order."""
        with self._lock, _translated(self.path):
            sql = f"SELECT {name} FROM {table} ORDER BY {name}"
            return [row[0] for row in self._connection.execute(sql).fetchall()]

    def image_ids(self, where: str, arguments: Sequence[Any]) -> NDArray[np.int64]:
        """Return the ids of the photos that fit, rising; where is SQL after WHERE."""
        # One text instead of a row for each: a third of the time where there are many.
        text = self.scalar(f"SELECT group_concat(id) FROM images WHERE {where}", arguments)
        return np.sort(np.fromstring(text or "", np.int64, sep=","))

    def insert(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Insert rows (all columns, in the order of TABLES)."""
        rows = list(rows)
        self.begin()
        self.revision += table == "images"
        with self._lock, _translated(self.path):
            marks = ", ".join("?" * len(TABLES[table]))
            self._connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
            total, n_rows = self._sums[table]
            total += sum(_row_sum(table, row) for row in rows)
            self._sums[table] = (total % 2**128, n_rows + len(rows))

    def delete(self, table: str, where: str, arguments: Sequence[Any] = ()) -> int:
        """Delete the rows that fit; returns how many."""
        self.begin()
        self.revision += table == "images"
        with self._lock, _translated(self.path):
            rows = self.select(table, where, arguments)
            self._connection.execute(f"DELETE FROM {table} WHERE {where}", arguments)
            total, n_rows = self._sums[table]
            total -= sum(_row_sum(table, row) for row in rows)
            self._sums[table] = (total % 2**128, n_rows - len(rows))
        return len(rows)

    def value(self, name: str, default: Any = None) -> Any:
        """Return one entry of the meta table, decoded."""
        text = self.scalar("SELECT value FROM meta WHERE name = ?", (name,))
        try:
            return default if text is None else json.loads(text)
        except (TypeError, ValueError) as error:
            where = "the index" if self.path is None else self.path.parent
            raise IndexFormatError(f"{where} is damaged: entry {name!r}: {error}") from None

    def set_value(self, name: str, value: Any) -> None:
        """Set one entry of the meta table to anything that JSON can hold."""
        self.delete("meta", "name = ?", (name,))
        self.insert("meta", [(name, to_json(value))])

    def copy_to(self, target: Catalog) -> None:
        """Copy all rows, uncommitted ones included, into an empty catalog, in the order of keys."""
        for table in TABLES:
            target.insert(table, self.iterate(table))

    # -- checking -----------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Return what is damaged: the file's structure, or rows that do not fit their checksum."""
        found: list[str] = []
        try:
            report = self.scalar("PRAGMA integrity_check(1)")
            if report != "ok":
                found.append(f"{FILE_NAME}: {report}")
            expected = {}
            with self._lock, _translated(self.path):
                for name, total, n in self._connection.execute(
                    "SELECT name, sum, n_rows FROM checksums"
                ):
                    expected[name] = (int(total, 16), n)
            if set(expected) != set(TABLES):
                found.append(f"{FILE_NAME}: the list of table checksums is damaged")
            for table in TABLES:
                total, n_rows = 0, 0
                for row in self.iterate(table):
                    total += _row_sum(table, row)
                    n_rows += 1
                if expected.get(table) != (total % 2**128, n_rows):
                    found.append(f"{FILE_NAME}: table {table} does not fit its checksum")
        except (IndexFormatError, ValueError, TypeError) as error:
            found.append(f"{FILE_NAME}: {error}")
        return found


def check_header(path: Path) -> None:
    """Refuse a file that is no catalog of ours, or of a newer format, before SQLite sees it."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        raise IndexFormatError(
            f"{path.parent} is not an index of delfsearch: it has no {FILE_NAME}"
        ) from None
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise IndexFormatError(f"{path} is damaged: it is not an SQLite file")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise IndexFormatError(f"{path} is not a catalog of delfsearch (other application id)")
    version = int.from_bytes(header[60:64], "big")
    if version > FORMAT_VERSION:
        raise IndexFormatError(
            f"{path.parent} is of format version {version}; this release of delfsearch reads up "
            f"to version {FORMAT_VERSION}. Upgrade delfsearch to open it"
        )
    if version < 1:
        raise IndexFormatError(f"{path} is damaged: it names format version {version}")


def _connect(path: Path | None, mode: str = "rwc") -> sqlite3.Connection:
    target = ":memory:" if path is None else f"file:{quote(str(path.absolute()))}?mode={mode}"
    with _translated(path):
        connection = sqlite3.connect(
            target,
            uri=path is not None,
            isolation_level=None,
            check_same_thread=False,
            timeout=_BUSY_SECONDS,
        )
        connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS}")
        # Uncommitted pages stay in RAM: spilling would lock readers out before the commit.
        connection.execute("PRAGMA cache_spill = OFF")
    return connection


@contextmanager
def _translated(path: Path | None) -> Iterator[None]:
    """Turn what SQLite raises into errors that name the index and the remedy."""
    where = path.parent if path is not None else "the index"
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "no such function" in text:
            raise RuntimeError(
                "metadata is filtered with SQLite's JSON functions, which that of this Python, "
                f"{sqlite3.sqlite_version}, was built without; every one from 3.38 on has them"
            ) from error
        if "locked" in text or "busy" in text:
            raise BlockingIOError(
                f"{where} is being written by another process; try later"
            ) from error
        if "readonly" in text or "unable to open" in text:
            raise PermissionError(
                f"{where} cannot be written; save a copy to another place and change that"
            ) from error
        if "full" in text or "I/O" in text:
            raise OSError(f"{where} cannot be written: {text}") from error
        raise IndexFormatError(f"{where} is damaged: {text}") from error
    except (sqlite3.Error, UnicodeDecodeError) as error:
        # SQLite's own message may quote damaged text that Python cannot decode.
        raise IndexFormatError(f"{where} is damaged: {error}") from error
