"""A writer that dies at any moment leaves the last committed state, and the next one goes on."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from search_helpers import files_of, make_collection, make_features, same_matches

from delfsearch.errors import IndexFormatError
from delfsearch.index.builder import IndexBuilder
from delfsearch.index.delf_index import DelfIndex
from delfsearch.storage import arrays as array_files
from delfsearch.storage import seal, store
from delfsearch.storage.catalog import Catalog

QUERY = make_features(np.random.default_rng(8), 10)
DIED = 77


class Fuse:
    """Ends the process, without any cleaning up, at the n-th step on the way to the disk."""

    STEPS = (
        (array_files, "write_array"),
        (array_files, "sync_folder"),
        (array_files.os, "fsync"),
        (seal.os, "replace"),
        (store.os, "rename"),
        (store.shutil, "rmtree"),
        (store.shutil, "copyfile"),
        (pathlib.Path, "mkdir"),
        (pathlib.Path, "unlink"),
        (pathlib.Path, "rmdir"),
        (Catalog, "insert"),
        (Catalog, "delete"),
        (Catalog, "commit"),
        (Catalog, "begin"),
    )

    def __init__(self, n: int) -> None:
        self.left = n
        for owner, name in self.STEPS:
            setattr(owner, name, self.wrapped(getattr(owner, name)))

    def wrapped(self, function):
        def step(*args, **kwargs):
            self.burn()
            result = function(*args, **kwargs)
            self.burn()
            return result

        return step

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            os._exit(DIED)


def dies_at(n: int, action) -> bool:
    """Run action in a child process that dies at step n; False where it ended before."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            Fuse(n)
            action()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, DIED)
    return status == DIED


def steps_of(action) -> int:
    """How many steps action takes when nothing stops it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            fuse = Fuse(10**9)
            action()
            os.write(writer, str(10**9 - fuse.left).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return int(pipe.read())


def moments(n_steps: int, stride: int) -> list[int]:
    """Every stride-th step and the last ones; DELFSEARCH_EVERY_CRASH=1 asks for all."""
    stride = 1 if os.environ.get("DELFSEARCH_EVERY_CRASH") else stride
    return sorted({*range(1, n_steps, stride), *range(n_steps - 4, n_steps + 1)})


def state_of(path) -> tuple:
    index = DelfIndex.load(path, verify=True)
    matches = index.query(QUERY, k=20, max_leaves=10**6)
    state = (
        tuple(index.images()),
        tuple(index.not_indexed()),
        matches.image_ids.tobytes(),
        matches.database_xy.tobytes(),
    )
    index._store.close()
    return state


def change(path) -> None:
    index = DelfIndex.load(path)
    index.remove([1])
    index.add(make_collection(4, counts=(9, 12)))
    index.update([2], [QUERY])
    index.attach("notes", {"n": 2}, {"values": np.arange(7.0)})
    index.save()


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    """The operating system outlives these crashes, so nothing need reach the disk itself."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr("delfsearch.storage.catalog._SYNCHRONOUS", "OFF")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
def test_a_change_happens_wholly_or_not_at_all(tmp_path):
    original = tmp_path / "original"
    index = DelfIndex(merge_factor=1).fit(make_collection(counts=(8, 3, 20)))
    index.attach("notes", {"n": 1}, {"values": np.arange(3.0)})
    index.save(original)
    before = state_of(original)
    done = tmp_path / "done"
    shutil.copytree(original, done)
    change(done)
    after = state_of(done)
    path = tmp_path / "index"
    shutil.copytree(original, path)
    n_steps = steps_of(lambda: change(path))
    shutil.rmtree(path)
    seen = set()
    for turn, n in enumerate(moments(n_steps, 5)):
        shutil.copytree(original, path)
        assert dies_at(n, lambda: change(path))
        state = state_of(path)
        assert state in (before, after), f"neither the old nor the new state after step {n}"
        seen.add(state == after)
        # The next writer finds nothing in its way and leaves no rubbish behind.
        if turn % 5 == 0:
            index = DelfIndex.load(path)
            new_id = index.add([QUERY]).tolist()[0]
            assert new_id == (5 if state == after else 3)
            assert index.save().check() == []
            named = {row[0] for row in index._store.catalog.select("folders")}
            assert {p.name for p in path.iterdir() if p.is_dir()} == named
        shutil.rmtree(path)
    assert n_steps > 40 and seen == {True, False}


@needs_fork
def test_saving_to_a_new_folder_happens_wholly_or_not_at_all(tmp_path):
    index = DelfIndex().fit(make_collection(counts=(8, 3)))
    path = tmp_path / "index"
    n_steps = steps_of(lambda: index.save(path))
    shutil.rmtree(path)
    for n in moments(n_steps, 4):
        assert dies_at(n, lambda: index.save(path))
        if path.exists():
            assert DelfIndex.load(path, verify=True).n_descriptors == 11
            shutil.rmtree(path)
        else:
            with pytest.raises(IndexFormatError, match="no such folder"):
                DelfIndex.load(path)
        # What is left has a name of its own, in nobody's way.
        assert all(p.name.startswith(".index.partial-") for p in tmp_path.iterdir())
        for rest in tmp_path.iterdir():
            shutil.rmtree(rest)
    assert n_steps > 40


PHOTOS = make_collection(6, counts=(5, 0, 12, 9, 1, 30))


def build(path) -> DelfIndex:
    """Index PHOTOS, two to a commit, going on from wherever an earlier run stopped."""
    builder = IndexBuilder(DelfIndex(leaf_size=16), path)
    builder.attach("settings", {"a": 1}, {"values": np.arange(4.0)})
    known = builder.known_names
    for i, photo in enumerate(PHOTOS):
        if f"{i}" in known:
            continue
        builder.add(photo, {"path": f"{i}", "content_hash": f"{i:064x}"})
        if i == 3:
            builder.note_refused("bad", "unreadable", None)
        if i % 2:
            builder.commit()
    return builder.finish()


@needs_fork
def test_a_build_that_dies_anywhere_is_resumed_to_the_same_bytes(tmp_path):
    expected = files_of(build(tmp_path / "whole").path)
    path = tmp_path / "index"
    n_steps = steps_of(lambda: build(path))
    shutil.rmtree(path)
    for n in moments(n_steps, 13):
        assert dies_at(n, lambda: build(path))
        try:
            loaded = DelfIndex.load(path, verify=True)
        except IndexFormatError as error:
            text = str(error)
            assert any(w in text for w in ("under construction", "no such", "no catalog"))
            assert files_of(build(path).path) == expected
        else:  # it died after the last step that matters
            assert loaded.n_descriptors == 57
            loaded._store.close()
        shutil.rmtree(path, ignore_errors=True)
    assert n_steps > 100


@needs_fork
def test_a_build_that_dies_again_and_again_still_ends_with_the_same_bytes(tmp_path):
    expected = files_of(build(tmp_path / "whole").path)
    path = tmp_path / "index"
    # Every run gets further than a commit needs; the last one has to get from there to the end.
    most = steps_of(lambda: build(tmp_path / "counted")) * 2 // 3
    deaths = 0
    while dies_at(most, lambda: build(path)):
        deaths += 1
        assert deaths < 9
    assert deaths >= 1
    assert files_of(path) == expected


WRITER = """
import sys, numpy as np
sys.path[:0] = sys.argv[2:]
from delfsearch.index.delf_index import DelfIndex
from search_helpers import make_features
index = DelfIndex.load(sys.argv[1])
rng = np.random.default_rng(0)
while True:
    index.add([make_features(rng, 20)], metadata=[{"path": "x" * 500}])
    index.remove([index.ids[-1]]) if len(index) % 5 == 0 else None
    index.save()
    print("saved", flush=True)
"""


def test_a_writer_killed_by_the_system_leaves_a_sound_index(tmp_path):
    path = tmp_path / "index"
    DelfIndex().fit(make_collection()).save(path)
    dice = random.Random(3)
    last = 7
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), *sys.path], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        for _ in range(dice.randint(1, 5)):  # then it is somewhere in the next change
            assert writer.stdout.readline().strip() == b"saved"
        writer.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        writer.wait()
        writer.stdout.close()
        index = DelfIndex.load(path, verify=True)
        assert int(index._next_id()) > last
        last = int(index._next_id())
        index.query(QUERY)
        reader = DelfIndex.load(path)
        assert same_matches(reader.query(QUERY), index.query(QUERY))
        index._store.close()
        reader._store.close()


def half_committed(path, tmp_path):
    """A copy of an index in the middle of SQLite's own commit: some pages new, a hot journal."""
    connection = sqlite3.connect(path / "catalog.sqlite", isolation_level=None)
    connection.execute("PRAGMA cache_size = 2")
    connection.execute("PRAGMA cache_spill = 1")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE images SET label = 'wrong'")
    for i in range(400):
        connection.execute(
            "INSERT INTO images VALUES (?, ?, NULL, 1, 1, 0, 'x', NULL, NULL, '{}')",
            (1000 + i, "x" * 300),
        )
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    connection.execute("ROLLBACK")
    connection.close()
    assert (copy / "catalog.sqlite-journal").stat().st_size > 512
    assert (copy / "catalog.sqlite").read_bytes() != (path / "catalog.sqlite").read_bytes()
    return copy


def test_a_half_written_transaction_is_rolled_back_on_load(tmp_path):
    path = DelfIndex().fit(make_collection()).save(tmp_path / "index").path
    expected = state_of(path)
    copy = half_committed(path, tmp_path)
    assert state_of(copy) == expected
    assert not (copy / "catalog.sqlite-journal").exists()
    assert files_of(copy) == files_of(path)


@needs_fork
def test_a_half_written_transaction_in_a_read_only_place_is_not_read(tmp_path):
    path = DelfIndex().fit(make_collection()).save(tmp_path / "index").path
    copy = half_committed(path, tmp_path)
    for folder in [copy, *copy.parents][:4]:
        folder.chmod(0o755)
    for entry in [copy, *copy.rglob("*")]:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            with pytest.raises(PermissionError, match=r"cannot be recovered|cannot be written"):
                DelfIndex.load(copy)
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    for entry in [copy, *copy.rglob("*")]:
        entry.chmod(0o755)
    assert status == 0
