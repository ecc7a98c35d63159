"""How latency, recall and memory grow with the number of descriptors: table, law, plot."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import write_json

Point = tuple[int, float]


def power_law(points: Sequence[Point]) -> dict[str, float] | None:
    """a and b of y = a n^b, by least squares of the logarithms; off : the largest factor between
    a point and the law. None with less than two points."""
    kept = [(n, y) for n, y in points if y > 0]
    if len(kept) < 2:
        return None
    n, y = np.log(np.array(kept, np.float64)).T
    b, a = np.polyfit(n, y, 1)
    off = float(np.exp(np.abs(a + b * n - y).max()))
    return {"a": float(np.exp(a)), "b": float(b), "off": off}


def affine_law(points: Sequence[Point]) -> dict[str, float] | None:
    """a and c of y = c + a n: a fixed cost, and one a descriptor; by relative errors."""
    if len(points) < 3:
        return None
    n, y = np.array(points, np.float64).T
    if (y <= 0).any():
        return None
    solution = np.linalg.lstsq(np.stack([1 / y, n / y], 1), np.ones(len(y)), rcond=None)[0]
    off = np.exp(np.abs(np.log(np.maximum(1e-12, solution[0] + solution[1] * n) / y)).max())
    return {"c": float(solution[0]), "a": float(solution[1]), "off": float(off)}


def log_law(points: Sequence[Point]) -> dict[str, float] | None:
    """c and s of y = c + s log10(n): what a share gains or loses with each factor of ten."""
    if len(points) < 2:
        return None
    n, y = np.array(points, np.float64).T
    s, c = np.polyfit(np.log10(n), y, 1)
    return {"c": float(c), "s": float(s), "off": float(np.abs(c + s * np.log10(n) - y).max())}


def collect(sizes: Sequence[tuple[int, Path]]) -> list[dict[str, Any]]:
    """What has been measured so far, of each size that has been searched."""
    found = []
    for size, folder in sizes:
        steps = {
            step: json.loads((folder / f"{step}.json").read_text())
            for step in ("build", "search", "recall", "faiss")
            if (folder / f"{step}.json").exists()
        }
        if "search" in steps:
            found.append({"size": size, **steps})
    return found


def _setting_name(setting: dict[str, Any]) -> str:
    names = [f"k {setting['k']}", f"{setting['n_probe']} lists"]
    if "max_leaves" in setting:
        names.append(f"{setting['max_leaves']} leaves")
    return ", ".join(names)


def _nested(measured: list[dict[str, Any]], value: Any) -> dict[str, list[Point]]:
    """value(setting) of each setting of each size."""
    series: dict[str, list[Point]] = {}
    for size in measured:
        for setting in size["search"]["settings"]:
            name = _setting_name(setting)
            series.setdefault(name, []).append((size["search"]["n"], value(setting)))
    return series


def series_of(measured: list[dict[str, Any]]) -> dict[str, dict[str, list[Point]]]:
    """Curves by what they show."""
    recall: dict[str, list[Point]] = {}
    for size in measured:
        for row in size.get("recall", {}).get("settings", []):
            for key, value in row.items():
                if key != "n_probe":
                    name = f"{key.replace('_', ' ')}, {row['n_probe']} lists"
                    recall.setdefault(name, []).append((size["search"]["n"], value))
    planted = _nested(measured, lambda s: s["planted_recall"])
    memory: dict[str, list[Point]] = {}
    for size in measured:
        for part, nbytes in size["search"]["bytes_in_memory"].items():
            memory.setdefault(part, []).append((size["search"]["n"], nbytes))
    return {
        "latency": _nested(measured, lambda s: s["cpu_ms_median"]),
        "first": _nested(measured, lambda s: s["first_weighed"]),
        "planted": planted,
        "recall": recall,
        "memory": memory,
    }


def markdown(measured: list[dict[str, Any]], laws: dict[str, Any]) -> str:
    """The tables as docs have them."""
    lines = []

    def row(*cells: Any) -> None:
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")

    def head(*cells: str) -> None:
        row(*cells)
        lines.append("|---" * len(cells) + "|")

    settings = [s for s in measured[0]["search"]["settings"]]
    head(
        "descriptors", "built, a second", "peak GB (anonymous)", "load s",
        *(f"ms, {_setting_name(s)} (p90)" for s in settings),
        "planted photo first", "by weighed votes", "planted rows found",
    )  # fmt: skip
    for size in measured:
        build, search = size.get("build", {}), size["search"]
        last = search["settings"][len(settings) - 1]
        row(
            f"{search['n']:,}",
            f"{build['descriptors_per_s']:,.0f}" if build else "",
            f"{build['peak_anonymous'] / 1e9:.2f}" if build else "",
            f"{search['load_s']:.2f}",
            *(f"{s['cpu_ms_median']:.1f} ({s['cpu_ms_p90']:.1f})" for s in search["settings"]),
            f"{last['first']:.3f}",
            f"{last['first_weighed']:.3f}",
            f"{last['planted_recall']:.3f}",
        )
    parts = list(measured[0]["search"]["bytes_in_memory"])
    lines.append("")
    head("bytes a descriptor in memory", *parts, "floor: code", "floor: id", "resident GB, warm")
    for size in measured:
        search = size["search"]
        n, ids = search["n"], search["floors"]["id_bits"]
        scheme = size.get("build", {}).get("postings", "photos")
        row(
            f"{n:,}",
            *(f"{search['bytes_in_memory'][p] / n:.3f}" for p in parts),
            f"{search['floors']['code_bits_entropy'] / 8:.3f}",
            f"{ids['whole lists'][scheme] / 8:.3f}",
            f"{search['memory_after_queries'].get('resident', 0) / 1e9:.2f}",
        )
    lines.append("")
    schemes = [
        k for k, v in measured[0]["search"]["floors"]["id_bits"].items() if isinstance(v, dict)
    ]
    head(
        "bits of an id", "features jointly, floor",
        *(f"{kind}, {s}: Elias-Fano (floor)" for s in schemes for kind in ("features", "photos")),
    )  # fmt: skip
    for size in measured:
        ids = size["search"]["floors"]["id_bits"]
        row(
            f"{size['search']['n']:,}",
            f"{ids['features_jointly']:.2f}",
            *(
                f"{ids[s][kind + '_elias_fano']:.2f} ({ids[s][kind]:.2f})"
                for s in schemes
                for kind in ("features", "photos")
            ),
        )
    lines.append("")
    if any("recall" in size for size in measured):
        names = [k for k in measured[0].get("recall", {"settings": [{}]})["settings"][0]]
        head("beside exact search", *(n.replace("_", " ") for n in names))
        for size in measured:
            for setting in size.get("recall", {}).get("settings", []):
                row(
                    f"{size['search']['n']:,}",
                    setting["n_probe"],
                    *(f"{v:.3f}" for k, v in setting.items() if k != "n_probe"),
                )
        lines.append("")
    head("first few of 64 lists found in few", *(f"first {r}" for r in (1, 10, 64)))
    for size in measured:
        for probes, values in size["search"]["agreement"]["n_probe"].items():
            row(f"{size['search']['n']:,}, {probes} lists", *(f"{v:.3f}" for v in values.values()))
    lines.append("")
    if any("faiss" in size for size in measured):
        head(
            "method", "descriptors", "ms a photo (p90)", "planted first", "rows found", "recall 64"
        )
        for size in measured:
            for m in size.get("faiss", {}).get("methods", []):
                row(
                    m["method"],
                    f"{size['search']['n']:,}",
                    f"{m['cpu_ms_median']:.1f} ({m['cpu_ms_p90']:.1f})",
                    f"{m['first_weighed']:.3f}",
                    f"{m['planted_recall']:.3f}",
                    f"{m['recall_64']:.3f}" if "recall_64" in m else "",
                )
        lines.append("")
    head("law", "fitted", "farthest from it")
    for kind, unit in (("latency", "ms"), ("memory", "bytes")):
        for name, law in laws[kind].items():
            if law.get("power"):
                p = law["power"]
                row(f"{kind}, {name}", f"{p['a']:.3g} n^{p['b']:.3f} {unit}", f"x {p['off']:.2f}")
            if law.get("affine"):
                p = law["affine"]
                row(
                    f"{kind}, {name}",
                    f"{p['c']:.3g} + {p['a']:.3g} n {unit}",
                    f"x {p['off']:.2f}",
                )
    for kind in ("first", "planted", "recall"):
        for name, law in laws[kind].items():
            if law.get("log"):
                p = law["log"]
                row(f"{kind}, {name}", f"{p['c']:.3f} {p['s']:+.4f} log10 n", f"{p['off']:.3f}")
    return "\n".join(lines) + "\n"


def plot(series: dict[str, dict[str, list[Point]]], laws: dict[str, Any], path: Path) -> None:
    """Latency, recall and memory over the number of descriptors, with the laws dashed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    titles = "CPU ms a query photo, one thread", "share found", "bytes in memory"
    shown = (
        series["latency"],
        {f"planted rows, {k}": v for k, v in series["planted"].items()}
        | {f"photo first, {k}": v for k, v in series["first"].items()}
        | {k: v for k, v in series["recall"].items() if k.startswith("recall")},
        {k: v for k, v in series["memory"].items() if k != "codebooks"},
    )
    for ax, title, curves in zip(axes, titles, shown):
        for name, points in curves.items():
            n, y = zip(*points)
            (line,) = ax.plot(n, y, "o-", ms=4, lw=1.2, label=name)
            kind = "latency" if ax is axes[0] else "memory" if ax is axes[2] else ""
            law = laws.get(kind, {}).get(name, {})
            fine = np.geomspace(min(n), max(n), 50)
            if law.get("affine"):
                fitted = law["affine"]["c"] + law["affine"]["a"] * fine
                ax.plot(fine, fitted, "--", color=line.get_color(), lw=0.8)
        ax.set_xscale("log")
        if ax is not axes[1]:
            ax.set_yscale("log")
        else:
            ax.set_ylim(0, 1.02)
        ax.set_xlabel("descriptors")
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=6)
    figure.savefig(path)


def write_growth(folder: Path, sizes: Sequence[tuple[int, Path]]) -> None:
    """Write growth.json, growth.md and growth.svg of what there is."""
    measured = collect(sizes)
    if not measured:
        return
    series = series_of(measured)
    laws = {
        kind: {
            name: {"log": log_law(points)}
            if kind in ("first", "planted", "recall")
            else {"power": power_law(points), "affine": affine_law(points)}
            for name, points in curves.items()
        }
        for kind, curves in series.items()
    }
    once = {
        step: json.loads((folder / f"{step}.json").read_text())
        for step in ("prepare", "model")
        if (folder / f"{step}.json").exists()
    }
    result = {**once, "sizes": measured, "series": series, "laws": laws}
    write_json(str(folder / "growth.json"), result)
    (folder / "growth.md").write_text(markdown(measured, laws))
    plot(series, laws, folder / "growth.svg")
