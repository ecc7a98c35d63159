"""The whole report: every system run on a folder, its figures with intervals, by parts of the set.

Whatever is worked out lies in a folder and is not made twice: an interrupted report goes on where
it stopped, and one whose features are there takes minutes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from delfsearch.evaluation.datasets.base import Dataset
from delfsearch.evaluation.datasets.library_folder import from_photo_folder
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.evaluation.judging import judge_all
from delfsearch.evaluation.report.entrants import Contender, Entrant, Unavailable, Workshop
from delfsearch.evaluation.report.fold_weights import trained_by_query
from delfsearch.evaluation.report.groups import (
    Group,
    Reduced,
    groups_of,
    without_subsets,
    without_trained,
)
from delfsearch.evaluation.report.lineup import lineup, prepare
from delfsearch.evaluation.report.measures import (
    Comparison,
    GroupFigures,
    SystemCurves,
    compare,
    curves,
    measure,
)
from delfsearch.evaluation.report.timing import Timing, time_all
from delfsearch.evaluation.running.answer_log import Answers
from delfsearch.evaluation.running.feature_store import FeatureStore
from delfsearch.evaluation.running.protocol import run_system

# system, what is being done, done, total
ReportProgress = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class ReportSettings:
    """How a report is made.

    systems : keys of the lineup to run, () for all. beside : keys of those that the others are
    compared with, () for the first. weights, options, device : see Workshop; with options no figure
    is one to quote.
    without : subsets of photos, or patterns of them, to leave out for a second count of the
    headline (their photos are struck from the answers, their distractor queries are not asked).
    without_trained : count the headline a second time without the photos that DELF's weights of
    folds were trained on.
    together : groups of subsets to report as one, beside each alone.
    n_resamples : of the bootstrap. n_timed : photos and queries that are timed.
    """

    systems: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    without_trained: bool = False
    together: tuple[tuple[str, ...], ...] = ()
    n_resamples: int = 1000
    n_timed: int = 32
    device: str = "auto"
    n_jobs: int | None = -1


@dataclass(frozen=True)
class SystemResult:
    """A system that ran: its answers by query id, figures by group, costs, and the entrant.

    bytes_per_photo : of the index. n_unreadable : database photos that are in no index.
    unreadable_queries : ids; they have no answers.
    """

    contender: Contender
    ran: str
    answers: Answers = field(repr=False)
    figures: Mapping[str, GroupFigures]
    curves: SystemCurves
    timing: Timing
    bytes_per_photo: float
    n_unreadable: int
    unreadable_queries: tuple[str, ...]
    entrant: Entrant = field(repr=False)


@dataclass(frozen=True)
class Report:
    """Everything that is written down.

    results : in the order of the lineup. left_out : title and reason of what could not run.
    comparisons : of each system with the first, or those in settings.beside, on each group.
    groups : of queries, the headline first.
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
    ValueError for an unknown system or subset, or where no system can run; WeightsError for weights
    that were named and do not fit, or saw what they are asked for.
    """
    settings = ReportSettings() if settings is None else settings
    dataset = from_photo_folder(folder)
    groups = groups_of(dataset, settings.together)
    reduced = _reduced(folder, dataset, settings)
    chosen = lineup(settings.systems, settings.weights)
    others = lineup(settings.beside) if settings.beside else chosen[:1]
    if absent := [other.key for other in others if other not in chosen]:
        raise ValueError(
            f"beside must name systems that are run ({', '.join(c.key for c in chosen)}); got "
            f"{absent[0]!r}"
        )
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
    for n, contender in enumerate(chosen):
        if progress is not None:
            progress(contender.title, "systems made ready", n, len(chosen))
        try:
            entrants.append(prepare(contender, dataset, workshop))
        except Unavailable as reason:
            left_out[contender.title] = str(reason)
    if not entrants:
        reasons = "; ".join(f"{title}: {reason}" for title, reason in left_out.items())
        raise ValueError(f"no system can run here: {reasons}")
    runs = [_run(entrant, dataset, work, progress) for entrant in entrants]
    timings = time_all(entrants, dataset, work, n_timed=settings.n_timed, progress=progress)
    results = []
    everyone = [judge_all(run.answers, dataset.all_queries) for run in runs]
    for entrant, run, timing, judged in zip(entrants, runs, timings, everyone):
        figures = measure(judged, groups, n_resamples=settings.n_resamples)
        for smaller in reduced:
            figures |= smaller.figures(run.answers, n_resamples=settings.n_resamples)
        results.append(
            SystemResult(
                entrant.contender,
                entrant.ran,
                run.answers,
                figures,
                curves(judged, groups[0], n_resamples=settings.n_resamples),
                timing,
                run.bytes_per_photo,
                run.n_unreadable,
                run.unreadable_queries,
                entrant,
            )
        )
        if progress is not None:
            progress(entrant.contender.title, "systems measured", len(results), len(entrants))
    every = (groups[0], *(smaller.group for smaller in reduced), *groups[1:])
    titles = [result.contender.title for result in results]
    comparisons = compare(
        {result.contender.title: result.figures for result in results},
        [other.title for other in others if other.title in titles] or titles[:1],
        [group.name for group in every],
    )
    return Report(folder, dataset, every, tuple(results), left_out, comparisons, settings)


def _reduced(folder: PhotoFolder, dataset: Dataset, settings: ReportSettings) -> list[Reduced]:
    reduced = []
    if settings.without:
        reduced.append(without_subsets(folder, dataset, settings.without))
    if settings.without_trained:
        if "delf" not in settings.weights:
            raise ValueError(
                "without_trained needs a folder of folds as the weights of delf; none were given"
            )
        trained = trained_by_query(dataset, settings.weights["delf"])
        reduced.append(without_trained(dataset, trained))
    return reduced


@dataclass(frozen=True)
class _Run:
    answers: Answers
    bytes_per_photo: float
    n_unreadable: int
    unreadable_queries: tuple[str, ...]


def _run(entrant: Entrant, dataset: Dataset, work: Path, progress: ReportProgress | None) -> _Run:
    """Return an entrant's answers to all queries, whichever of its parts gave them."""
    answers: Answers = {}
    unreadable: list[str] = []
    runs = []
    for n, (runnable, part) in enumerate(entrant.parts, start=1):
        title = entrant.contender.title
        if len(entrant.parts) > 1:
            title += f", {n} of {len(entrant.parts)}"
        run = run_system(
            runnable,
            part,
            () if entrant.effort is None else (entrant.effort,),
            work,
            settings=entrant.settings,
            progress=None if progress is None else functools.partial(progress, title),
        )
        runs.append(run)
        answers |= run.answers[entrant.effort]
        unreadable += run.unreadable_queries
    return _Run(
        answers,
        sum(run.bytes_per_photo for run in runs) / len(runs),
        max(run.n_unreadable for run in runs),
        tuple(unreadable),
    )
