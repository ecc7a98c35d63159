"""delfsearch train: what learns by classification, the reduction, and running any trainer."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delfsearch.cli.common import (
    EXIT_OK,
    CommandError,
    add_machine_options,
    check_plot_target,
    photo_files,
    positive,
    positive_number,
    progress_interval,
    save_figure,
)
from delfsearch.cli.matching_commands import (
    add_contrastive_options,
    add_inlier_options,
    add_match,
    add_recipe,
    contrastive_options,
    inlier_options,
)
from delfsearch.cli.output import answer, say
from delfsearch.cli.progress import StagedProgress
from delfsearch.cli.training_arguments import (
    DEFAULT_WEIGHTS,
    add_licence,
    add_photos,
    add_training,
    check_target,
    optimization_of,
    read_labelled,
    reads_labels,
    run_options,
    weights_of,
)

if TYPE_CHECKING:
    from delfsearch.training import Views

_BY_MATCHING = ("contrastive", "inlier-attention")
_DESCRIPTION = """\
Learn weights from labelled photos. The same command goes on where it was interrupted.

  delfsearch train descriptor PHOTOS --out d          stage 1: the trunk, as a classifier
  delfsearch train attention PHOTOS --out a --weights d/weights.safetensors
                                                      stage 2: which features matter
  delfsearch train reduction PHOTOS --out my.safetensors --weights a/weights.safetensors
                                                      PCA, written into a weights file
or, instead of the first and the last,
  delfsearch train match PHOTOS --out pairs.npz       which spots of two photos are the same
  delfsearch train contrastive PHOTOS --out c --matched pairs.npz
                                                      trunk and reduction by matching
  delfsearch train inlier-attention PHOTOS --out i --matched pairs.npz \\
      --weights c/weights.safetensors                 which features end up as inliers
"""


def add_parsers(commands: Any) -> None:
    """Add the command and what it can train."""
    parser = commands.add_parser(
        "train",
        help="learn descriptor, attention and reduction from your photos",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    modes = parser.add_subparsers(metavar="WHAT", required=True)
    helps = {
        "descriptor": "fine-tune the trunk as a classifier",
        "attention": "learn the attention head on a trunk that does not change",
        "joint": "both at once, the attention's gradient stopped at the trunk",
        "contrastive": "trunk and reduction, by spots that must match",
        "inlier-attention": "learn the attention head by the inliers of matched photos",
    }
    for mode, text in helps.items():
        sub = modes.add_parser(mode, help=text, description=text.capitalize() + ".")
        add_photos(sub, small_classes=mode not in _BY_MATCHING)
        sub.add_argument(
            "--out", required=True, metavar="DIR", help="for weights, curves and checkpoints"
        )
        _add_mode(sub, mode)
        if mode == "contrastive":
            add_contrastive_options(sub)
        elif mode == "inlier-attention":
            add_inlier_options(sub)
        else:
            _add_views(sub, mode)
        add_training(
            sub,
            classifies=mode not in _BY_MATCHING,
            keeps_photos=mode != "inlier-attention",
        )
        sub.set_defaults(run=_train, mode=mode)
    add_match(modes)
    add_recipe(modes)
    _add_reduction(modes)
    # As for the other commands: --debug may come last.
    for sub in modes.choices.values():
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def _add_mode(parser: argparse.ArgumentParser, mode: str) -> None:
    group = parser.add_argument_group("what is trained")
    group.add_argument(
        "--weights",
        metavar="NAME|FILE",
        default=DEFAULT_WEIGHTS,
        help=f"where to begin; default {DEFAULT_WEIGHTS}",
    )
    if mode == "inlier-attention":
        return
    if mode != "attention":
        group.add_argument(
            "--trainable",
            choices=("all", "layer2+", "layer3"),
            default=(part := "layer3" if mode == "contrastive" else "all"),
            help=f"part of the trunk; default {part}",
        )
        group.add_argument(
            "--batch-norm",
            choices=("frozen", "trained"),
            default="frozen",
            help="statistics of batch normalisation; default frozen",
        )
    if mode in ("descriptor", "contrastive"):
        return
    group.add_argument("--pooling", choices=("sum", "mean"), help="over the cells; default sum")
    group.add_argument("--normalize", action="store_true", help="pool L2-normalised features")
    group.add_argument(
        "--head-batch-norm", action="store_true", help="batch normalisation in the head"
    )
    group.add_argument(
        "--official",
        action="store_true",
        help="as the official code: --pooling mean --normalize --head-batch-norm",
    )
    if mode == "joint":
        group.add_argument(
            "--attention-factor",
            type=positive_number,
            default=1.0,
            metavar="F",
            help="learning rate of the attention branch over the trunk's; default 1",
        )
    else:
        group.add_argument(
            "--gammas",
            metavar="uniform|G,G",
            help="scales of the crops; default 0.25,0.354,0.5,0.707,1",
        )
        group.add_argument(
            "--cached-crops",
            type=positive,
            metavar="N",
            help="compute the features of N crops of each photo and scale once, N >= 2, and "
            "keep them in DIR/features; default: a new crop at every showing",
        )


def _add_views(parser: argparse.ArgumentParser, mode: str) -> None:
    resize, crop = (900, 720) if mode == "attention" else (250, 224)
    group = parser.add_argument_group("views")
    group.add_argument(
        "--resize", type=positive, default=resize, metavar="PIXELS", help=f"default {resize}"
    )
    group.add_argument(
        "--crop", type=positive, default=crop, metavar="PIXELS", help=f"default {crop}"
    )
    group.add_argument("--flip", action="store_true", help="mirror half of the views")
    group.add_argument(
        "--colour", type=float, default=0.0, metavar="0..1", help="vary colours; default 0"
    )
    group.add_argument(
        "--strong-views", action="store_true", help="vary the views of all photos strongly"
    )


def _add_reduction(modes: Any) -> None:
    parser = modes.add_parser(
        "reduction",
        help="learn the PCA, write it into a weights file",
        description="Learn the reduction (L2, PCA, L2) on the features of a sample of photos, and "
        "write the weights with it into a file.",
    )
    add_photos(parser, small_classes=False)
    parser.add_argument("--out", required=True, metavar="FILE.safetensors", help="file to write")
    group = parser.add_argument_group("what is trained")
    group.add_argument(
        "--weights", metavar="NAME|FILE", default=DEFAULT_WEIGHTS, help="whose features"
    )
    group.add_argument(
        "--components", type=positive, default=128, metavar="N", help="kept; default 128"
    )
    group.add_argument(
        "--sample", type=positive, default=500, metavar="N", help="photos; default 500"
    )
    group.add_argument("--scales", choices=("0.25-1", "0.25-2"), default="0.25-2")
    group.add_argument("--max-features", type=positive, default=1000, metavar="N")
    group.add_argument("--max-side", type=positive, default=1024, metavar="PIXELS")
    group.add_argument(
        "--score", choices=("auto", "l2", "attention", "l2*attention"), default="auto"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="random_state; default 0")
    group.add_argument("--half", action="store_true", help="weights in half precision")
    add_licence(group)
    add_machine_options(group)
    parser.set_defaults(run=_reduction)


def _train(arguments: argparse.Namespace) -> int:
    if arguments.plot is not None:
        check_plot_target(arguments.plot)
    photos = read_labelled(arguments)
    if arguments.mode not in _BY_MATCHING:  # which classes of a single photo serve as well
        photos = photos.with_enough(arguments.min_photos, small_classes=arguments.small_classes)
    weights = weights_of(arguments)
    if _is_first():
        say(f"{len(photos)} photos of {len(photos.classes)} classes")
    shown = StagedProgress(progress_interval(arguments))
    try:
        trainer = _trainer(arguments, weights).fit(
            photos, licence=arguments.licence, progress=shown.update
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "interrupted; the same command goes on from the last checkpoint"
        ) from None
    finally:
        shown.finish()
    if not _is_first():
        return EXIT_OK
    path = Path(arguments.out) / "weights.safetensors"
    if arguments.half:
        trainer.save(path, half=True)
    curves = trainer.curves_
    if arguments.plot is not None:
        from delfsearch.plotting import plot_training_curves

        save_figure(plot_training_curves(curves), arguments.plot)
    last = curves["epoch"] == curves["epoch"].max()
    loss, accuracy = (float(curves[name][last].mean()) for name in ("loss", "accuracy"))
    answer(
        f"{path}: {trainer.n_steps_} steps, loss {loss:.4f} and accuracy {accuracy:.4f} in the "
        "last epoch"
    )
    return EXIT_OK


def _is_first() -> bool:
    """Whether this is the one of several processes that writes and tells."""
    return os.environ.get("RANK", "0") == "0"


def _reduction(arguments: argparse.Namespace) -> int:
    from delfsearch.training import ReductionTrainer

    check_target(arguments.out, ".safetensors")
    labelled = reads_labels(arguments)
    photos: Any = read_labelled(arguments) if labelled else photo_files(arguments.photos)
    trainer = ReductionTrainer(
        weights_of(arguments),
        n_components=arguments.components,
        n_photos=arguments.sample,
        scales=arguments.scales,
        max_features=arguments.max_features,
        max_side=arguments.max_side,
        score=arguments.score,
        device=arguments.device or "auto",
        n_jobs=-1 if arguments.threads is None else arguments.threads,
        random_state=arguments.seed,
    ).fit(photos, licence=arguments.licence)
    trainer.save(arguments.out, half=arguments.half)
    n_photos, n_descriptors = trainer.fit_sample_
    share = float(trainer.pca_.explained_variance_ratio_[: arguments.components].sum())
    answer(
        f"{arguments.out}: {arguments.components} components hold {share:.3f} of the variance of "
        f"{n_descriptors} descriptors of {n_photos} photos"
    )
    return EXIT_OK


def _trainer(arguments: argparse.Namespace, weights: str) -> Any:
    from delfsearch.training import (
        AttentionTrainer,
        ContrastiveTrainer,
        DescriptorTrainer,
        InlierAttentionTrainer,
        JointTrainer,
    )

    options: dict[str, Any] = {
        "output": arguments.out,
        "optimization": optimization_of(arguments),
        "precision": arguments.precision,
        "random_state": arguments.seed,
        "run": run_options(arguments),
    }
    if arguments.mode == "inlier-attention":
        return InlierAttentionTrainer(weights, **options, **inlier_options(arguments))
    if arguments.mode != "attention":
        options |= {"trainable": arguments.trainable, "batch_norm": arguments.batch_norm}
    if arguments.mode == "contrastive":
        return ContrastiveTrainer(weights, **options, **contrastive_options(arguments))
    options["views"] = _views(arguments)
    if arguments.mode == "descriptor":
        return DescriptorTrainer(weights, **options)
    if arguments.official and arguments.pooling == "sum":
        raise CommandError("--official means --pooling mean; got --pooling sum")
    options |= {
        "pooling": "mean" if arguments.official else arguments.pooling or "sum",
        "normalize": arguments.official or arguments.normalize,
        "head_batch_norm": arguments.official or arguments.head_batch_norm,
    }
    if arguments.mode == "joint":
        return JointTrainer(weights, attention_factor=arguments.attention_factor, **options)
    if arguments.gammas is not None:
        options["gammas"] = _gammas(arguments.gammas)
    return AttentionTrainer(weights, cached_crops=arguments.cached_crops, **options)


def _views(arguments: argparse.Namespace) -> Views:
    from delfsearch.training import Views

    return Views(
        resize_side=arguments.resize,
        crop_side=arguments.crop,
        flip=arguments.flip,
        colour=arguments.colour,
        strong=arguments.strong_views,
    )


def _gammas(text: str) -> str | tuple[float, ...]:
    if text == "uniform":
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise CommandError(
            f"--gammas must be 'uniform' or numbers with commas; got {text}"
        ) from None
