"""delfsearch scores: the keypoint scores of one photo."""

from __future__ import annotations

import argparse
from typing import Any

from delfsearch.cli.common import (
    EXIT_OK,
    add_extractor_options,
    check_plot_target,
    make_extractor,
    positive_number,
    save_figure,
)
from delfsearch.cli.output import answer


def add_parsers(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "scores",
        help="draw the keypoint scores over a photo",
        description="Draw the score of every cell of the network's grid over the photo, as a heat "
        "map: bright is where features are kept first.",
    )
    parser.add_argument("photo", metavar="PHOTO")
    parser.add_argument("--plot", metavar="FILE.png", required=True, help="file to write")
    parser.add_argument(
        "--level",
        type=positive_number,
        default=1.0,
        metavar="SCALE",
        help="the pyramid scale to draw, or the one nearest to it; default 1",
    )
    add_extractor_options(parser)
    parser.set_defaults(run=_scores)


def _scores(arguments: argparse.Namespace) -> int:
    check_plot_target(arguments.plot)
    from delfsearch.plotting import plot_scores

    levels = make_extractor(arguments).score_map(arguments.photo)
    ax = plot_scores(arguments.photo, levels, scale=arguments.level)
    save_figure(ax.figure, arguments.plot)
    n_cells = sum(level.scores.size for level in levels)
    answer(f"{arguments.photo}: {n_cells} cells at {len(levels)} scales; {arguments.plot}")
    return EXIT_OK
