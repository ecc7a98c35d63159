"""The whole report: every system run on a folder, its figures with intervals, by parts of the set.

Whatever is worked out lies in a folder and is not made twice: an interrupted report goes on where
it stopped, and one whose features are there takes minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from delfsearch.errors import WeightsError
from delfsearch.evaluation.datasets.base import Dataset
from delfsearch.evaluation.datasets.library_folder import from_photo_folder
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.evaluation.judging import judge_all
from delfsearch.evaluation.report.groups import Group, groups_of, without_subsets
from delfsearch.evaluation.report.lineup import Contender, Entrant, Workshop, lineup, prepare
from delfsearch.evaluation.report.measures import (
    Comparison,
    GroupFigures,
    SystemCurves,
    compare,
    curves,
    measure,
)
from delfsearch.evaluation.report.timing import seconds_per_photo
from delfsearch.evaluation.running.answer_log import Answers
from delfsearch.evaluation.running.feature_store import FeatureStore
from delfsearch.evaluation.running.protocol import run_system

# system, what is being done, done, total
ReportProgress = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class ReportSettings:
    """How a report is made.

    systems : keys of the lineup to run, () for all; the first is the one that others are compared
    with. weights, options, device : see Workshop.
    without : subsets of photos, or patterns of them, to leave out for a second count of the
    headline (their photos are struck from the answers, their distractor queries are not asked).
    together : groups of subsets to report as one, beside each alone.
    n_resamples : of the bootstrap. n_timed : photos that extraction is timed on.
    """

    systems: tuple[str, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()
    n_resamples: int = 1000
    n_timed: int = 32
    device: str = "auto"
    n_jobs: int | None = -1


@dataclass(frozen=True)
class Cost:
    """What a system takes: seconds by the wall clock with the threads of the run, bytes of index.

    seconds_per_photo : extraction, on the photos that all systems were timed on, one after the
    other. seconds_per_query : search and verification. n_unreadable : photos left out.
    """

    seconds_per_photo: float
    seconds_per_query: float
    bytes_per_photo: float
    n_unreadable: int


@dataclass(frozen=True)
class SystemResult:
    """A system that ran: its answers by query id, figures by group, costs, and the entrant."""

    contender: Contender
    ran: str
    answers: Answers = field(repr=False)
    figures: Mapping[str, GroupFigures]
    curves: SystemCurves
    cost: Cost
    entrant: Entrant = field(repr=False)


@dataclass(frozen=True)
class Report:
    """Everything that is written down.

    results : in the order of the lineup. left_out : title and reason of what could not run.
    comparisons : of each system with the first. groups : of queries, the headline first.
    """

    folder: PhotoFolder
    dataset: Dataset
    groups: tuple[Group, ...]
    results: tuple[SystemResult, ...]
    left_out: Mapping[str, str]
    comparisons: tuple[Comparison, ...]
    settings: ReportSettings


def make_report(
    folder: PhotoFolder,
    work: Path,
    *,
    settings: ReportSettings | None = None,
    progress: ReportProgress | None = None,
) -> Report:
    """Run every system on a folder with ground truth.

    folder : in the library's own format. work : where features, indexes and answers are kept.
    progress : see ReportProgress.
    Systems that cannot run here (a package or weights are absent, too few photos to learn from)
    are named with the reason. Raises DatasetError where the ground truth breaks a rule,
    ValueError for an unknown system or subset, or where no system can run.
    """
    settings = ReportSettings() if settings is None else settings
    dataset = from_photo_folder(folder)
    groups = groups_of(folder, dataset, settings.together)
    reduced = without_subsets(folder, dataset, settings.without) if settings.without else None
    workshop = Workshop(
        FeatureStore(work / "features"),
        work,
        weights=settings.weights,
        options=settings.options,
        device=settings.device,
        n_jobs=settings.n_jobs,
    )
    entrants: list[Entrant] = []
    left_out: dict[str, str] = {}
    for contender in _chosen(settings):
        try:
            entrants.append(prepare(contender, dataset, workshop))
        except (ImportError, WeightsError, ValueError) as error:
            left_out[contender.title] = str(error)
    if not entrants:
        reasons = "; ".join(f"{title}: {reason}" for title, reason in left_out.items())
        raise ValueError(f"no system can run here: {reasons}")
    runs = [_run(entrant, dataset, work, progress) for entrant in entrants]
    timed = seconds_per_photo(entrants, dataset, work, n_photos=settings.n_timed, progress=progress)
    results = []
    for entrant, (answers, cost), seconds in zip(entrants, runs, timed):
        judged = judge_all(answers, dataset.all_queries)
        figures = measure(judged, groups, n_resamples=settings.n_resamples)
        if reduced is not None:
            figures |= reduced.figures(answers, n_resamples=settings.n_resamples)
        results.append(
            SystemResult(
                entrant.contender,
                entrant.ran,
                answers,
                figures,
                curves(judged, groups[0], n_resamples=settings.n_resamples),
                dataclasses.replace(cost, seconds_per_photo=seconds),
                entrant,
            )
        )
        if progress is not None:
            progress(entrant.contender.title, "systems measured", len(results), len(entrants))
    reference = judge_all(results[0].answers, dataset.all_queries)
    comparisons = tuple(
        compare(
            result.contender.title,
            judge_all(result.answers, dataset.all_queries),
            reference,
            groups[0],
            n_resamples=settings.n_resamples,
        )
        for result in results[1:]
    )
    every = groups if reduced is None else (groups[0], reduced.group, *groups[1:])
    return Report(folder, dataset, every, tuple(results), left_out, comparisons, settings)


def _chosen(settings: ReportSettings) -> Sequence[Contender]:
    known = {contender.key: contender for contender in lineup(settings.weights)}
    if unknown := [key for key in settings.systems if key not in known]:
        raise ValueError(f"systems must be of {', '.join(known)}; got {unknown[0]!r}")
    return [known[key] for key in settings.systems or known]


def _run(
    entrant: Entrant, dataset: Dataset, work: Path, progress: ReportProgress | None
) -> tuple[Answers, Cost]:
    """Return an entrant's answers to all queries, whichever of its parts gave them, and costs."""
    title = entrant.contender.title
    answers: Answers = {}
    seconds = 0.0
    for runnable, part in entrant.parts:
        run = run_system(
            runnable,
            part,
            entrant.efforts,
            work,
            settings=entrant.settings,
            progress=None
            if progress is None
            else lambda what, done, total: progress(title, what, done, total),
        )
        effort = next(iter(run.answers))
        answers |= run.answers[effort]
        seconds += run.seconds_per_query[effort] * len(part.all_queries)
        n_bytes, n_unreadable = run.bytes_per_photo, run.n_unreadable
    return answers, Cost(float("nan"), seconds / len(dataset.all_queries), n_bytes, n_unreadable)
