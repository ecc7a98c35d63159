"""The worst failures of a system: what it wrongly believes most, and what it misses.

Drawn side by side with the lines of the verified matches, as the system itself saw them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from delfsearch.errors import PhotoError
from delfsearch.evaluation.datasets.base import Dataset, Query
from delfsearch.evaluation.report.entrants import Entrant
from delfsearch.evaluation.running.answer_log import Answers
from delfsearch.evaluation.running.searches import Search, open_search
from delfsearch.matches import Hit


@dataclass(frozen=True)
class Failure:
    """One failure. kind : "believed", a wrong answer with a high score, or "missed", a query of
    the headline whose first answer is not right.

    wrong, wrong_score : the best wrong answer, "" where there is none. right, right_score,
    right_rank : the best right answer; rank 0 where no right photo was among the answers.
    """

    kind: Literal["believed", "missed"]
    query: Query
    wrong: str
    wrong_score: float
    right: str
    right_score: float
    right_rank: int


def worst_failures(
    dataset: Dataset, answers: Answers, *, n_believed: int = 6, n_missed: int = 6
) -> list[Failure]:
    """Return a system's worst failures, one a query and kind, worst first.

    Believed: the highest-scoring wrong answers, distractor queries included; of photos that
    mirror each other (a query, b answers; b asks, a answers) one. Missed: of headline queries whose
    first answer is wrong or absent, those whose right photo ranks last or is not found, and of
    these the ones with most right photos.
    """
    headline = {query.id for query in dataset.headline_queries}
    believed: list[Failure] = []
    missed: list[Failure] = []
    for query in dataset.all_queries:
        failure = _first_of_each(query, answers[query.id])
        if failure.wrong:
            believed.append(failure)
        if query.id in headline and failure.right_rank != 1:
            right = failure.right or min(query.positives)
            missed.append(replace(failure, kind="missed", right=right))
    believed.sort(key=lambda f: (-f.wrong_score, f.query.id))
    missed.sort(
        key=lambda f: (
            -(f.right_rank or np.inf),
            -len(f.query.positives),
            -f.wrong_score,
            f.query.id,
        )
    )
    pairs: set[frozenset[str]] = set()
    distinct = []
    for failure in believed:
        pair = frozenset((failure.query.photo, failure.wrong))
        if pair not in pairs:
            pairs.add(pair)
            distinct.append(failure)
    return distinct[:n_believed] + missed[:n_missed]


def _first_of_each(query: Query, answers: Sequence[tuple[str, float]]) -> Failure:
    """Return the best wrong and the best right answer; wrong ones first where scores are equal."""
    kept = [answer for answer in answers if answer[0] not in query.junk]
    kept.sort(key=lambda answer: (-answer[1], answer[0] in query.positives))
    wrong = next((answer for answer in kept if answer[0] not in query.positives), ("", 0.0))
    rank, right = next(
        ((n, a) for n, a in enumerate(kept, start=1) if a[0] in query.positives), (0, ("", 0.0))
    )
    return Failure("believed", query, *wrong, *right, rank)


def draw_failures(
    entrant: Entrant, dataset: Dataset, failures: Sequence[Failure], work: Path, path: Path
) -> None:
    """Draw failures into one picture: a row each, the wrong answer, and the right one beside it.

    work : the report's folder. path : of the PNG file. Raises ImportError without matplotlib.
    """
    from delfsearch.plotting import new_figure, plot_matches

    searches: dict[int, Search] = {}
    height = 2.7 * len(failures)
    figure = new_figure(11.0, height, layout=None)
    rows = figure.subplots(len(failures), 2, squeeze=False)
    title = 0.4 / height  # inches, two lines of small print
    figure.subplots_adjust(0.01, 0.1 / height, 0.99, 1 - title, wspace=0.03, hspace=0.2)
    for failure, (left, right) in zip(failures, rows):
        hits = _hits(entrant, failure.query, work, searches)
        for axes, photo, side in ((left, failure.wrong, "wrong"), (right, failure.right, "right")):
            axes.set_axis_off()
            if not photo:
                continue
            hit = hits.get(photo, Hit(-1, 0.0, 0, np.eye(2, 3), np.zeros((0, 4), np.float32)))
            caption = _title(failure, side, photo)
            color = "#d00000" if side == "wrong" else None
            pair = str(failure.query.path), str(dataset.paths[photo])
            try:
                plot_matches(*pair, hit, ax=axes, title=caption, color=color)
            except PhotoError as error:  # it cannot be read: that is why it failed
                axes.set_title(f"{caption}\n{error}", parse_math=False)
            axes.title.set_fontsize(7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _hits(
    entrant: Entrant, query: Query, work: Path, searches: dict[int, Search]
) -> dict[str, Hit]:
    """Ask a query again, of the part of the entrant that answered it, and keep what it saw."""
    for number, (runnable, part) in enumerate(entrant.parts):
        if any(other.id == query.id for other in part.all_queries):
            if number not in searches:
                searches[number] = open_search(runnable, part, work, settings=entrant.settings)
            hits = searches[number].hits([query], entrant.effort)
            return {str(hit.path): hit for hit in hits[0]}
    return {}


def _title(failure: Failure, side: str, photo: str) -> str:
    if side == "wrong":
        return (
            f"{failure.kind}: {failure.query.id}\n-> {photo}, wrong, score {failure.wrong_score:g}"
        )
    if not failure.right_rank:
        return f"right: {photo}\nnot among the answers"
    return f"right: {photo}\nrank {failure.right_rank}, score {failure.right_score:g}"
