"""A table that was run, written down: for people (Markdown), for programs (JSON), and drawn.

The paper's figures always stand in a column of their own that says so.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from delfsearch.errors import DatasetError
from delfsearch.evaluation.paper.printed import SOURCE, paper_value
from delfsearch.evaluation.paper.reproduce import Cell, RowResult, TableResult
from delfsearch.evaluation.paper.sets import Sources, describe
from delfsearch.evaluation.paper.tables import TP_PRECISIONS, Column

JSON_VERSION = 1
TUNED = (
    "The best point of the grid (K neighbours, T leaves) was picked for each figure by that "
    "figure, as in the paper: this tunes on the test set. The whole grid is in the JSON file."
)
SMOKE = "Not the paper's data: its figures are shown to say which row is which, not to be compared."


def as_json(result: TableResult, sources: Sources) -> dict[str, Any]:
    """Return a table as JSON holds it; what depends on the clock is under "seconds_per_photo"."""
    settings = result.settings
    return {
        "version": JSON_VERSION,
        "table": result.table.name,
        "title": result.table.title,
        "paper": f"{SOURCE}, {result.table.source}",
        "smoke": result.smoke,
        "note": TUNED,
        "sources": dict(describe(sources)),
        "sets": {name: list(lines) for name, lines in result.sets.items()},
        "missing": list(result.missing),
        "settings": {
            "grid": [{"k": e.k, "max_leaves": e.max_leaves} for e in settings.grid],
            "max_side": settings.max_side,
            "dir_sides": None if settings.sides is None else list(settings.sides),
            "limits": dataclasses.asdict(settings.limits),
            "global_components": settings.global_components,
            "weights": dict(settings.weights),
            "search": settings.search.key(),
        },
        "rows": [_row_as_json(row) for row in result.rows],
    }


def as_markdown(result: TableResult) -> str:
    """Return a table of ours beside the paper's, with what ran below."""
    header = ["row"]
    for column in result.columns:
        header += [f"{_title(result, column)}: ours", f"{_of_paper(result, column)}the paper's"]
    lines = [
        f"# {result.table.source}: {result.table.title}",
        "",
        f'Columns named "the paper\'s" are printed figures of {SOURCE}; the others were measured '
        "here.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
    ]
    for row in result.rows:
        cells = {cell.column: cell for cell in row.cells}
        values = [row.name]
        for column in result.columns:
            cell = cells.get(column.name)
            paper = paper_value(result.table.name, row.name, column.name)
            values += [_ours(row, cell), _number(paper)]
        lines.append("| " + " | ".join(values) + " |")
    lines += ["", TUNED if any(_has_grid(row) for row in result.rows) else ""]
    if result.smoke:
        lines += ["", SMOKE]
    limits = result.settings.limits
    if limits.queries is not None or limits.photos is not None:
        lines += [
            "",
            f"**No figures to quote:** at most {limits.queries} queries and {limits.photos} "
            "photos.",
        ]
    lines += ["", "## What ran", ""]
    for row in result.rows:
        if row.left_out:
            lines.append(f"- **{row.name}** left out: {row.left_out}.")
        for name, ran in row.ran.items():
            lines.append(f"- **{row.name}** on {name}, `ran`: {ran}.")
    lines += ["", "## Sets", ""]
    lines += [f"- **{name}**: {'; '.join(notes)}." for name, notes in result.sets.items()]
    lines += [f"- not at hand: {missing}." for missing in result.missing]
    lines += ["", "## Best points and costs", ""]
    for row in result.rows:
        best = ", ".join(f"{c.column} at {c.effort}" for c in row.cells if c.effort)
        costs = "; ".join(
            f"{c.dataset}: {c.seconds_per_photo:.3g} s and {c.bytes_per_photo:.0f} bytes a photo, "
            f"{c.n_database} photos, {c.n_unreadable} unreadable"
            for c in row.costs
        )
        if costs:
            lines.append(f"- **{row.name}**: {best + '. ' if best else ''}{costs}.")
    return "\n".join(lines) + "\n"


def write_table(result: TableResult, sources: Sources, folder: Path) -> list[Path]:
    """Write NAME.json, NAME.md and, where matplotlib is installed, NAME.png; return what was.

    Raises DatasetError where the folder cannot be written to.
    """
    name = result.table.name
    text = json.dumps(as_json(result, sources), indent=1, allow_nan=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [
            _replace(folder / f"{name}.json", text + "\n"),
            _replace(folder / f"{name}.md", as_markdown(result)),
        ]
    except OSError as error:
        raise DatasetError(f"cannot write to {os.fspath(folder)!r}: {error}") from error
    try:
        figure = plot_table(result)
    except ImportError:
        return written
    figure.savefig(folder / f"{name}.png", dpi=120)
    return [*written, folder / f"{name}.png"]


def plot_table(result: TableResult) -> Any:
    """Return a matplotlib Figure: precision over true positives for Fig. 4, else bars by row.

    Raises ImportError without matplotlib (extra `plot`).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib: pip install delfsearch[plot]") from None
    curves = [(row.name, row.curve) for row in result.rows if row.curve is not None]
    if curves:
        figure = Figure(figsize=(7, 5), layout="constrained")
        ax = figure.subplots()
        for name, curve in curves:
            if curve.precision:
                label = f"{name} ({curve.effort})" if curve.effort else name
                ax.plot(curve.true_positives, curve.precision, label=label)
            else:
                ax.plot([], [], label=f"{name} (no answers)")
        ax.set(xlabel="true positives", ylabel="precision", ylim=(0, 1.02), title="ours")
        ax.legend(fontsize="small")
        return figure
    columns = result.columns
    figure = Figure(figsize=(3 + 2.2 * len(columns), 1.5 + 0.4 * len(result.rows)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    places = list(range(len(result.rows)))
    for ax, column in zip(axes, columns):
        by_row = [{cell.column: cell for cell in row.cells}.get(column.name) for row in result.rows]
        ours = [0.0 if cell is None else _or_zero(cell.value) for cell in by_row]
        ax.barh([p - 0.2 for p in places], ours, height=0.38, label="ours")
        if not result.smoke:
            paper = [paper_value(result.table.name, r.name, column.name) for r in result.rows]
            values = [value or 0.0 for value in paper]
            shifted = [p + 0.2 for p in places]
            ax.barh(shifted, values, height=0.38, label="the paper's", color="0.75")
        ax.set_title(_title(result, column), fontsize="small")
    axes[0].set_yticks(places, [row.name for row in result.rows], fontsize="small")
    axes[0].invert_yaxis()
    axes[0].legend(fontsize="x-small")
    return figure


def _row_as_json(row: RowResult) -> dict[str, Any]:
    return {
        "row": row.name,
        "paper_network": row.wanted,
        "left_out": row.left_out or None,
        "ran": dict(row.ran),
        "cells": [_cell_as_json(cell) for cell in row.cells],
        "costs": [_finite(dataclasses.asdict(cost)) for cost in row.costs],
        "curve": None if row.curve is None else dataclasses.asdict(row.curve),
    }


def _cell_as_json(cell: Cell) -> dict[str, Any]:
    return _finite({**dataclasses.asdict(cell), "grid": _finite(dict(cell.grid))})


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with None for nan, which JSON cannot hold."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in values.items()
    }


def _title(result: TableResult, column: Column) -> str:
    """Return a column's name, without the paper's set where another stood for it."""
    rest = column.name.partition(" ")[2]
    return rest if result.smoke and rest else column.name


def _of_paper(result: TableResult, column: Column) -> str:
    return f"{column.name}: " if result.smoke else ""


def _ours(row: RowResult, cell: Cell | None) -> str:
    if row.left_out:
        return "left out"
    if cell is None:
        return "-"
    return str(int(cell.value)) if cell.metric in TP_PRECISIONS else _number(cell.value)


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.2f}"


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _has_grid(row: RowResult) -> bool:
    return any(cell.grid for cell in row.cells)


def _replace(path: Path, text: str) -> Path:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path
