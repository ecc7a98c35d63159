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
from delfsearch.evaluation.bootstrap import Interval
from delfsearch.evaluation.report.failures import Failure, draw_failures, worst_failures
from delfsearch.evaluation.report.measures import ANSWERED, MEASURES, RECALL, GroupFigures
from delfsearch.evaluation.report.standing import Report, SystemResult

JSON_VERSION = 1
_ABOUT = """\
Every system runs with its own defaults; local features go through the index and verifier with the
library's (`DelfIndex()`, 4 inliers and more are answers), global vectors through exact search.
Nothing is tuned to this set. Brackets are 95% intervals: bootstrap by scene, {n} resamples. R@1 and
mAP (Oxford's arithmetic) are means over queries; R@90% is the recall of all queries pooled at 90%
precision, distractor queries included; answered@90% is the share of queries whose first answer is
right and accepted at that threshold; in parts of the set at the headline's threshold, since a user
has one. docs/metrics.md defines them."""


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
    try:
        results.parent.mkdir(parents=True, exist_ok=True)
        written = []
        if drawable:
            plot_curves(report, curves)
            written.append(curves)
        if drawable and draw:
            for result in report.results:
                name = result.contender.key.replace("+", "-")
                path = pictures / f"{name}.png"
                if failures[result.contender.key]:
                    draw_failures(
                        result.entrant,
                        report.dataset,
                        failures[result.contender.key],
                        work,
                        path,
                    )
                    written.append(path)
        text = json.dumps(as_json(report, failures), indent=1, allow_nan=False)
        _replace(results.with_suffix(".json"), text + "\n")
        _replace(results, as_markdown(report, failures, curves.name if drawable else ""))
    except OSError as error:
        raise DatasetError(f"{results} cannot be written: {error}") from error
    return [results, results.with_suffix(".json"), *written]


# -- Markdown ---------------------------------------------------------------------------------


def as_markdown(report: Report, failures: Mapping[str, Sequence[Failure]], curves: str = "") -> str:
    """Return the report as Markdown. curves : name of the picture of curves, "" for none."""
    dataset, headline = report.dataset, report.groups[0]
    first = report.results[0].contender.title
    lines = [
        f"# Every system on {dataset.name}",
        "",
        f"delfsearch {delfsearch.__version__}; {len(dataset.database)} photos in the database, "
        f"{len(headline.rows)} headline queries of {len(dataset.queries)}, "
        f"{len(dataset.distractor_queries)} distractor queries that nothing answers. Reprint it "
        "with `make report PHOTOS=folder`.",
        "",
        _ABOUT.format(n=report.settings.n_resamples),
        "",
        "## Headline",
        "",
        *_table(report, headline.name),
        "",
        f"Each beside {first}, the same queries resampled for both: difference [interval].",
        "",
        *_comparisons(report),
        "",
        "## What it costs",
        "",
        *_costs(report),
        "",
        "Seconds by the wall clock with all threads of the run; extraction on "
        f"{min(report.settings.n_timed, len(dataset.database))} photos, all systems in the same "
        "minutes; a query is search and verification, without extraction.",
    ]
    if curves:
        lines += [
            "",
            "## Precision over recall",
            "",
            f"![precision-recall curves of each system, with intervals]({curves})",
            "",
            "Headline queries pooled with all distractor queries; bands are 95% at each recall.",
        ]
    lines += ["", "## Parts of the set"]
    for group in report.groups[1:]:
        lines += ["", f"### {group.name}", ""]
        if group.about:
            lines += [f"{group.about}.", ""]
        lines += _table(report, group.name)
    lines += ["", "## What ran", ""]
    lines += [f"- **{r.contender.title}**: {r.ran}." for r in report.results]
    lines += [f"- **{title}** left out: {reason}." for title, reason in report.left_out.items()]
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


def _comparisons(report: Report) -> list[str]:
    lines = ["| | " + " | ".join(MEASURES) + " |", "|" + " --- |" * (1 + len(MEASURES))]
    for comparison in report.comparisons:
        values = [
            f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
            for d in (comparison.by_measure[name] for name in MEASURES)
        ]
        lines.append(f"| {comparison.title} | " + " | ".join(values) + " |")
    return lines


def _costs(report: Report) -> list[str]:
    lines = [
        "| | extraction, s a photo | search, ms a query | index, bytes a photo | accepted from |",
        "|" + " --- |" * 5,
    ]
    for result in report.results:
        cost, threshold = result.cost, result.curves.threshold
        accepted = "never" if math.isinf(threshold) else f"{threshold:.4g}"
        lines.append(
            f"| {result.contender.title} | {cost.seconds_per_photo:.3f} | "
            f"{1e3 * cost.seconds_per_query:.1f} | {cost.bytes_per_photo:,.0f} | {accepted} |"
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
            "without": list(report.settings.without),
            "together": [list(names) for names in report.settings.together],
            "n_resamples": report.settings.n_resamples,
            "confidence": 0.95,
        },
        "left_out": dict(report.left_out),
        "systems": [
            _system_as_json(result, failures[result.contender.key]) for result in report.results
        ],
        "differences": {
            comparison.title: {
                name: _numbers(difference=d.difference, low=d.low, high=d.high, p_value=d.p_value)
                for name, d in comparison.by_measure.items()
            }
            for comparison in report.comparisons
        },
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
            seconds_per_photo=result.cost.seconds_per_photo,
            seconds_per_query=result.cost.seconds_per_query,
            bytes_per_photo=result.cost.bytes_per_photo,
        ),
        "n_unreadable": result.cost.n_unreadable,
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
            panel.plot(other.curves.curve.recall, other.curves.curve.precision, "#cccccc", lw=0.6)
        band = result.curves.band
        panel.fill_between(band.recalls, band.low, band.high, color="#1f77b4", alpha=0.2, lw=0)
        panel.plot(result.curves.curve.recall, result.curves.curve.precision, "#1f77b4", lw=1.4)
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
