"""Answers on disk, so that no query is asked twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from delfsearch.evaluation.running.runnable import Effort

Answers = dict[str, list[tuple[str, float]]]


class AnswerLog:
    """Answers on disk, a line of JSON for each query: its name and its answers.

    A line that an interruption tore, or that is damaged, is passed over, and its query asked again.
    Lines are only ever appended, a batch with one write: another run on the same folder does no
    harm. Only the names of the queries are held in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = {query for query, _ in self._entries()}

    def add(self, found: Mapping[str, list[tuple[str, float]]]) -> None:
        """Append answers by query name."""
        lines = [json.dumps([query, answers], allow_nan=False) for query, answers in found.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The empty line ends what an interruption may have left without an end.
        data = ("\n" + "\n".join(lines) + "\n").encode("ascii")
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            while data:
                data = data[os.write(file, data) :]
        finally:
            os.close(file)
        self.done.update(found)

    def read(self, ids: Mapping[str, str]) -> Answers:
        """Return the answers of the queries with these names, by their ids."""
        answers: Answers = {}
        for query, found in self._entries():
            if query in ids:
                answers[ids[query]] = [(name, float(score)) for name, score in found]
        return answers

    def _entries(self) -> Iterator[tuple[str, list[Any]]]:
        try:
            with self.path.open("rb") as file:
                for line in file:
                    entry = _parsed(line)
                    if entry is not None:
                        yield entry
        except FileNotFoundError:
            return


def _parsed(line: bytes) -> tuple[str, list[Any]] | None:
    """Return query and answers of a line; None for one that is torn, damaged or empty."""
    try:
        query, found = json.loads(line)
        if isinstance(query, str) and all(isinstance(n, str) and s + 0.0 == s for n, s in found):
            return query, found
    except (ValueError, TypeError):
        pass
    return None


class KeptAnswers(Mapping["Effort | None", Answers]):
    """Answers by effort, read from disk when asked for: all of a grid may not fit in memory."""

    def __init__(self, logs: Mapping[Effort | None, AnswerLog], ids: Mapping[str, str]) -> None:
        self._logs = logs
        self._ids = ids

    def __getitem__(self, effort: Effort | None) -> Answers:
        return self._logs[effort].read(self._ids)

    def __iter__(self) -> Iterator[Effort | None]:
        return iter(self._logs)

    def __len__(self) -> int:
        return len(self._logs)
