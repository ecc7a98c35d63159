"""An interrupted fit goes on where it stopped and ends with the bytes of an uninterrupted one."""

from __future__ import annotations

import os
import shutil

import pytest
from search_helpers import PatchExtractor, files_of, make_photos

from delfsearch.errors import IndexFormatError
from delfsearch.index import builder
from delfsearch.index.delf_index import DelfIndex
from delfsearch.search import ImageSearch


class StoppingExtractor(PatchExtractor):
    """Calls `stop` when it is asked for the photo after `limit` others; reads one photo ahead."""

    limit = 10**9
    asked: list = []  # noqa: RUF012 (shared on purpose: the resumed run must not ask again)

    @staticmethod
    def stop() -> None:
        raise KeyboardInterrupt

    def stream(self, photos):
        ahead = None
        for n, result in enumerate(super().stream(photos)):
            if n == type(self).limit:
                self.stop()
            type(self).asked.append(str(result[0]))
            if ahead is not None:
                yield ahead
            ahead = result
        if ahead is not None:
            yield ahead


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(builder, "_COMMIT_PHOTOS", 3)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr("delfsearch.storage.catalog._SYNCHRONOUS", "OFF")
    monkeypatch.setattr(StoppingExtractor, "asked", [])


@pytest.fixture
def folder(tmp_path):
    """Eight photos, two unreadable ones and copies of both kinds."""
    folder = tmp_path / "photos"
    paths = make_photos(folder, 8)
    shutil.copy(paths[0], folder / "a-copy.png")
    shutil.copy(paths[3], folder / "été" / "z-copy.png")
    (folder / "bad-1.jpg").write_text("bad")
    (folder / "été" / "bad-2.jpg").write_text("bad")
    return folder


def fit(folder, path, **options) -> ImageSearch:
    search = ImageSearch(StoppingExtractor(), DelfIndex(leaf_size=32))
    return search.fit(folder, labels={"фото-02.png": "x"}, index_path=path, **options)


def stopped_at(limit: int, folder, path, monkeypatch) -> None:
    """Interrupt at photo `limit`, as Ctrl-C does."""
    with monkeypatch.context() as patch:
        patch.setattr(StoppingExtractor, "limit", limit)
        with pytest.raises(KeyboardInterrupt):
            fit(folder, path)


@pytest.mark.parametrize("limit", range(8))
def test_interrupted_anywhere(limit, folder, tmp_path, monkeypatch):
    expected = files_of(fit(folder, tmp_path / "whole").index_.path)
    n_extracted = len(StoppingExtractor.asked)
    StoppingExtractor.asked.clear()
    stopped_at(limit, folder, tmp_path / "index", monkeypatch)
    with pytest.raises(IndexFormatError, match=r"under construction .* resume it"):
        DelfIndex.load(tmp_path / "index")
    calls = []
    search = fit(folder, tmp_path / "index", progress=lambda *call: calls.append(call))
    assert files_of(tmp_path / "index") == expected
    assert search.index_.check() == []
    # Only the photo that was read ahead is extracted a second time.
    assert len(StoppingExtractor.asked) <= n_extracted + 1
    assert calls[-1][:2] == (12, 12)


def test_interrupted_at_every_photo_in_turn(folder, tmp_path, monkeypatch):
    expected = files_of(fit(folder, tmp_path / "whole").index_.path)
    runs = 0
    with monkeypatch.context() as patch:
        patch.setattr(StoppingExtractor, "limit", 2)
        while True:
            try:
                fit(folder, tmp_path / "index")
                break
            except KeyboardInterrupt:
                runs += 1
                assert runs < 12
    assert runs >= 4
    assert files_of(tmp_path / "index") == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("limit", range(1, 8, 2))
def test_killed_without_warning(limit, folder, tmp_path, monkeypatch):
    expected = files_of(fit(folder, tmp_path / "whole").index_.path)
    child = os.fork()
    if child == 0:
        try:
            StoppingExtractor.limit = limit
            StoppingExtractor.stop = staticmethod(lambda: os._exit(9))
            fit(folder, tmp_path / "index")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    fit(folder, tmp_path / "index")
    assert files_of(tmp_path / "index") == expected


def test_a_resumed_run_extracts_with_the_frozen_extractor(folder, tmp_path, monkeypatch):
    stopped_at(5, folder, tmp_path / "index", monkeypatch)
    make_photos(folder, 9)  # a PCA learned now would be another one
    search = fit(folder, tmp_path / "index")
    fresh = PatchExtractor().fit(list(range(12)))
    assert search.extractor_.basis_.tolist() == fresh.basis_.tolist()
    assert len(search) == 9


def test_resuming_with_another_extractor_is_refused(folder, tmp_path, monkeypatch):
    stopped_at(5, folder, tmp_path / "index", monkeypatch)
    with pytest.raises(ValueError, match="begun with an extractor of step=8; got 4"):
        ImageSearch(StoppingExtractor(step=4)).fit(folder, index_path=tmp_path / "index")
    ImageSearch(StoppingExtractor(device="cpu")).fit(folder, index_path=tmp_path / "index")


def test_building_on_disk_and_in_ram_gives_the_same_segment(folder, tmp_path):
    on_disk = files_of(fit(folder, tmp_path / "index").index_.path)
    in_ram = ImageSearch(StoppingExtractor(), DelfIndex(leaf_size=32)).fit(folder)
    saved = files_of(in_ram.save(tmp_path / "saved").index_.path)
    arrays = {name for name in on_disk if name.endswith(".npy")}
    assert {name: saved[name] for name in arrays} == {name: on_disk[name] for name in arrays}


def test_many_chunks_do_not_need_many_open_files(tmp_path, monkeypatch):
    """Every chunk has six arrays; none may stay open while the next is written or read."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(builder, "_COMMIT_PHOTOS", 1)
    make_photos(tmp_path / "photos", 40)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 60
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 30, hard))
    try:
        assert len(fit(tmp_path / "photos", tmp_path / "index")) == 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
