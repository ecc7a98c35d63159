"""A recipe for default weights: matched photos, trunk, reduction, attention; folds to judge by.

Of a folder in the library's own format: weights from all scenes, and for each fold of scenes
weights from the others, so that what is tested was never trained on. Whatever is finished is found
again, so an interrupted recipe goes on.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from delfsearch._validation import check_integer
from delfsearch.errors import DatasetError, WeightsError
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.evaluation.scene_folds import HELD_OUT, TRAINED_ON, deal_scenes, linked_scenes
from delfsearch.extraction.weights import Weights, load_weights, save_weights
from delfsearch.training.checkpoint import CheckpointError, make_folder
from delfsearch.training.contrastive import ContrastiveTrainer
from delfsearch.training.inlier_attention import InlierAttentionTrainer
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.loop import RunOptions
from delfsearch.training.matched_photos import MATCHERS, MatchedPhotos, Matcher, match_photos
from delfsearch.training.optimization import Optimization
from delfsearch.training.pair_batches import pairs_among
from delfsearch.training.processes import refuse_several
from delfsearch.training.results import WEIGHTS_NAME, check_licence
from delfsearch.training.sources import photos_from_library_folder
from delfsearch.training.trainer import PathLike, ProgressCallback
from delfsearch.training.two_views import PairViews

logger = logging.getLogger("delfsearch")

FINAL_NAME, MATCHED_NAME, ATTENTION_NAME = "weights.safetensors", "matched.npz", "attention"
# Small grey photos of fifteen kinds of scenes, of which the folder has very many.
_LEFT_OUT = ("scene15_*",)


def train_recipe(
    photos: PathLike,
    output: PathLike,
    *,
    weights: PathLike = "resnet50-imagenet",
    n_folds: int = 3,
    without_subsets: Collection[str] = _LEFT_OUT,
    matchers: Sequence[Matcher] = MATCHERS,
    views: PairViews | None = None,
    optimization: Optimization | None = None,
    precision: str = "auto",
    random_state: int = 0,
    run: RunOptions | None = None,
    licence: str | None = None,
    progress: ProgressCallback | None = None,
    attention_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[Path]:
    """Train weights on all scenes of a folder, and on all but each fold of them.

    photos : a folder with photos.csv and ground_truth.json. Its distractor queries are never
        trained on, its other distractors always.
    output : folder. It receives weights.safetensors, fold-0.safetensors, ... in half precision, and
        in subfolders curves and checkpoints; matched.npz, the matched photos.
    n_folds : at least 2; 0 trains the final weights alone. Scenes that show the same are in one
        fold (linked_scenes).
    without_subsets : patterns of the subsets whose distractors are left out.
    matchers : see match_photos. options : of ContrastiveTrainer, like what is not named here.
    attention_options : of InlierAttentionTrainer, which comes after it. Where nothing was matched,
        the weights have no attention.
    licence : of the photos, as in DescriptorTrainer.fit.
    progress : called as progress(what, done, total), what beginning with "final" or "fold k".
    Returns the files written. The recipe in each says which scenes were held out and which photos
        were trained on.
    Raises DatasetError where the folder is not one, TypeError for unknown options, CheckpointError
        where output holds what was matched or trained with other settings, ValueError in one of
        several processes: the stages can be trained in several, one by one.
    """
    refuse_several(
        "the recipe",
        "; or train its stages, contrastive and inlier-attention, one by one in several",
    )
    check_licence(licence)
    check_integer(random_state, "random_state", minimum=0, maximum=2**63 - 1)
    if check_integer(n_folds, "n_folds", minimum=0) == 1:
        raise ValueError("n_folds must be 0, or at least 2; got 1: nothing would be trained on")
    try:
        folder = PhotoFolder.read(photos, check_files=False)
    except ValueError as error:
        raise DatasetError(str(error)) from None
    run = run or RunOptions()
    place = make_folder(Path(output))
    matched = _matched(folder, place / MATCHED_NAME, matchers, random_state, run, progress)
    gone = [
        path
        for path in folder.paths
        if folder.roles.get(path) == "distractor"
        and any(fnmatch.fnmatch(folder.subsets.get(path, ""), name) for name in without_subsets)
    ]
    held_out: list[tuple[str, tuple[str, ...]]] = [("final", ())]
    if n_folds:
        folds = deal_scenes(
            folder.labels.values(),
            n_folds,
            together=linked_scenes(folder),
            random_state=random_state,
        )
        held_out += [(f"fold-{k}", fold) for k, fold in enumerate(folds)]
    written = []
    for name, scenes in held_out:
        target = place / (FINAL_NAME if name == "final" else f"{name}.safetensors")
        labelled = photos_from_library_folder(
            folder.root, without_scenes=scenes, distractors="no_queries", without_photos=gone
        )
        pairs = _of_these(name, matched, labelled)
        trainer = ContrastiveTrainer(
            weights,
            output=place / name,
            matched=pairs,
            views=views,
            optimization=optimization,
            precision=precision,
            random_state=random_state,
            run=run,
            **options,
        )
        logger.info("%s: %d photos of %d classes", name, len(labelled), len(labelled.classes))
        trainer.fit(labelled, licence=licence, progress=_named(name, progress))
        left_out = {path for path, _ in trainer.left_out_}
        learned = trainer.weights_
        if pairs is not None:
            learned = _with_attention(
                place / name,
                labelled,
                pairs,
                {
                    "precision": precision,
                    "random_state": random_state,
                    "run": run,
                    **(attention_options or {}),
                },
                licence,
                _named(name, progress),
            )
        recipe = {
            **learned.recipe,
            TRAINED_ON: [path for path in labelled.paths if path not in left_out],
        }
        if scenes:
            recipe[HELD_OUT] = list(scenes)
        learned = dataclasses.replace(learned, recipe=recipe)
        save_weights(target, learned.to_arrays(), learned.to_meta(), dtype="float16")
        written.append(target)
        logger.info("%s: tensors %s", target, load_weights(target).sha256)
    return written


def _with_attention(
    trained: Path,
    photos: LabelledPhotos,
    matched: MatchedPhotos,
    options: Mapping[str, Any],
    licence: str | None,
    progress: ProgressCallback | None,
) -> Weights:
    """Return the weights in a folder with an attention head, or without where none can be."""
    weights = trained / WEIGHTS_NAME
    trainer = InlierAttentionTrainer(
        weights, matched=matched, output=trained / ATTENTION_NAME, **options
    )
    try:
        trainer.fit(photos, licence=licence, progress=progress)
    except DatasetError as error:
        logger.warning("%s: weights without attention: %s", trained.name, error)
        return load_weights(weights)
    return load_weights(trained / ATTENTION_NAME / WEIGHTS_NAME)


def _matched(
    folder: PhotoFolder,
    path: Path,
    matchers: Sequence[Matcher],
    random_state: int,
    run: RunOptions,
    progress: ProgressCallback | None,
) -> MatchedPhotos | None:
    labelled = photos_from_library_folder(folder.root)
    key = {
        "matchers": [repr(matcher) for matcher in matchers],
        "random_state": int(random_state),
        "photos": labelled.fingerprint(),
    }
    if path.is_file():
        matched = MatchedPhotos.load(path)
        if not set(matched.names) <= set(folder.paths):
            raise DatasetError(f"{path} is of other photos than {folder.root}: delete it")
        _refuse_other_key(path, matched.key, key)
        return matched
    try:
        matched = match_photos(
            labelled,
            matchers=on_device(matchers, run.device),
            random_state=random_state,
            n_jobs=run.n_jobs,
            progress=_named("matching", progress),
        )
    except WeightsError as error:
        raise WeightsError(f"{error}; or name other matchers") from error
    except DatasetError as error:
        logger.warning("%s: training on warped copies alone", error)
        return None
    matched = dataclasses.replace(matched, key=key)
    matched.save(path)
    return matched


def _refuse_other_key(path: Path, held: Mapping[str, Any] | None, key: Mapping[str, Any]) -> None:
    remedy = "give another output folder, or delete it with all that was trained by it"
    if held is None:
        raise CheckpointError(
            f"{path} does not say what it was matched with: the recipe of this version did not "
            f"write it; {remedy}"
        )
    for name, value in key.items():
        if held.get(name) != value:
            raise CheckpointError(
                f"{path} was matched with {name}={held.get(name)!r}; got {value!r}: go on with the "
                f"same, {remedy}"
            )


def on_device(matchers: Sequence[Matcher], device: str) -> list[Matcher]:
    """Return matchers whose networks run on a device."""
    return [
        dataclasses.replace(matcher, options=(*matcher.options, ("device", device)))
        if matcher.system == "delf" and "device" not in dict(matcher.options)
        else matcher
        for matcher in matchers
    ]


def _of_these(
    name: str, matched: MatchedPhotos | None, photos: LabelledPhotos
) -> MatchedPhotos | None:
    """Return the matched photos, None where none of their pairs is of these."""
    if matched is None:
        return None
    try:
        pairs_among(matched, photos)
    except DatasetError as error:
        logger.warning("%s: training on warped copies alone, without attention: %s", name, error)
        return None
    return matched


def _named(name: str, progress: ProgressCallback | None) -> ProgressCallback | None:
    if progress is None:
        return None
    return lambda what, done, total: progress(f"{name}: {what}", done, total)
