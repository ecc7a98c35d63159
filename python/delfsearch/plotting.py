"""Pictures of what was found: match lines, keypoint scores, ranked answers (needs matplotlib).

Every function draws into an Axes that it is given, or else into a Figure of its own with the Agg
canvas: pyplot, its global state and its windows stay out of it. Keypoints are in pixels of the
original photo whatever the size at which a photo is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from delfsearch._validation import check_integer
from delfsearch.errors import PhotoError
from delfsearch.matches import Hit

# A photo is drawn from a copy of at most this side: a plot shows no more, and 20 Mpx would be slow.
_MAX_DRAWN_SIDE = 1200
_GREEN, _RED = "#00b050", "#d00000"


class ScoreMap(Protocol):
    """What plot_scores needs to know of a score map, as DelfExtractor.score_map returns it."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """(rows, columns) float32, one score per cell."""
        ...

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of the grid of cells, pixels of the original photo."""
        ...


def plot_matches(
    query_photo: Any, database_photo: Any, hit: Hit, *, ax: Any = None, title: str | None = None
) -> Any:
    """Draw two photos side by side and a green line for each verified match between them.

    query_photo, database_photo : path, PIL image, or (h, w), (h, w, 3) uint8 array.
    hit : its inliers (m, 4) are the centres of the matched receptive fields, original pixels.
    ax : matplotlib Axes to draw into; a new figure if omitted.
    title : text above the photos; the score and path of the hit if omitted.
    Returns the Axes (save with ``ax.figure.savefig``).
    Raises ImportError without matplotlib, PhotoError where a photo cannot be read.
    Source: Fig. 7. Differs: both photos are drawn at the same height.
    """
    inliers = np.asarray(hit.inliers, np.float32).reshape(-1, 4)
    left, left_size = _drawable(query_photo)
    right, right_size = _drawable(database_photo)
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
    alpha = float(np.clip(12.0 / np.sqrt(max(len(inliers), 1)), 0.35, 0.9))
    segments = np.stack([starts, ends], axis=1)
    ax.add_collection(LineCollection(list(segments), colors=_GREEN, linewidths=1.0, alpha=alpha))
    for points in (starts, ends):
        ax.scatter(points[:, 0], points[:, 1], s=9, c=_GREEN, edgecolors="white", linewidths=0.4)
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    if title is None:
        name = "" if hit.path is None else f"  {os.path.basename(hit.path)}"
        title = f"score {hit.score:g} ({hit.n_inliers} verified matches){name}"
    _finish(ax, title)
    return ax


def plot_scores(
    photo: Any, score_map: ScoreMap, *, ax: Any = None, title: str | None = None, alpha: float = 0.6
) -> Any:
    """Draw the keypoint scores of a photo as a heat map over it, dark blue low, yellow high.

    photo : path, PIL image, or (h, w), (h, w, 3) uint8 array.
    score_map : what DelfExtractor.score_map returned for the photo.
    ax : matplotlib Axes to draw into; a new figure if omitted.
    alpha : opacity of the heat map, 0 to 1.
    Returns the Axes. Raises ImportError without matplotlib, PhotoError where it cannot be read.
    Source: Fig. 3.
    """
    image, (width, height) = _drawable(photo)
    scores = np.asarray(score_map.scores, np.float32)
    if ax is None:
        ax = _new_axes(width, height)
    _draw(ax, np.asarray(Image.fromarray(image).convert("L").convert("RGB")), (width, height))
    if scores.size:
        left, top, right, bottom = score_map.bounds
        # + 0.5: pixel centres are at integers, the drawing's left edge is at 0.
        extent = (left + 0.5, right + 0.5, bottom + 0.5, top + 0.5)
        drawn = ax.imshow(
            scores, extent=extent, cmap="viridis", alpha=alpha, interpolation="bilinear"
        )
        ax.figure.colorbar(drawn, ax=ax, fraction=0.04, pad=0.01)
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    _finish(ax, "keypoint score" if title is None else title)
    return ax


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

    query_photo : path, PIL image, or (h, w), (h, w, 3) uint8 array.
    hits : the answers, best first; may be empty ("no match").
    relevant : for each hit, whether it is right; no frames if omitted.
    n_shown : at most so many answers are drawn.
    photo_of : function from a Hit to its photo; opens ``hit.path`` if omitted.
    Returns the matplotlib Figure. Raises ImportError without matplotlib, PhotoError, ValueError.
    Source: Fig. 5, 6.
    """
    n_shown = check_integer(n_shown, "n_shown", minimum=1)
    shown = list(hits[:n_shown])
    if relevant is not None and len(relevant) < len(shown):
        raise ValueError(f"relevant must hold one value per hit ({len(hits)}); got {len(relevant)}")
    n_panels = 1 + max(len(shown), 1)
    figure = _new_figure(2.6 * n_panels, 2.9)
    axes = figure.subplots(1, n_panels, squeeze=False)[0]
    _panel(axes[0], query_photo, "query", None)
    if not shown:
        axes[1].text(0.5, 0.5, "no match", ha="center", va="center", transform=axes[1].transAxes)
        axes[1].set_axis_off()
    for rank, (hit, panel) in enumerate(zip(shown, axes[1:])):
        if photo_of is None and hit.path is None:
            raise ValueError(f"hit {hit.id} has no path; pass photo_of to say where its photo is")
        frame = None if relevant is None else (_GREEN if relevant[rank] else _RED)
        label = f"{rank + 1}: score {hit.score:g}"
        label += "" if hit.label is None else f"\n{hit.label}"
        _panel(panel, hit.path if photo_of is None else photo_of(hit), label, frame)
    if title is not None:
        figure.suptitle(_printable(title), parse_math=False)
    return figure


def _new_figure(width_inches: float, height_inches: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib, which is not installed: pip install delfsearch[plot]"
        ) from error
    figure = Figure(figsize=(width_inches, height_inches), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _new_axes(width: float, height: float) -> Any:
    # 10 inches along the longer side, and room for a title.
    zoom = 10.0 / max(width, height)
    return _new_figure(max(width * zoom, 3.0), max(height * zoom, 1.5) + 0.5).add_subplot()


def _draw(
    ax: Any, image: NDArray[np.uint8], size: tuple[int, int], zoom: float = 1.0, shift: float = 0.0
) -> None:
    extent = (shift, shift + size[0] * zoom, size[1] * zoom, 0.0)
    ax.imshow(image, extent=extent, interpolation="antialiased")


def _panel(ax: Any, photo: Any, text: str, frame: str | None) -> None:
    image, size = _drawable(photo)
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


def _printable(text: str) -> str:
    # Names that are not valid UTF-8 arrive with lone surrogates, which no font can draw.
    return text.encode("utf-8", "replace").decode("utf-8")


def _drawable(photo: Any) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return an RGB copy small enough to draw, and the (width, height) of the original."""
    image = _open(photo)
    size = image.size
    if max(size) > _MAX_DRAWN_SIDE:
        image.thumbnail((_MAX_DRAWN_SIDE, _MAX_DRAWN_SIDE))
    return np.asarray(image, np.uint8), size


def _open(photo: Any) -> Image.Image:
    """Return an RGB copy of a path, PIL image or uint8 array, EXIF orientation applied."""
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim not in (2, 3):
            raise ValueError(
                "a photo to draw must be uint8 of shape (h, w) or (h, w, 3); "
                f"got {photo.dtype} of shape {photo.shape}"
            )
        return Image.fromarray(photo).convert("RGB")
    if isinstance(photo, Image.Image):
        return ImageOps.exif_transpose(photo).convert("RGB")
    try:
        with Image.open(photo) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise PhotoError(f"cannot draw {os.fspath(photo)}: {error}") from error
