"""delfsearch scores: the keypoint scores of photos as heat maps."""

from __future__ import annotations

import argparse
import os
from typing import Any

from delfsearch.cli.common import (
    EXIT_OK,
    SCORES,
    CommandError,
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
        help="draw the keypoint scores over photos",
        description="Draw the score of every cell of the network's grid over the photo, as a heat "
        "map: bright is where features are kept first. With --compare, or of several photos: a row "
        "for each photo, the photo and then a heat map of all scales for each score.",
    )
    parser.add_argument("photo", metavar="PHOTO", nargs="+")
    parser.add_argument("--plot", metavar="FILE.png", required=True, help="file to write")
    parser.add_argument(
        "--level",
        type=positive_number,
        metavar="SCALE",
        help="of one photo: the pyramid scale to draw, or the one nearest to it; default 1",
    )
    parser.add_argument(
        "--compare",
        action="append",
        type=_weights_and_score,
        metavar="WEIGHTS[:SCORE]",
        help=f"a heat map of these weights and this score, {', '.join(SCORES)} (else --score); "
        "give it once for each",
    )
    parser.add_argument(
        "--merge",
        choices=("mean", "max"),
        default="mean",
        help="heat maps show the mean over all scales (default), or the best score of any",
    )
    add_extractor_options(parser)
    parser.set_defaults(run=_scores)


def _scores(arguments: argparse.Namespace) -> int:
    check_plot_target(arguments.plot)
    if arguments.compare and arguments.weights:
        raise CommandError("--compare names weights itself: leave --weights away")
    if len(arguments.photo) > 1 or arguments.compare:
        return _heat_maps(arguments)
    from delfsearch.plotting import plot_scores

    photo = arguments.photo[0]
    levels = make_extractor(arguments).score_map(photo)
    scale = 1.0 if arguments.level is None else arguments.level
    ax = plot_scores(photo, levels, scale=scale)
    save_figure(ax.figure, arguments.plot)
    n_cells = sum(level.scores.size for level in levels)
    answer(f"{photo}: {n_cells} cells at {len(levels)} scales; {arguments.plot}")
    return EXIT_OK


def _heat_maps(arguments: argparse.Namespace) -> int:
    if arguments.level is not None:
        raise CommandError("--level draws one scale of one photo; give --scales for heat maps")
    from delfsearch.extraction.scores import resolve_score
    from delfsearch.extraction.weights import load_weights
    from delfsearch.plotting import plot_heat_maps

    names, extractors = [], []
    for weights, score in arguments.compare or [(arguments.weights, None)]:
        chosen = {"weights": weights, "score": score or arguments.score}
        extractor = make_extractor(argparse.Namespace(**{**vars(arguments), **chosen}))
        # All weights are looked at before the work begins.
        has_attention = bool(load_weights(extractor.weights).attention)
        score = resolve_score(extractor.score, has_attention)
        names.append((weights or os.fspath(extractor.weights), score))
        extractors.append(extractor)
    maps = [[extractor.score_map(photo) for photo in arguments.photo] for extractor in extractors]
    columns = dict(zip(_titles(names), maps))
    save_figure(plot_heat_maps(arguments.photo, columns, merge=arguments.merge), arguments.plot)
    n_photos = len(arguments.photo)
    answer(f"{n_photos} photos, {n_photos * len(columns)} heat maps; {arguments.plot}")
    return EXIT_OK


def _titles(names: list[tuple[str, str]]) -> list[str]:
    """Return weights and score for each column; the weights without folders where that will do."""
    short = [(os.path.basename(os.path.normpath(weights)), score) for weights, score in names]
    chosen = short if len(set(short)) == len(set(names)) else names
    return [f"{weights}\n{score}" for weights, score in chosen]


def _weights_and_score(text: str) -> tuple[str, str | None]:
    weights, _, score = text.rpartition(":")
    if weights and score.lower() in SCORES:
        return weights, score.lower()
    if weights and not os.path.dirname(score) and _is_there(weights) and not _is_there(text):
        raise argparse.ArgumentTypeError(
            f"the score after the colon must be one of {', '.join(SCORES)}; got {score!r}"
        )
    return text, None


def _is_there(weights: str) -> bool:
    from delfsearch.extraction.registry import known_names

    return os.path.exists(weights) or weights in known_names()
