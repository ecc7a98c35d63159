"""What the training commands share: photos, optimisation and run, as arguments and as objects."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delfsearch.cli.common import (
    CommandError,
    add_machine_options,
    add_progress_options,
    ensure_weights,
    positive,
    positive_number,
)

if TYPE_CHECKING:
    from delfsearch.training import LabelledPhotos, Optimization, RunOptions

DEFAULT_WEIGHTS = "resnet50-imagenet"


def add_photos(parser: argparse.ArgumentParser, *, small_classes: bool = True) -> None:
    """Add PHOTOS and how it is read; small_classes : with what is done about them."""
    parser.add_argument(
        "photos",
        metavar="PHOTOS",
        help="a folder with a subfolder for each class, a CSV table (path, label), Google "
        "Landmarks v2, or a folder in the library's own format",
    )
    group = parser.add_argument_group("photos")
    group.add_argument(
        "--format",
        choices=("auto", "image_folder", "csv", "google_landmarks", "library"),
        default="auto",
        help="of PHOTOS; default: what it looks like",
    )
    if small_classes:
        group.add_argument(
            "--small-classes",
            choices=("error", "drop", "vary"),
            default="error",
            help="classes with too few photos: refuse (default), leave out, or keep in strongly "
            "varied views",
        )
        group.add_argument(
            "--min-photos", type=positive, default=2, metavar="N", help="of a class; default 2"
        )
    group.add_argument(
        "--clean", action="store_true", help="Google Landmarks: train_clean.csv, not train.csv"
    )
    own = parser.add_argument_group("photos in the library's own format")
    own.add_argument("--scenes", metavar="FILE", help="only these scenes, one a line")
    own.add_argument("--without-scenes", metavar="FILE", help="not these scenes, one a line")
    own.add_argument("--without-photos", metavar="FILE", help="not these photos, one a line")
    own.add_argument("--subsets", metavar="A,B", help="only scenes of these subsets")
    own.add_argument(
        "--distractors",
        choices=("none", "no_queries", "all"),
        default="none",
        help="distractor photos, each a class of its own in strongly varied views: none "
        "(default), those that are no distractor queries, or all",
    )


def add_training(
    parser: argparse.ArgumentParser,
    *,
    results: bool = True,
    classifies: bool = True,
    keeps_photos: bool = True,
) -> None:
    """Add optimisation and run.

    results : with what is done with the result. classifies : with what is a classifier's alone.
    keeps_photos : with where they are kept.
    """
    _add_optimization(parser, classifies)
    _add_run(parser, results, keeps_photos)


def _add_optimization(parser: argparse.ArgumentParser, classifies: bool) -> None:
    group = parser.add_argument_group("optimisation (defaults: docs/training.md)")
    for name, kind, text in (
        ("epochs", positive, "times that all photos are shown"),
        ("batch-size", positive, "photos of a step"),
        ("learning-rate", positive_number, "at its highest"),
        ("classifier-factor", positive_number, "learning rate of the classifier over the rest's"),
        ("momentum", float, "of SGD"),
        ("weight-decay", float, "of kernels"),
        ("warmup-epochs", float, "of rising learning rate"),
        ("drop-every", positive_number, "epochs, with --schedule step"),
        ("drop-factor", positive_number, "with --schedule step"),
        ("clip-norm", float, "longest gradient; 0 clips none"),
        ("label-smoothing", float, "share of the target for all classes"),
    ):
        if name in ("classifier-factor", "label-smoothing") and not classifies:
            continue
        group.add_argument(f"--{name}", type=kind, metavar="N", help=text)
    group.add_argument("--optimizer", choices=("sgd", "adamw"))
    group.add_argument("--schedule", choices=("linear", "cosine", "step", "constant"))
    group.add_argument("--sampling", choices=("photos", "classes"), help="how batches are drawn")


def add_licence(group: Any) -> None:
    """Add --licence."""
    group.add_argument(
        "--licence",
        metavar="TEXT",
        help="of the photos, for the weights' metadata, beside that of the weights begun with; "
        "default: not stated",
    )


def _add_run(parser: argparse.ArgumentParser, results: bool, keeps_photos: bool) -> None:
    group = parser.add_argument_group("run")
    add_licence(group)
    group.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="random_state; default 0")
    if keeps_photos:
        group.add_argument(
            "--keep-photos",
            choices=("auto", "ram", "disk", "none"),
            default="auto",
            help="where decoded photos are kept",
        )
    group.add_argument("--checkpoint-every", type=positive, metavar="STEPS")
    group.add_argument("--checkpoint-seconds", type=positive_number, metavar="S")
    group.add_argument("--tensorboard", action="store_true", help="write curves for TensorBoard")
    if results:
        group.add_argument("--half", action="store_true", help="weights in half precision")
        group.add_argument("--plot", metavar="FILE.png", help="draw the training curves")
    add_machine_options(group)
    add_progress_options(parser)


def optimization_of(arguments: argparse.Namespace) -> Optimization:
    """Return the trainer's default with what was given; refuse what would have no effect."""
    import dataclasses

    from delfsearch.training import (
        AttentionTrainer,
        ContrastiveTrainer,
        DescriptorTrainer,
        InlierAttentionTrainer,
    )

    trainers: dict[str, Any] = {
        "attention": AttentionTrainer,
        "contrastive": ContrastiveTrainer,
        "inlier-attention": InlierAttentionTrainer,
    }
    trainer = trainers.get(arguments.mode, DescriptorTrainer)
    default: Optimization = trainer.default_optimization()
    given = {f.name: getattr(arguments, f.name, None) for f in dataclasses.fields(default)}
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen.get("clip_norm") == 0:
        chosen["clip_norm"] = None
    result = dataclasses.replace(default, **chosen)
    for name, of, value in (
        ("momentum", "optimizer", "sgd"),
        ("drop_every", "schedule", "step"),
        ("drop_factor", "schedule", "step"),
    ):
        if name in chosen and getattr(result, of) != value:
            raise CommandError(
                f"--{name.replace('_', '-')} has no effect with --{of} {getattr(result, of)}: "
                f"leave it out, or ask for --{of} {value}"
            )
    return result


def run_options(arguments: argparse.Namespace) -> RunOptions:
    """Return what was given."""
    from delfsearch.training import RunOptions

    given = {
        "device": arguments.device,
        "n_jobs": -1 if arguments.threads is None else arguments.threads,
        "keep_photos": getattr(arguments, "keep_photos", None),
        "checkpoint_every": arguments.checkpoint_every,
        "checkpoint_seconds": arguments.checkpoint_seconds,
        "tensorboard": arguments.tensorboard,
    }
    return RunOptions(**{name: value for name, value in given.items() if value is not None})


def weights_of(arguments: argparse.Namespace) -> str:
    """Return the weights to begin with, fetched if need be."""
    ensure_weights(arguments.weights)
    return str(arguments.weights)


def check_target(target: str, ending: str) -> None:
    """Refuse a file that could not be written before the work is done for it; make its folder."""
    if not target.endswith(ending):
        raise CommandError(f"--out must end in {ending}; got {target}")
    folder = os.path.dirname(target) or "."
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot write {target}: {error.strerror}: {folder}") from None
    if os.path.isdir(target):
        raise CommandError(f"cannot write {target}: it is a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CommandError(f"cannot write {target}: permission denied: {folder}")


def _own_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the library's own format that were given."""
    options: dict[str, Any] = {}
    for name in ("scenes", "without_scenes", "without_photos"):
        if (file := getattr(arguments, name)) is not None:
            options[name] = _lines(file)
    if arguments.subsets is not None:
        options["subsets"] = arguments.subsets.split(",")
    if arguments.distractors != "none":
        options["distractors"] = arguments.distractors
    return options


def reads_labels(arguments: argparse.Namespace) -> bool:
    """Whether PHOTOS is to be read as labelled photos, where labels are not needed."""
    from delfsearch.evaluation.folder import PhotoFolder

    named = arguments.format != "auto" or arguments.clean or bool(_own_options(arguments))
    return named or os.path.isfile(arguments.photos) or PhotoFolder.is_one(arguments.photos)


def read_labelled(arguments: argparse.Namespace) -> LabelledPhotos:
    """Return the photos that add_photos's arguments ask for."""
    from delfsearch.evaluation.folder import PhotoFolder
    from delfsearch.training import (
        photos_from_google_landmarks,
        photos_from_library_folder,
        read_photos,
    )

    options = _own_options(arguments)
    library = arguments.format == "library" or (
        arguments.format == "auto" and PhotoFolder.is_one(arguments.photos)
    )
    if arguments.clean and (library or arguments.format not in ("auto", "google_landmarks")):
        raise CommandError(
            "--clean is for Google Landmarks; PHOTOS is read as "
            f"{'the library' if library else arguments.format}"
        )
    if library:
        return photos_from_library_folder(arguments.photos, **options)
    if options:
        raise CommandError(
            f"--{next(iter(options)).replace('_', '-')} needs photos in the library's own format "
            f"(photos.csv and ground_truth.json); {arguments.photos} is not"
        )
    if arguments.clean:
        return photos_from_google_landmarks(arguments.photos, clean=True)
    return read_photos(arguments.photos, format=arguments.format)


def _lines(file: str) -> list[str]:
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise CommandError(f"{file} must be text in UTF-8, one name a line") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
