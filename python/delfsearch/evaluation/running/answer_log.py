"""Answers on disk, so that no query is asked twice."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from delfsearch.evaluation.running.runnable import Effort

Answers = dict[str, list[tuple[str, float]]]


class AnswerLog:
    """Answers on disk, a line for each query; a line that an interruption tore is forgotten.

    A line is the query's name, its answers, and the seconds that they took (absent from lines of
    before there was a third field). Only the names of the queries are held in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        whole = 0
        for line in self._lines():
            if not line.endswith(b"\n"):
                os.truncate(path, whole)
                break
            self.done.add(json.loads(line)[0])
            whole += len(line)

    def add(self, found: Mapping[str, list[tuple[str, float]]], seconds: float) -> None:
        """Append answers; seconds : that each query took."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="ascii") as file:
            for query, answers in found.items():
                line = json.dumps([query, answers, seconds], allow_nan=False)
                file.write(line + "\n")
        self.done.update(found)

    def read(self, ids: Mapping[str, str]) -> Answers:
        """Return the answers of the queries with these names, by their ids."""
        answers: Answers = {}
        for line in self._lines():
            query, found = json.loads(line)[:2]
            if query in ids:
                answers[ids[query]] = [(name, float(score)) for name, score in found]
        return answers

    def seconds(self, ids: Mapping[str, str]) -> float:
        """Return the mean seconds of these queries; nan where they are not known."""
        lines = (json.loads(line) for line in self._lines())
        taken = [line[2] for line in lines if line[0] in ids and len(line) > 2]
        return float(np.mean(taken)) if taken else math.nan

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                yield from file
        except FileNotFoundError:
            return


class KeptAnswers(Mapping["Effort | None", Answers]):
    """Answers by effort, read from disk when asked for: all of a grid may not fit in memory."""

    def __init__(self, logs: Mapping[Effort | None, AnswerLog], ids: Mapping[str, str]) -> None:
        self._logs = logs
        self._ids = ids

    def __getitem__(self, effort: Effort | None) -> Answers:
        return self._logs[effort].read(self._ids)

    def seconds(self, effort: Effort | None) -> float:
        """Return the mean seconds that a query took."""
        return self._logs[effort].seconds(self._ids)

    def __iter__(self) -> Iterator[Effort | None]:
        return iter(self._logs)

    def __len__(self) -> int:
        return len(self._logs)
