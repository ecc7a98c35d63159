"""A report written down: for people (Markdown and a picture of curves), for programs (JSON).

The photographs may not be ours to pass on, so the text and the curves hold none: failures are
listed by name, and their pictures lie in a folder of their own.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import delfsearch
from delfsearch.errors import DatasetError
from delfsearch.evaluation.bootstrap import Difference, Interval
from delfsearch.evaluation.datasets.base import listed
from delfsearch.evaluation.report.failures import Failure, draw_failures, worst_failures
from delfsearch.evaluation.report.measures import ANSWERED, MEASURES, RECALL, GroupFigures
from delfsearch.evaluation.report.standing import Report, SystemResult

JSON_VERSION = 2  # 2: differences are a list, of every part
_ABOUT = """\
Every system runs with its own defaults. Local features go through one index and verifier with the
library's defaults, which were chosen for DELF's dense features; every answer of at least 4 inliers
counts, since the measures set the threshold. Global vectors go through exact search. PCAs (CONGAS,
DIR) are learned on database photos that no query asks for, siaMAC's whitening on the other half of
the scenes, so that its scores are of two whitenings pooled. XFeat and ALIKED stand in for LIFT.

Brackets are 95% intervals: bootstrap by scene, {n} resamples. R@1 and mAP (Oxford's arithmetic) are
means over queries; R@90% is the recall of all queries pooled at 90% precision, distractor queries
included; answered@90% is the share of queries whose first answer is right and accepted at that
threshold. Parts of the set are asked at the headline's threshold, since a user has one, and their
intervals, and those of differences, hold it fixed. docs/metrics.md defines them."""


def write_report(
    report: Report, results: Path, pictures: Path, work: Path, *, draw: bool = True
) -> list[Path]:
    """Write the report; return the files.

    results : path of the Markdown file; NAME.json and, with matplotlib, NAME-curves.svg go beside
    it. pictures : folder for the drawn failures. work : the report's folder. draw : False leaves
    the failures undrawn.
    Raises DatasetError where a file cannot be written.
    """
    failures = {
        result.contender.key: worst_failures(report.dataset, result.answers)
        for result in report.results
    }
    drawable = _has_matplotlib()
    curves = results.with_name(f"{results.stem}-curves.svg")
    document = results.with_suffix(".json")
    text = json.dumps(as_json(report, failures), indent=1, allow_nan=False)
    try:
        check_writable(results)
        _replace(document, text + "\n")
        _replace(results, as_markdown(report, failures, curves.name if drawable else ""))
        if drawable:
            plot_curves(report, curves)
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{results} and what goes with it cannot be written: {error}") from error
    written = [results, document, *([curves] if drawable else [])]
    for result in report.results if drawable and draw else ():
        worst = failures[result.contender.key]
        if worst:
            path = pictures / f"{result.contender.key.replace('+', '-')}.png"
            draw_failures(result.entrant, report.dataset, worst, work, path)
            written.append(path)
    return written


def check_writable(results: Path) -> None:
    """Raise OSError where a report cannot be written: better known before the hours of work."""
    results.parent.mkdir(parents=True, exist_ok=True)
    trial = results.with_name(f"{results.name}.{os.getpid()}.partial")
    trial.touch()
    trial.unlink()


# -- Markdown ---------------------------------------------------------------------------------


def as_markdown(report: Report, failures: Mapping[str, Sequence[Failure]], curves: str = "") -> str:
    """Return the report as Markdown. curves : name of the picture of curves, "" for none."""
    dataset, headline = report.dataset, report.groups[0]
    lines = [
        f"# Every system on {dataset.name}",
        "",
        f"delfsearch {delfsearch.__version__}; {len(dataset.database)} photos in the database, "
        f"{len(headline.rows)} headline queries of {len(dataset.queries)}, "
        f"{len(dataset.distractor_queries)} distractor queries that nothing answers. Reprint it "
        f"with `make report PHOTOS=folder{_given(report)}`.",
        *_warnings(report),
        "",
        _ABOUT.format(n=report.settings.n_resamples),
        "",
        "## Headline",
        "",
        *_table(report, headline.name),
        "",
        *_comparisons(report, headline.name),
        "## What it costs",
        "",
        *_costs(report),
        "",
        f"Seconds by the wall clock, {_threads(report)}, all systems within the same minutes: "
        f"extraction of {min(report.settings.n_timed, len(dataset.database))} photos one after the "
        "other; search and verification of one query at a time, without extraction. Accepted from: "
        "the lowest score (inliers; cosine for global vectors) of the headline at 90% precision.",
    ]
    if curves:
        lines += [
            "",
            "## Precision over recall",
            "",
            f"![precision-recall curves of each system, with intervals]({curves})",
            "",
            "Headline queries pooled with all distractor queries: the highest precision at a "
            "threshold of at least that recall; bands are 95% at each recall.",
        ]
    lines += ["", "## Parts of the set"]
    for group in report.groups[1:]:
        lines += ["", f"### {group.name}", ""]
        if group.about:
            lines += [f"{group.about}.", ""]
        lines += [*_table(report, group.name), "", *_comparisons(report, group.name)]
        lines.pop()  # its empty line
    lines += ["", "## What ran", ""]
    lines += [f"- **{r.contender.title}**: {r.ran}." for r in report.results]
    lines += [f"- **{title}** left out: {reason}" for title, reason in report.left_out.items()]
    lines += _unreadable(report)
    lines += [
        "",
        "## Worst failures",
        "",
        "Believed: the highest scores of wrong answers (a distractor query may show what another "
        "photo shows: look before you call it wrong). Missed: headline queries whose first answer "
        "is not right, those first whose right photo is not found or ranks last. `make report` "
        "draws them side by side, in `failures/` of its folder.",
    ]
    for result in report.results:
        lines += ["", f"### {result.contender.title}", ""]
        lines += [_failure_line(f) for f in failures[result.contender.key]] or ["None."]
    return "\n".join(lines) + "\n"


def _table(report: Report, group: str) -> list[str]:
    n_queries = report.results[0].figures[group].n_queries
    lines = [
        f"| {n_queries} queries | " + " | ".join(MEASURES) + " |",
        "|" + " --- |" * (1 + len(MEASURES)),
    ]
    for result in report.results:
        values = [_shown(result.figures[group].by_measure[name]) for name in MEASURES]
        lines.append(f"| {result.contender.title} | " + " | ".join(values) + " |")
    return lines


def _given(report: Report) -> str:
    """Return what make is told besides the folder of photos."""
    return " WEIGHTS=weights" if "delf" in report.settings.weights else ""


def _warnings(report: Report) -> list[str]:
    """Return what a reader must know before the figures."""
    lines = []
    if report.settings.options:
        told = json.dumps(report.settings.options)
        lines += ["", f"**No figures to quote:** systems ran with other options: `{told}`."]
    if report.settings.weights:
        named = ", ".join(sorted(report.settings.weights))
        lines += ["", f"Weights given by the user: {named}."]
    if report.settings.systems:
        named = ",".join(report.settings.systems)
        lines += ["", f'Not all systems were asked for: `REPORT_OPTIONS="--systems {named} ..."`.']
    own = report.dataset.own_photo_queries
    if own:
        lines += [
            "",
            f"{len(own)} queries are themselves photos of the database: each is left out of its "
            "own answers.",
        ]
    return lines


def _threads(report: Report) -> str:
    n_jobs = report.settings.n_jobs
    n_threads = os.cpu_count() if n_jobs in (None, -1) else n_jobs
    return f"{n_threads} threads" if n_threads != 1 else "one thread"


def _unreadable(report: Report) -> list[str]:
    lines = []
    for result in report.results:
        title = result.contender.title
        if result.n_unreadable:
            lines.append(f"- {title}: {result.n_unreadable} database photos could not be read.")
        if result.unreadable_queries:
            names = listed(result.unreadable_queries)
            lines.append(f"- {title}: queries that could not be read, without answers: {names}.")
    return lines


def _comparisons(report: Report, group: str) -> list[str]:
    lines = []
    ours = [comparison for comparison in report.comparisons if comparison.group == group]
    for beside in dict.fromkeys(comparison.beside for comparison in ours):
        lines += [
            f"Each beside {beside}, the same queries resampled for both: difference [interval].",
            "",
            "| | " + " | ".join(MEASURES) + " |",
            "|" + " --- |" * (1 + len(MEASURES)),
        ]
        for comparison in ours:
            if comparison.beside == beside:
                values = [_difference(comparison.by_measure[name]) for name in MEASURES]
                lines.append(f"| {comparison.title} | " + " | ".join(values) + " |")
        lines.append("")
    return lines


def _difference(found: Difference) -> str:
    if math.isnan(found.difference):
        return "-"
    if math.isnan(found.low):
        return f"{found.difference:+.3f}"
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _costs(report: Report) -> list[str]:
    lines = [
        "| | extraction, s a photo | search, ms a query | index, bytes a photo | accepted from |",
        "|" + " --- |" * 5,
    ]
    for result in report.results:
        threshold, timing = result.curves.threshold, result.timing
        accepted = "never" if math.isinf(threshold) else f"{threshold:.4g}"
        lines.append(
            f"| {result.contender.title} | {timing.seconds_per_photo:.3f} | "
            f"{1e3 * timing.seconds_per_query:.1f} | {result.bytes_per_photo:,.0f} | {accepted} |"
        )
    return lines


def _shown(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "-"
    if math.isnan(interval.low):
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.2f}, {interval.high:.2f}]"


def _failure_line(failure: Failure) -> str:
    wrong = f"`{failure.wrong}` at {failure.wrong_score:.4g}" if failure.wrong else "nothing"
    line = f"- {failure.kind}: `{failure.query.id}` -> {wrong}"
    if not failure.query.positives:
        return f"{line}; it has no match"
    if not failure.right_rank:
        return f"{line}; right photo not among the answers ({len(failure.query.positives)} known)"
    return f"{line}; right photo at rank {failure.right_rank}, {failure.right_score:.4g}"


# -- JSON -------------------------------------------------------------------------------------


def as_json(report: Report, failures: Mapping[str, Sequence[Failure]]) -> dict[str, Any]:
    """Return the report as JSON holds it; what depends on the clock is under "cost"."""
    return {
        "version": JSON_VERSION,
        "delfsearch": delfsearch.__version__,
        "set": {
            "name": report.dataset.name,
            "database": len(report.dataset.database),
            "queries": len(report.dataset.queries),
            "distractor_queries": len(report.dataset.distractor_queries),
        },
        "settings": {
            "options": {name: dict(given) for name, given in report.settings.options.items()},
            "weights": {name: Path(file).name for name, file in report.settings.weights.items()},
            "beside": list(report.settings.beside),
            "threads": report.settings.n_jobs,
            "without": list(report.settings.without),
            "without_trained": report.settings.without_trained,
            "together": [list(names) for names in report.settings.together],
            "n_resamples": report.settings.n_resamples,
            "confidence": 0.95,
        },
        "left_out": dict(report.left_out),
        "systems": [
            _system_as_json(result, failures[result.contender.key]) for result in report.results
        ],
        "differences": [
            {
                "system": comparison.title,
                "beside": comparison.beside,
                "group": comparison.group,
                **{
                    name: _numbers(
                        difference=d.difference, low=d.low, high=d.high, p_value=d.p_value
                    )
                    for name, d in comparison.by_measure.items()
                },
            }
            for comparison in report.comparisons
        ],
    }


def _system_as_json(result: SystemResult, failures: Sequence[Failure]) -> dict[str, Any]:
    band = result.curves.band
    return {
        "key": result.contender.key,
        "title": result.contender.title,
        "ran": result.ran,
        "figures": {name: _figures_as_json(f) for name, f in result.figures.items()},
        "threshold_at_90": _number(result.curves.threshold),
        "cost": _numbers(
            seconds_per_photo=result.timing.seconds_per_photo,
            seconds_per_query=result.timing.seconds_per_query,
            bytes_per_photo=result.bytes_per_photo,
        ),
        "n_unreadable": result.n_unreadable,
        "unreadable_queries": list(result.unreadable_queries),
        "curve": {
            "recall": band.recalls.tolist(),
            "precision": band.precision.tolist(),
            "low": [_number(value) for value in band.low.tolist()],
            "high": [_number(value) for value in band.high.tolist()],
        },
        "failures": [
            {
                "kind": failure.kind,
                "query": failure.query.id,
                "wrong": failure.wrong,
                "wrong_score": failure.wrong_score,
                "right": failure.right,
                "right_score": failure.right_score,
                "right_rank": failure.right_rank,
            }
            for failure in failures
        ],
    }


def _figures_as_json(figures: GroupFigures) -> dict[str, Any]:
    measures = {
        name: _numbers(value=interval.value, low=interval.low, high=interval.high)
        for name, interval in figures.by_measure.items()
    }
    return {"n_queries": figures.n_queries, **measures}


def _numbers(**values: float) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# -- curves -----------------------------------------------------------------------------------


def plot_curves(report: Report, path: Path) -> None:
    """Draw a panel for each system: its precision over recall with its band, the others grey.

    path : of the SVG file. Raises ImportError without matplotlib.
    """
    from delfsearch.plotting import new_figure

    results = report.results
    columns = min(4, len(results))
    rows = -(-len(results) // columns)
    figure = new_figure(3.2 * columns, 2.7 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for panel, result in zip(panels, results):
        for other in results:
            panel.plot(other.curves.band.recalls, other.curves.band.precision, "#cccccc", lw=0.6)
        band = result.curves.band
        panel.fill_between(band.recalls, band.low, band.high, color="#1f77b4", alpha=0.2, lw=0)
        panel.plot(band.recalls, band.precision, "#1f77b4", lw=1.4)
        panel.axhline(0.9, color="#888888", lw=0.5, ls=":")
        figures = result.figures[report.groups[0].name].by_measure
        panel.set_title(
            f"{result.contender.title}\nR@90% {figures[RECALL].value:.3f}, "
            f"answered {figures[ANSWERED].value:.3f}",
            fontsize=8,
        )
        panel.set_xlim(0, 1)
        panel.set_ylim(0, 1.02)
        panel.tick_params(labelsize=7)
    for panel in panels[len(results) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(results) - columns) : len(results)]:
        panel.set_xlabel("recall", fontsize=8)
        panel.tick_params(labelbottom=True)
    for panel in panels[::columns]:
        panel.set_ylabel("precision", fontsize=8)
    import matplotlib

    # Without a date and with fixed names the same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "delfsearch", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def _has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
