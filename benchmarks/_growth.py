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
    if "share" in setting:
        names.append(f"filter of {setting['share']}")
    if "eps" in setting:
        names.append(f"eps {setting['eps']}")
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


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines] + [""]


def _union(dictionaries: Sequence[dict[str, Any]]) -> list[str]:
    """All keys, in the order in which they come up."""
    return list(dict.fromkeys(key for d in dictionaries for key in d))


def _number(value: Any, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)


def _overview(measured: list[dict[str, Any]]) -> list[str]:
    by_name = [{_setting_name(s): s for s in size["search"]["settings"]} for size in measured]
    names = _union(by_name)
    rows = []
    for size, settings in zip(measured, by_name):
        build, search = size.get("build", {}), size["search"]
        peak = build.get("peak_anonymous")
        last = settings[list(settings)[-1]]
        rows.append(
            [
                f"{search['n']:,}",
                build.get("n_lists", ""),
                build.get("leaf_size", ""),
                _number(build.get("descriptors_per_s"), ",.0f"),
                _number(peak and peak / 1e9, ".2f"),
                f"{search['load_s']:.2f}",
                *(
                    f"{s['cpu_ms_median']:.1f} ({s['cpu_ms_p90']:.1f})" if s else ""
                    for s in map(settings.get, names)
                ),
                *(f"{last[key]:.3f}" for key in ("first", "first_weighed", "planted_recall")),
            ]
        )
    head = ["descriptors", "lists", "leaf", "built, a second", "peak GB, anonymous", "load s"]
    head += [f"ms, {name} (p90)" for name in names]
    return _table([*head, "photo first", "first, weighed votes", "planted rows found"], rows)


def _bytes(measured: list[dict[str, Any]]) -> list[str]:
    parts = _union([size["search"]["bytes_in_memory"] for size in measured])
    rows = []
    for size in measured:
        search = size["search"]
        floors, n = search["floors"], search["n"]
        scheme = size.get("build", {}).get("postings", "photos")
        rows.append(
            [
                f"{n:,}",
                *(f"{search['bytes_in_memory'].get(p, 0) / n:.3f}" for p in parts),
                f"{search['bytes_in_memory']['total'] / 1e9:.3f}",
                f"{floors['code_bits_entropy'] / 8:.3f}",
                f"{floors['id_bits']['whole lists'][scheme] / 8:.3f}",
                f"{search['memory_after_queries'].get('resident', 0) / 1e9:.2f}",
            ]
        )
    head = ["bytes a descriptor in memory", *parts, "total GB", "floor: code", "floor: id"]
    return _table([*head, "resident GB, warm"], rows)


def _schemes(measured: list[dict[str, Any]]) -> list[str]:
    """A line for each scheme, a column for each size: Elias-Fano, and the floor in brackets."""
    all_bits = [size["search"]["floors"]["id_bits"] for size in measured]
    rows = [
        ["plain", *(f"{bits['plain']:.0f}" for bits in all_bits)],
        ["features, shared out jointly", *(f"({b['features_jointly']:.2f})" for b in all_bits)],
    ]
    for scheme in (k for k in _union(all_bits) if k not in ("plain", "features_jointly")):
        for kind in ("features", "photos"):
            cells = [bits.get(scheme) for bits in all_bits]
            rows.append(
                [
                    f"{kind}, {scheme}",
                    *(f"{c[kind + '_elias_fano']:.2f} ({c[kind]:.2f})" if c else "" for c in cells),
                ]
            )
    return _table(["bits of an id (floor)", *(f"{s['search']['n']:,}" for s in measured)], rows)


def _recalls(measured: list[dict[str, Any]]) -> list[str]:
    settings = [
        (s["search"]["n"], r)
        for s in measured
        for r in s.get("recall", {"settings": []})["settings"]
    ]
    lines: list[str] = []
    if settings:
        names = [name for name in _union([r for _, r in settings]) if name != "n_probe"]
        head = ["beside exact search", "lists", *(name.replace("_", " ") for name in names)]
        rows = [[f"{n:,}", r["n_probe"], *(_number(r.get(k)) for k in names)] for n, r in settings]
        lines += _table(head, rows)
    rows = [
        [f"{size['search']['n']:,}", probes, *(f"{v:.3f}" for v in values.values())]
        for size in measured
        for probes, values in size["search"]["agreement"]["n_probe"].items()
    ]
    head = ["of what 64 lists give, found in", "lists", "first 1", "first 10", "first 64"]
    return lines + _table(head, rows)


def _peers(measured: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            f"{size['search']['n']:,}",
            m["method"],
            f"{m['cpu_ms_median']:.1f} ({m['cpu_ms_p90']:.1f})",
            f"{m['first_weighed']:.3f}",
            f"{m['planted_recall']:.3f}",
            *(_number(m.get(key)) for key in ("nearest_in_1", "recall_10", "recall_64")),
            _number(m.get("bytes_per_descriptor"), ".2f"),
        ]
        for size in measured
        for m in size.get("faiss", {}).get("methods", [])
    ]
    head = ["descriptors", "method", "ms a photo (p90)", "photo first, weighed", "planted rows"]
    head += ["nearest in 1", "recall 10", "recall 64", "bytes with ids"]
    return _table(head, rows) if rows else []


def _laws(laws: dict[str, Any]) -> list[str]:
    rows = []
    for kind, unit in (("latency", "ms"), ("memory", "bytes")):
        for name, law in laws[kind].items():
            power, affine = law.get("power"), law.get("affine")
            if power:
                fitted = f"{power['a']:.3g} n^{power['b']:.3f} {unit}"
                rows.append([f"{kind}, {name}", fitted, f"x {power['off']:.2f}"])
            if affine and affine["c"] >= 0 and affine["a"] >= 0:
                fitted = f"{affine['c']:.3g} + {affine['a']:.3g} n {unit}"
                rows.append([f"{kind}, {name}", fitted, f"x {affine['off']:.2f}"])
    for kind in ("first", "planted", "recall"):
        for name, law in laws[kind].items():
            if law.get("log"):
                p = law["log"]
                fitted = f"{p['c']:.3f} {p['s']:+.4f} log10 n"
                rows.append([f"{kind}, {name}", fitted, f"{p['off']:.3f}"])
    return _table(["law", "fitted", "farthest from it"], rows) if rows else []


def markdown(measured: list[dict[str, Any]], laws: dict[str, Any]) -> str:
    """The tables as docs have them."""
    parts = (_overview, _bytes, _schemes, _recalls, _peers)
    lines = [line for part in parts for line in part(measured)]
    return "\n".join(lines + _laws(laws)) + "\n"


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
            if law.get("affine") and law["affine"]["c"] >= 0 and law["affine"]["a"] >= 0:
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
