"""Pictures: match lines, keypoint scores, ranked answers, training curves (needs matplotlib).

Every function draws into an Axes that it is given, or else into a Figure of its own with the Agg
canvas: pyplot, its global state and its windows stay out of it. (In a notebook end the cell with
the figure, ``ax.figure``, after ``%matplotlib inline``.) Keypoints are in pixels of the
original photo whatever the size at which a photo is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from delfsearch._validation import check_integer, check_real
from delfsearch.extraction.photos import open_photo
from delfsearch.extraction.score_maps import ScoreLevel, merge_levels
from delfsearch.matches import Hit

# A photo is drawn from a copy of at most this side: a plot shows no more, and 20 Mpx would be slow.
_MAX_DRAWN_SIDE = 1200
_GREEN, _RED, _BLUE = "#00b050", "#d00000", "#0060c0"


def plot_matches(
    query_photo: Any,
    database_photo: Any,
    hit: Hit,
    *,
    ax: Any = None,
    title: str | None = None,
    color: str | None = None,
) -> Any:
    """Draw two photos side by side and a line for each verified match between them.

    query_photo, database_photo : path, PIL image or array, as DelfExtractor takes it.
    hit : its inliers (m, 4) are the centres of the matched receptive fields, original pixels.
    ax : matplotlib Axes to draw into; a new figure if omitted.
    title : text above the photos; the score and path of the hit if omitted.
    color : of the lines, as matplotlib names it; green if omitted.
    Returns the Axes (save with ``ax.figure.savefig``).
    Raises ImportError without matplotlib, PhotoError where a photo cannot be read.
    Source: Fig. 7. Differs: both photos are drawn at the same height.
    """
    inliers = np.asarray(hit.inliers, np.float32).reshape(-1, 4)
    left, left_size = open_photo(query_photo, max_side=_MAX_DRAWN_SIDE)
    right, right_size = open_photo(database_photo, max_side=_MAX_DRAWN_SIDE)
    height = float(max(left_size[1], right_size[1]))
    left_zoom, right_zoom = height / left_size[1], height / right_size[1]
    gap = 0.02 * height
    shift = left_size[0] * left_zoom + gap
    width = shift + right_size[0] * right_zoom
    if ax is None:
        ax = _new_axes(width, height)
    _draw(ax, left, left_size, left_zoom, 0.0)
    _draw(ax, right, right_size, right_zoom, shift)

    from matplotlib.collections import LineCollection

    starts = (inliers[:, :2] + 0.5) * left_zoom
    ends = (inliers[:, 2:] + 0.5) * right_zoom + np.array([shift, 0.0], np.float32)
    # Hundreds of matches would cover the photos: lines fade as they get more.
    alpha = float(np.clip(60.0 / max(len(inliers), 1), 0.2, 0.9))
    color = _GREEN if color is None else color
    segments = np.stack([starts, ends], axis=1)
    ax.add_collection(LineCollection(list(segments), colors=color, linewidths=0.8, alpha=alpha))
    for points in (starts, ends):
        ax.scatter(points[:, 0], points[:, 1], s=9, color=color, edgecolors="white", linewidths=0.4)
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    if title is None:
        name = "" if hit.path is None else f"  {os.path.basename(hit.path)}"
        title = f"score {hit.score:g} ({hit.n_inliers} verified matches){name}"
    _finish(ax, title)
    return ax


def plot_scores(
    photo: Any,
    levels: Sequence[ScoreLevel],
    *,
    scale: float = 1.0,
    ax: Any = None,
    title: str | None = None,
    alpha: float = 0.6,
) -> Any:
    """Draw the keypoint scores of a photo as a heat map over it, dark blue low, yellow high.

    photo : path, PIL image or array, as DelfExtractor takes it.
    levels : what DelfExtractor.score_map returned for the photo.
    scale : the level of the pyramid scale nearest to this one is drawn.
    ax : matplotlib Axes to draw into; a new figure if omitted.
    title : text above; the scale if omitted. alpha : opacity of the heat map, 0 to 1.
    Returns the Axes. Raises ImportError without matplotlib, PhotoError where it cannot be read.
    Source: Fig. 3.
    """
    check_real(scale, "scale", minimum=0.0, exclusive_minimum=True)
    if not levels:
        raise ValueError("levels must hold at least one pyramid level; got none")
    level = min(levels, key=lambda candidate: abs(np.log(candidate.scale / scale)))
    image, size = open_photo(photo, max_side=_MAX_DRAWN_SIDE)
    if ax is None:
        ax = _new_axes(*size)
    _draw(ax, image.convert("L").convert("RGB"), size)
    scores = np.asarray(level.scores, np.float32)
    if scores.size:
        extent = _grid_extent(np.asarray(level.keypoints_xy, np.float32), size)
        drawn = ax.imshow(
            scores, extent=extent, cmap="viridis", alpha=alpha, interpolation="bilinear"
        )
        ax.figure.colorbar(drawn, ax=ax, fraction=0.04, pad=0.01, shrink=0.85)
    ax.set_xlim(0, size[0])
    ax.set_ylim(size[1], 0)
    _finish(ax, f"keypoint score at pyramid scale {level.scale:g}" if title is None else title)
    return ax


def plot_heat_maps(
    photos: Sequence[Any],
    score_maps: Mapping[str, Sequence[Sequence[ScoreLevel]]],
    *,
    merge: str = "mean",
    alpha: float = 0.6,
    title: str | None = None,
) -> Any:
    """Draw a row for each photo: the photo, then the heat map of each of several scores over it.

    photos : paths, PIL images or arrays, as DelfExtractor takes them.
    score_maps : by the name that stands above a column, such as "imagenet, l2", what
        DelfExtractor.score_map returned for each photo.
    merge : how the levels become one map, "mean" or "max", see merge_levels.
    alpha : opacity of the heat maps, 0 to 1. title : text above.
    Every panel has colours of its own, dark blue for its lowest score, yellow for its highest.
    Returns the matplotlib Figure. Raises ImportError without matplotlib, PhotoError where a photo
    cannot be read, ValueError where a column has not one map for each photo.
    Source: Fig. 3. Differs: maps lie over the photo in grey, all scales merged.
    """
    if not photos or not score_maps:
        raise ValueError(
            f"photos and score_maps must not be empty; got {len(photos)} and {len(score_maps)}"
        )
    for name, maps in score_maps.items():
        if len(maps) != len(photos):
            raise ValueError(
                f"score_maps[{name!r}] must have one map per photo ({len(photos)}); got {len(maps)}"
            )
    opened = [open_photo(photo, max_side=_MAX_DRAWN_SIDE) for photo in photos]
    # Panels are 3 inches wide; a row is as high as its photo, and room for the names above.
    heights = [3.0 * size[1] / size[0] for _, size in opened]
    figure = new_figure(3.0 * (1 + len(score_maps)), sum(heights) + 0.3 * len(photos))
    axes = figure.subplots(len(photos), 1 + len(score_maps), squeeze=False, height_ratios=heights)
    for row, (photo, (image, size)) in enumerate(zip(photos, opened)):
        _draw(axes[row, 0], image, size)
        is_path = isinstance(photo, (str, os.PathLike))
        _finish(axes[row, 0], os.path.basename(photo) if is_path else "")
        grey = image.convert("L").convert("RGB")
        for panel, (name, maps) in zip(axes[row, 1:], score_maps.items()):
            _draw(panel, grey, size)
            merged = merge_levels(maps[row], size, map_size=image.size, merge=merge)
            drawn = panel.imshow(
                merged,
                extent=(0, size[0], size[1], 0),
                cmap="viridis",
                alpha=alpha,
                interpolation="bilinear",
            )
            figure.colorbar(drawn, ax=panel, fraction=0.04, pad=0.01, shrink=0.85)
            _finish(panel, name if row == 0 else "")
    if title is not None:
        figure.suptitle(_printable(title), parse_math=False)
    return figure


def plot_ranked(
    query_photo: Any,
    hits: Sequence[Hit],
    *,
    relevant: Sequence[bool] | None = None,
    n_shown: int = 5,
    photo_of: Any = None,
    title: str | None = None,
) -> Any:
    """Draw a query and its first answers in a row, framed green where right and red where wrong.

    query_photo : path, PIL image or array, as DelfExtractor takes it.
    hits : the answers, best first; may be empty ("no match").
    relevant : for each hit, whether it is right; no frames if omitted.
    n_shown : at most so many answers are drawn.
    photo_of : function from a Hit to its photo, as ImageSearch.path_of; ``hit.path`` is opened, as
        a path from the working directory, if omitted.
    Returns the matplotlib Figure. Raises ImportError without matplotlib, PhotoError, ValueError.
    Source: Fig. 5, 6.
    """
    n_shown = check_integer(n_shown, "n_shown", minimum=1)
    shown = list(hits[:n_shown])
    if relevant is not None and len(relevant) < len(shown):
        raise ValueError(f"relevant must hold one value per hit ({len(hits)}); got {len(relevant)}")
    n_panels = 1 + max(len(shown), 1)
    figure = new_figure(2.6 * n_panels, 2.9)
    axes = figure.subplots(1, n_panels, squeeze=False)[0]
    _panel(axes[0], query_photo, "query", None)
    if not shown:
        axes[1].text(0.5, 0.5, "no match", ha="center", va="center", transform=axes[1].transAxes)
        axes[1].set_axis_off()
    for rank, (hit, panel) in enumerate(zip(shown, axes[1:])):
        if photo_of is None and hit.path is None:
            raise ValueError(f"hit {hit.id} has no path; pass photo_of to say where its photo is")
        if photo_of is None and not os.path.exists(str(hit.path)):
            raise ValueError(
                f"hit {hit.id} has the path {hit.path!r}, which is not there; pass "
                "photo_of=search.path_of, which knows the folder that paths are relative to"
            )
        frame = None if relevant is None else (_GREEN if relevant[rank] else _RED)
        label = f"{rank + 1}: score {hit.score:g}"
        label += "" if hit.label is None else f"\n{hit.label}"
        _panel(panel, hit.path if photo_of is None else photo_of(hit), label, frame)
    if title is not None:
        figure.suptitle(_printable(title), parse_math=False)
    return figure


def plot_training_curves(curves: Mapping[str, NDArray[Any]], *, title: str | None = None) -> Any:
    """Draw the training curves: loss and accuracy by step, each step thin, their course bold.

    curves : columns by name, as training.read_curves returns them. title : text above.
    Returns the matplotlib Figure. Raises ImportError without matplotlib, ValueError without steps.
    """
    steps = np.asarray(curves["step"])
    if not steps.size:
        raise ValueError("curves must hold at least one step; got none")
    figure = new_figure(8.0, 3.2)
    panels = figure.subplots(1, 2)
    for panel, name in zip(panels, ("loss", "accuracy")):
        lines = {"descriptor": name, "attention": f"attention_{name}"}
        if lines["attention"] not in curves:
            lines = {"": name}
        for color, (label, column) in zip((_GREEN, _BLUE), lines.items()):
            values = np.asarray(curves[column], np.float64)
            panel.plot(steps, values, color=color, alpha=0.25, linewidth=0.6)
            panel.plot(steps, _course(values), color=color, linewidth=1.6, label=label)
        panel.set_xlabel("step")
        panel.set_ylabel(name)
        panel.set_ylim(bottom=0.0)
        if len(lines) > 1:
            panel.legend(frameon=False)
    if title is not None:
        figure.suptitle(_printable(title), parse_math=False)
    return figure


def _course(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over a twentieth of the steps around each."""
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    rows = np.arange(len(values))
    begin, end = np.maximum(rows - half, 0), np.minimum(rows + half + 1, len(values))
    course: NDArray[np.float64] = (sums[end] - sums[begin]) / (end - begin)
    return course


def new_figure(
    width_inches: float,
    height_inches: float,
    *,
    layout: Literal["constrained"] | None = "constrained",
) -> Any:
    """Return an empty matplotlib Figure that belongs to no window.

    layout : of matplotlib; None where the caller places the axes (much faster where they are
    many). Raises ImportError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib, which is not installed: pip install delfsearch[plot]"
        ) from error
    figure = Figure(figsize=(width_inches, height_inches), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _new_axes(width: float, height: float) -> Any:
    # 10 inches along the longer side, and room for a title.
    zoom = 10.0 / max(width, height)
    return new_figure(max(width * zoom, 3.0), max(height * zoom, 1.5) + 0.5).add_subplot()


def _draw(
    ax: Any, image: Image.Image, size: tuple[int, int], zoom: float = 1.0, shift: float = 0.0
) -> None:
    extent = (shift, shift + size[0] * zoom, size[1] * zoom, 0.0)
    ax.imshow(np.asarray(image), extent=extent, interpolation="antialiased")


def _panel(ax: Any, photo: Any, text: str, frame: str | None) -> None:
    image, size = open_photo(photo, max_side=_MAX_DRAWN_SIDE)
    _draw(ax, image, size)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(frame is not None)
        spine.set_color(frame)
        spine.set_linewidth(4)
    ax.set_title(_printable(text), fontsize=9, parse_math=False)


def _finish(ax: Any, title: str) -> None:
    ax.set_aspect("equal")
    ax.set_axis_off()
    # A file name may hold a dollar sign, which matplotlib would read as mathematics.
    ax.set_title(_printable(title), fontsize=10, parse_math=False)


def _grid_extent(
    centres_xy: NDArray[np.float32], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return (left, right, bottom, top) of a grid of cells; pixel centres are at halves here."""
    sides = []
    for axis, centres in enumerate((centres_xy[0, :, 0], centres_xy[:, 0, 1])):
        # A single row or column says nothing of its step: it stands for the whole side.
        n, first, last = len(centres), float(centres[0]) + 0.5, float(centres[-1]) + 0.5
        half = (last - first) / (n - 1) / 2 if n > 1 else size[axis] / 2
        sides.append((first - half, last + half))
    (left, right), (top, bottom) = sides
    return left, right, bottom, top


def _printable(text: str) -> str:
    # Names that are not valid UTF-8 arrive with lone surrogates, which no font can draw.
    return text.encode("utf-8", "replace").decode("utf-8")
