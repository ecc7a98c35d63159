"""Photo files into an index: extracted in order, duplicates and unreadable files noted."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from delfsearch.errors import PhotoError
from delfsearch.features import LocalFeatures
from delfsearch.index.builder import IndexBuilder, IndexUpdater
from delfsearch.storage.arrays import hash_file
from delfsearch.storage.photo_files import PhotoFile, printable

Progress = Callable[[int, int, float, str], None]


class _Extracted(NamedTuple):
    features: LocalFeatures


class _Duplicate(NamedTuple):
    first: str


class _Refused(NamedTuple):
    reason: str


_Verdict = _Duplicate | _Refused


class _Waiting(NamedTuple):
    """A file that was looked at; with no verdict yet the extractor has it."""

    item: PhotoFile
    content_hash: str | None
    verdict: _Verdict | None


def take_in(
    extractor: Any,
    items: Sequence[PhotoFile],
    intake: IndexBuilder | IndexUpdater,
    progress: Progress | None,
    *,
    total: int,
    duplicates: str,
) -> None:
    """Extract photos in order and hand them to an index; what is extracted survives an interrupt.

    extractor : with stream(paths). total : photos in all, those that earlier runs dealt with first.
    duplicates : "once" or "all", see ImageSearch.
    """
    started = time.monotonic()
    done = total - len(items)
    try:
        for waiting, outcome in _outcomes(extractor, items, intake, duplicates):
            name = printable(waiting.item.name)
            if isinstance(outcome, _Extracted):
                metadata = {
                    "path": name,
                    "label": waiting.item.label,
                    "content_hash": waiting.content_hash,
                }
                intake.add(outcome.features, metadata)
            elif isinstance(outcome, _Duplicate):
                intake.note_duplicate(name, str(waiting.content_hash), outcome.first)
            else:
                intake.note_refused(name, outcome.reason, waiting.content_hash)
            if intake.due:
                intake.commit()
            done += 1
            if progress is not None:
                progress(done, total, time.monotonic() - started, name)
    except KeyboardInterrupt:
        intake.commit()
        raise
    intake.commit()


def _outcomes(
    extractor: Any,
    items: Sequence[PhotoFile],
    intake: IndexBuilder | IndexUpdater,
    duplicates: str,
) -> Iterator[tuple[_Waiting, _Extracted | _Verdict]]:
    """Yield, in order, what became of each photo."""
    # The extractor reads ahead: what it has been given and not yet returned waits here, and between
    # it the duplicates and unreadable files, which it never sees.
    queue: deque[_Waiting] = deque()
    first_with: dict[str, str] = {}

    def admitted() -> Iterator[Path]:
        for item in items:
            waiting = _look_at(item, duplicates, first_with, intake)
            queue.append(waiting)
            if waiting.verdict is None:
                yield item.file

    for _, result in extractor.stream(admitted()):
        waiting = queue.popleft()
        while waiting.verdict is not None:
            yield waiting, waiting.verdict
            waiting = queue.popleft()
        if isinstance(result, PhotoError):
            yield waiting, _Refused(str(result))
        else:
            yield waiting, _Extracted(result)
    for waiting in queue:
        if waiting.verdict is None:
            raise RuntimeError(f"the extractor gave no answer for {waiting.item.name!r}")
        yield waiting, waiting.verdict


def _look_at(
    item: PhotoFile,
    duplicates: str,
    first_with: dict[str, str],
    intake: IndexBuilder | IndexUpdater,
) -> _Waiting:
    try:
        item.name.encode()
        content_hash = hash_file(item.file)
    except UnicodeEncodeError:
        return _Waiting(item, None, _Refused("its name is not valid Unicode; rename it"))
    except OSError as error:
        return _Waiting(item, None, _Refused(f"it cannot be read: {error.strerror or error}"))
    if duplicates == "once":
        first = first_with.setdefault(content_hash, item.name)
        if first == item.name:
            first = intake.first_with_content(content_hash) or item.name
        if first != item.name:
            return _Waiting(item, content_hash, _Duplicate(first))
    return _Waiting(item, content_hash, None)
