"""What the commands print: answers on standard output, everything about the run on the other."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from delfsearch.matches import Hit

JSON_VERSION = 1


def say(text: str) -> None:
    """Print a line about the run on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def answer(text: str, *, flush: bool = False) -> None:
    """Print a line of the answer on standard output."""
    sys.stdout.write(text + "\n")
    if flush:
        sys.stdout.flush()


def counted(n: int, thing: str) -> str:
    """Return '1 photo', '2 photos'."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def format_bytes(n_bytes: float) -> str:
    """Return a size as people say it, in decimal units: '512 B', '34.2 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5 or unit == "GB":
            break
        n_bytes /= 1000.0
    return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"


def hits_as_json(query: str, hits: Sequence[Hit]) -> str:
    """Return the answer to one query as one line of JSON.

    {"version": 1, "query", "hits": [{"id", "path", "label", "score", "n_inliers", "affine"}]};
    affine is two rows of three numbers, query pixels to database pixels. Keys may be added later,
    none is renamed. ASCII, so that any pipe carries it.
    """
    document: dict[str, Any] = {
        "version": JSON_VERSION,
        "query": query,
        "hits": [
            {
                "id": int(hit.id),
                "path": hit.path,
                "label": hit.label,
                "score": float(hit.score),
                "n_inliers": int(hit.n_inliers),
                "affine": [[float(value) for value in row] for row in hit.affine],
            }
            for hit in hits
        ],
    }
    return json.dumps(document, allow_nan=False)


def hits_as_text(query: str, hits: Sequence[Hit], seconds: float) -> str:
    """Return the answer to one query for people: best first, grouped by place where labelled."""
    took = f"{seconds:.2f} s"
    if not hits:
        return f"{query}: no match ({took})"
    lines = [f"{query}: {counted(len(hits), 'photo')} ({took})"]
    ranks = {id(hit): rank for rank, hit in enumerate(hits, start=1)}
    for label, group in group_by_label(hits):
        indent = "  "
        if label is not None:
            best = max(hit.n_inliers for hit in group)
            lines.append(f"  {label}: {counted(len(group), 'photo')}, up to {best} inliers")
            indent = "    "
        for hit in group:
            place = hit.path if hit.path is not None else "(no path)"
            lines.append(
                f"{indent}{ranks[id(hit)]:>3}. {hit.n_inliers:>4} inliers  {place}  #{hit.id}"
            )
    return "\n".join(lines)


def group_by_label(hits: Sequence[Hit]) -> list[tuple[str | None, list[Hit]]]:
    """Group hits by their label, groups in the order of their best hit; no label, no grouping."""
    groups: list[tuple[str | None, list[Hit]]] = []
    for hit in hits:
        for label, group in groups:
            if hit.label is not None and label == hit.label:
                group.append(hit)
                break
        else:
            if hit.label is None and groups and groups[-1][0] is None:
                groups[-1][1].append(hit)
            else:
                groups.append((hit.label, [hit]))
    return groups
