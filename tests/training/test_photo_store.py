from __future__ import annotations

import collections
import errno
import json
import resource

import numpy as np
import pytest
from PIL import Image

from delfsearch.errors import PhotoError
from delfsearch.training import CheckpointError, photo_store
from delfsearch.training.photo_store import PhotoStore
from delfsearch.training.views import read_square


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for i, size in enumerate([(40, 60), (90, 50), (30, 30), (200, 100)]):
        made.append(tmp_path / f"{i}.png")
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(made[-1])
    (tmp_path / "bad.png").write_text("no photo")
    return [*made[:2], tmp_path / "bad.png", *made[2:]]


SIDES = [40, 32, 40, 40, 48]


@pytest.mark.parametrize("how", ["ram", "disk", "none", "auto"])
def test_where_squares_are_kept_changes_no_pixel(files, tmp_path, how):
    store = PhotoStore(files, SIDES)
    store.keep(how, tmp_path / "kept", n_threads=3)
    assert store.keeps == (how != "none")
    for row, (file, side) in enumerate(zip(files, SIDES)):
        if row == 2:
            with pytest.raises(PhotoError, match=r"bad\.png"):
                store.pixels(row)
        else:
            assert np.array_equal(store.pixels(row), read_square(file, side))
    assert set(store.unreadable) == {2}


def test_kept_squares_are_read_once(files, tmp_path, monkeypatch):
    calls = []

    def counted(file, side):
        calls.append(file)
        return read_square(file, side)

    monkeypatch.setattr(photo_store, "read_square", counted)
    for how, again in (("ram", 5), ("disk", 0)):  # a file is found again, RAM is not
        for expected in (5, again):
            calls.clear()
            store = PhotoStore(files, SIDES)
            store.keep(how, tmp_path / "kept")
            store.pixels(0), store.pixels(4)
            assert len(calls) == expected
            assert set(store.unreadable) == {2}


def test_a_changed_photo_is_read_again(files, tmp_path):
    PhotoStore(files, SIDES).keep("disk", tmp_path / "kept")
    Image.new("RGB", (50, 50), (1, 2, 3)).save(files[0])
    store = PhotoStore(files, SIDES)
    store.keep("disk", tmp_path / "kept")
    assert (store.pixels(0) == (1, 2, 3)).all()


def test_an_interrupted_file_is_written_again(files, tmp_path):
    def interrupt(what, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PhotoStore(files, SIDES).keep("disk", tmp_path / "kept", progress=interrupt)
    store = PhotoStore(files, SIDES)
    store.keep("disk", tmp_path / "kept")
    assert np.array_equal(store.pixels(4), read_square(files[4], 48))


def test_a_full_disk_is_said(files, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the system itself refuses
    try:
        with pytest.raises(CheckpointError, match="set keep_photos='none'"):
            PhotoStore(files, SIDES).keep("disk", tmp_path / "kept")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "kept").iterdir())


def test_a_table_that_cannot_be_written_is_said(files, tmp_path, monkeypatch):
    def full(self, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "write_text", full)
        with pytest.raises(CheckpointError, match=r"decoded photos cannot be written.*No space"):
            PhotoStore(files, SIDES).keep("disk", tmp_path / "kept")
    store = PhotoStore(files, SIDES)
    store.keep("disk", tmp_path / "kept")
    assert np.array_equal(store.pixels(4), read_square(files[4], 48))


def test_a_cut_file_is_refused(files, tmp_path):
    PhotoStore(files, SIDES).keep("disk", tmp_path / "kept")
    data = tmp_path / "kept" / "photos.u8"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ValueError, match="delete its folder"):
        PhotoStore(files, SIDES).keep("disk", tmp_path / "kept")


def test_a_damaged_table_is_made_anew(files, tmp_path):
    PhotoStore(files, SIDES).keep("disk", tmp_path / "kept")
    (tmp_path / "kept" / "photos.json").write_text("{")
    store = PhotoStore(files, SIDES)
    store.keep("disk", tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "photos.json").read_text())["shapes"][2] == [0, 0]
    assert np.array_equal(store.pixels(0), read_square(files[0], 40))


def test_disk_needs_a_folder(files):
    with pytest.raises(ValueError, match="needs output"):
        PhotoStore(files, SIDES).keep("disk", None)
    with pytest.raises(ValueError, match="keep_photos"):
        PhotoStore(files, SIDES).keep("tape", None)


def test_what_does_not_fit_in_memory_goes_to_disk_and_else_is_read_anew(
    files, tmp_path, monkeypatch
):
    monkeypatch.setattr(photo_store, "_memory_bytes", lambda: 1000)
    store = PhotoStore(files, SIDES)
    store.keep("auto", tmp_path / "kept")
    assert store.keeps and (tmp_path / "kept" / "photos.u8").is_file()
    store = PhotoStore(files, SIDES)
    store.keep("auto", None)
    assert not store.keeps


def free_disk(monkeypatch, n_bytes):
    """Let a disk of so many bytes hold what is in a folder."""
    usage = collections.namedtuple("usage", "total used free")

    def disk_usage(folder):
        used = sum(file.stat().st_size for file in folder.iterdir())
        return usage(n_bytes, used, n_bytes - used)

    monkeypatch.setattr(photo_store.shutil, "disk_usage", disk_usage)


def test_what_is_on_disk_is_found_where_there_was_space_for_it_once(files, tmp_path, monkeypatch):
    needed = sum(3 * side * side for side in SIDES)
    monkeypatch.setattr(photo_store, "_memory_bytes", lambda: 1000)
    free_disk(monkeypatch, int(2.5 * needed))
    for _ in range(2):
        store = PhotoStore(files, SIDES)
        store.keep("auto", tmp_path / "kept")
        assert store.keeps
    monkeypatch.setattr(photo_store, "_memory_bytes", lambda: 10**9)
    monkeypatch.setattr(photo_store, "read_square", None)  # not read again, though RAM has space
    store = PhotoStore(files, SIDES)
    store.keep("auto", tmp_path / "kept")
    assert store.pixels(0).shape == (40, 40, 3)


def test_what_is_on_disk_of_other_photos_makes_way(files, tmp_path, monkeypatch):
    monkeypatch.setattr(photo_store, "_memory_bytes", lambda: 1000)
    needed = sum(3 * side * side for row, side in enumerate(SIDES) if row != 2)
    free_disk(monkeypatch, int(2.2 * needed))
    for rows in ([4, 3, 1, 0], [0, 1, 3, 4]):
        store = PhotoStore([files[i] for i in rows], [SIDES[i] for i in rows])
        store.keep("auto", tmp_path / "kept")
        assert store.keeps
        assert np.array_equal(store.pixels(1), read_square(files[rows[1]], SIDES[rows[1]]))


def test_processes_share_the_memory(files, tmp_path, monkeypatch):
    needed = sum(3 * side * side for side in SIDES)
    monkeypatch.setattr(photo_store, "_memory_bytes", lambda: 4 * 2 * needed)
    for n, on_disk in ((2, False), (3, True)):
        folder = tmp_path / str(n)
        PhotoStore(files, SIDES).keep("auto", folder, n_processes=n)
        assert (folder / "photos.u8").exists() == on_disk


def test_photos_found_unreadable_during_training_are_said_once(files, caplog):
    store = PhotoStore(files, SIDES)
    for _ in range(3):
        with pytest.raises(PhotoError):
            store.pixels(2)
    assert caplog.text.count("bad.png") == 1


def test_progress_counts_every_photo(files):
    seen = []
    PhotoStore(files, SIDES).keep("ram", None, progress=lambda *what: seen.append(what))
    assert seen == [("photos", i, 5) for i in range(1, 6)]
