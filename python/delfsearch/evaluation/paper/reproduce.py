"""The paper's tables, run again on one's own copies of the data.

``reproduce`` runs every row of a table on every set that is at hand and returns our figure beside
the paper's. Whatever is worked out lies in a folder: another table, or the same one after an
interruption, begins with it and extracts no photo twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from delfsearch.evaluation.datasets.base import Dataset
from delfsearch.evaluation.judged import JudgedQueries
from delfsearch.evaluation.paper.printed import paper_value
from delfsearch.evaluation.paper.sets import Limits, Sources, columns_at_hand, load_set
from delfsearch.evaluation.paper.systems import (
    Laboratory,
    LeftOut,
    extraction_of,
    prepare,
)
from delfsearch.evaluation.paper.tables import (
    MEAN_AP,
    NETWORKS,
    PAPER_GRID,
    RECALL,
    SMALL_GRID,
    TP_PRECISIONS,
    Column,
    Row,
    Table,
    get_table,
)
from delfsearch.evaluation.ranked import mean_average_precision
from delfsearch.evaluation.running.feature_store import FeatureStore
from delfsearch.evaluation.running.protocol import SystemRun, judge_answers, run_system
from delfsearch.evaluation.running.runnable import Effort, SearchSettings
from delfsearch.evaluation.unranked import (
    pooled_curve,
    recall_at_precision,
    true_positives_at_precision,
)

# row, set, what is being done, done, total
ReproduceProgress = Callable[[str, str, str, int, int], None]


@dataclass(frozen=True)
class ReproduceSettings:
    """How a table is run.

    grid : efforts of local systems; the best point of each cell is reported and all are kept.
    weights : file of a network by its name in ``tables.NETWORKS``, upper or lower case.
    lift : folder with the output files of LIFT's released code.
    limits : fewer queries and photos than the set has. global_components : largest dimension of
        the vectors of DIR and siaMAC, for sets too small to learn the paper's. Both change the
        figures: None is what the paper did.
    max_side : photos are shrunk to this longer side first, in pixels. sides : longer sides at which
        DIR reads photos; None means its own three.
    search : leaves, candidates, threads. device : of the networks.
    """

    grid: tuple[Effort, ...] = PAPER_GRID
    weights: Mapping[str, str] = field(default_factory=dict)
    lift: Path | None = None
    limits: Limits = field(default_factory=Limits)
    global_components: int | None = None
    max_side: int | None = 1024
    sides: tuple[int, ...] | None = None
    search: SearchSettings = field(default_factory=SearchSettings)
    device: str = "auto"

    @staticmethod
    def small(**changes: object) -> ReproduceSettings:
        """Return settings to see that everything runs, in minutes; no figures to quote.

        Two points of the grid, 8 queries and 8 distractor queries, 60 photos in the database, 40 to
        learn from, photos of at most 256 pixels. changes : replace some of them.
        """
        values: dict[str, object] = {
            "grid": SMALL_GRID,
            "limits": Limits(queries=8, photos=60, fit_photos=40),
            "global_components": 64,
            "max_side": 256,
            "sides": (160, 224),
        }
        return ReproduceSettings(**{**values, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Cell:
    """Our figure at the best point of the grid, beside the paper's.

    value : percent, or true positives. paper : the paper's figure, None where it prints none.
    effort : the best point, "" for systems without a grid. grid : figure by point.
    n_queries, n_distractor_queries : that were asked.
    """

    column: str
    dataset: str
    metric: str
    value: float
    paper: float | None
    effort: str
    grid: Mapping[str, float]
    n_queries: int
    n_distractor_queries: int


@dataclass(frozen=True)
class Curve:
    """Precision over true positives of one row (Fig. 4), at every distinct score, best first."""

    effort: str
    precision: tuple[float, ...]
    true_positives: tuple[int, ...]
    thresholds: tuple[float, ...]


@dataclass(frozen=True)
class Cost:
    """What a row took on one set: seconds of extraction and bytes of index, for each photo."""

    dataset: str
    seconds_per_photo: float
    bytes_per_photo: float
    n_database: int
    n_unreadable: int


@dataclass(frozen=True)
class RowResult:
    """A row: what ran by set, its cells, and its curve where the table is Fig. 4.

    left_out : why it did not run, "" where it did.
    """

    name: str
    wanted: str
    ran: Mapping[str, str]
    cells: tuple[Cell, ...] = ()
    costs: tuple[Cost, ...] = ()
    curve: Curve | None = None
    left_out: str = ""


@dataclass(frozen=True)
class TableResult:
    """A table that was run.

    sets : what each set held and how it was made. missing : columns' sets that were not at hand.
    settings : what else the figures depend on. smoke : whether one folder stood for all sets.
    """

    table: Table
    columns: tuple[Column, ...]
    rows: tuple[RowResult, ...]
    sets: Mapping[str, Sequence[str]]
    missing: tuple[str, ...]
    settings: ReproduceSettings
    smoke: bool


def reproduce(
    name: str,
    sources: Sources,
    folder: Path,
    *,
    settings: ReproduceSettings | None = None,
    store: FeatureStore | None = None,
    progress: ReproduceProgress | None = None,
) -> TableResult:
    """Run a table of the paper.

    name : one of ``tables.TABLE_NAMES``. sources : the folders of the sets.
    folder : where features, indexes and answers are kept; give the same one for all tables.
    store : where features are kept, None means a folder inside. progress : see ReproduceProgress.
    Returns every row, those that cannot run with the reason.
    Raises DatasetError where no column's set is at hand; ValueError for an unknown table or
    network; WeightsError and ImportError as the systems do.
    Source: Sec. 5, Tables 1 to 7, Fig. 4.
    """
    settings = ReproduceSettings() if settings is None else settings
    table = get_table(name)
    weights = _canonical(settings.weights)
    columns, missing = columns_at_hand(table, sources)
    store = FeatureStore(folder / "features") if store is None else store
    reductions = Counter(
        extraction for extraction, _ in {_reduction_of(row, weights) for row in table.rows}
    )
    rows = {
        row.name: RowResult(row.name, NETWORKS.get(row.network, row.system), {})
        for row in table.rows
    }
    order = {column.name: place for place, column in enumerate(columns)}
    sets: dict[str, Sequence[str]] = {}
    # With a smoke folder one set stands for all.
    names = dict.fromkeys(
        "smoke" if sources.smoke is not None else column.dataset for column in columns
    )
    for dataset_name in names:
        asked = columns if sources.smoke is not None else _of(columns, dataset_name)
        dataset, fit = load_set(asked[0].dataset, asked, sources, settings.limits)
        sets[dataset_name] = (
            f"{len(dataset.database)} photos, {len(dataset.queries)} queries, "
            f"{len(dataset.distractor_queries)} distractor queries",
            *dataset.notes,
            *_own_photos(dataset),
        )
        laboratory = Laboratory(
            store,
            folder,
            weights=weights,
            fit=fit,
            lift=settings.lift,
            max_side=settings.max_side,
            sides=settings.sides,
            global_components=settings.global_components,
            device=settings.device,
            n_jobs=settings.search.n_jobs,
        )
        for row in table.rows:
            several = reductions[_reduction_of(row, weights)[0]] > 1
            runnable = prepare(row, laboratory, several_reductions=several)
            if isinstance(runnable, LeftOut):
                rows[row.name] = replace(rows[row.name], left_out=runnable.reason)
                continue
            run = run_system(
                runnable,
                dataset,
                settings.grid,
                folder,
                settings=settings.search,
                progress=_bound(progress, row.name, dataset_name),
            )
            cells, curve = _cells(name, row, asked, dataset_name, dataset, run)
            so_far = rows[row.name]
            rows[row.name] = replace(
                so_far,
                ran={**so_far.ran, dataset_name: runnable.ran},
                cells=tuple(sorted((*so_far.cells, *cells), key=lambda c: order[c.column])),
                costs=(*so_far.costs, _cost(dataset_name, run)),
                curve=curve,
            )
    return TableResult(
        table, columns, tuple(rows.values()), sets, missing, settings, sources.smoke is not None
    )


def measure(metric: str, judged: JudgedQueries) -> float:
    """Return a column's figure: percent for RECALL and MEAN_AP, true positives for the others."""
    if metric == RECALL:
        return 100.0 * recall_at_precision(judged, 0.9)
    if metric == MEAN_AP:
        return 100.0 * mean_average_precision(judged)
    return float(true_positives_at_precision(judged, TP_PRECISIONS[metric]))


def _cells(
    table: str, row: Row, columns: Sequence[Column], name: str, dataset: Dataset, run: SystemRun
) -> tuple[list[Cell], Curve | None]:
    """Return the cells of a row on one set, and its curve where the table is Fig. 4."""
    asked = [min(c.n_distractor_queries, len(dataset.distractor_queries)) for c in columns]
    grids: list[dict[Effort | None, float]] = [{} for _ in columns]
    for effort, answers in run.answers.items():  # read once each, one in memory at a time
        for column, n, grid in zip(columns, asked, grids):
            judged = judge_answers(dataset, answers, n_distractor_queries=n)
            grid[effort] = measure(column.metric, judged)
    cells: list[Cell] = []
    curve = None
    for column, n, grid in zip(columns, asked, grids):
        best = max(grid, key=lambda effort: grid[effort])
        cells.append(
            Cell(
                column=column.name,
                dataset=name,
                metric=column.metric,
                value=grid[best],
                paper=paper_value(table, row.name, column.name),
                effort=_shown(best),
                grid={_shown(effort): value for effort, value in grid.items() if effort},
                n_queries=len(dataset.queries),
                n_distractor_queries=n,
            )
        )
        if table == "fig4" and column.metric == "TP@90%":
            judged = judge_answers(dataset, run.answers[best], n_distractor_queries=n)
            curve = _curve(_shown(best), judged)
    return cells, curve


def _cost(dataset: str, run: SystemRun) -> Cost:
    return Cost(
        dataset, run.seconds_per_photo, run.bytes_per_photo, run.n_database, run.n_unreadable
    )


def _curve(effort: str, judged: JudgedQueries) -> Curve:
    found = pooled_curve(judged)
    return Curve(
        effort,
        tuple(found.precision.tolist()),
        tuple(found.true_positives.tolist()),
        tuple(found.thresholds.tolist()),
    )


def _own_photos(dataset: Dataset) -> tuple[str, ...]:
    n = len(dataset.own_photo_queries)
    told = f"{n} queries are photos of the database, each left out of its own answers"
    return (told,) if n else ()


def _canonical(weights: Mapping[str, str]) -> dict[str, str]:
    """Return weights under the names of NETWORKS."""
    known = {name.lower(): name for name in NETWORKS}
    # The paper writes Att-LC+RS where a network's short name is LC+RS.
    known |= {f"att-{name.lower()}": name for name in ("LC+RS", "LF+RS")}
    result = {}
    for name, file in weights.items():
        if name.lower() not in known:
            raise ValueError(f"weights must be named by {', '.join(NETWORKS)}; got {name!r}")
        result[known[name.lower()]] = file
    return result


def _reduction_of(row: Row, weights: Mapping[str, str]) -> tuple[str, int | None]:
    return extraction_of(row, weights), row.options.get("n_components")


def _of(columns: Sequence[Column], dataset: str) -> tuple[Column, ...]:
    return tuple(column for column in columns if column.dataset == dataset)


def _shown(effort: Effort | None) -> str:
    return "" if effort is None else str(effort)


def _bound(
    progress: ReproduceProgress | None, row: str, dataset: str
) -> Callable[[str, int, int], None] | None:
    if progress is None:
        return None
    return lambda what, done, total: progress(row, dataset, what, done, total)
