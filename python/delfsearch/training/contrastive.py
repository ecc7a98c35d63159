"""ContrastiveTrainer: trunk and reduction trained by points that must match."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delfsearch._validation import check_choice, check_integer, check_real
from delfsearch.errors import DatasetError
from delfsearch.extraction.network import N_CHANNELS
from delfsearch.extraction.weights import Weights
from delfsearch.training.contrastive_model import (
    ContrastiveModel,
    Reduction,
    first_reduction,
)
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.loop import Job, RunOptions
from delfsearch.training.matched_photos import MatchedPhotos
from delfsearch.training.optimization import Optimization
from delfsearch.training.pair_batches import PairBatch, PairBatches, pairs_among
from delfsearch.training.photo_store import PhotoStore
from delfsearch.training.trainer import PathLike, Setting, Trainer
from delfsearch.training.trunk import BATCH_NORM, TRAINABLE, TrainableTrunk
from delfsearch.training.two_views import PairViews


class ContrastiveTrainer(Trainer):
    """Train trunk and reduction so that a point is nearest to its own spot in another view.

    The other view is another crop of the same photo, warped and recoloured, or, for a share of
    them, a crop of another photo of its class around points that were matched. So it asks for what
    retrieval needs: these two cats are two, this window is not that one.
    weights, output, trainable, batch_norm, precision, random_state, run : as in DescriptorTrainer.
    matched : MatchedPhotos of the photos to train on, see match_photos; pairs of photos that fit is
        not given are left out, and some must be left. None means warped copies alone.
    matched_share : share of the pairs of views that are of two matched photos, in [0, 1].
    n_components : dimensions of the descriptors that are compared, trained and kept.
    n_negatives : descriptors of earlier steps to be told from, at least 0; several processes all
        take those of the first one's share.
    temperature : of the softmax over cosines. exclusion : cells around a spot that are not held
        against it.
    reduction_factor : learning rate of the projection over the trunk's.
    views : None means PairViews(). optimization : None means AdamW at 2e-4, batches of 16 pairs, 15
        epochs, cosine decay.
    Classes may have a single photo, of which two warped copies must match; photos of one class are
        not told apart from each other.
    The weights have the trained projection as their PCA and no attention: see
    InlierAttentionTrainer. Learned: weights_ and what else Trainer
    lists.
    Source: ours (the loss is InfoNCE, van den Oord et al. 2018). Differs from the paper, which
        trains by classification (DescriptorTrainer) and then fits a PCA.
    """

    _mode = "contrastive"
    _min_classes = 1

    def __init__(
        self,
        weights: PathLike = "resnet50-imagenet",
        *,
        output: PathLike | None = None,
        matched: MatchedPhotos | None = None,
        matched_share: float = 0.5,
        n_components: int = 40,
        n_negatives: int = 16384,
        temperature: float = 0.07,
        exclusion: float = 3.0,
        reduction_factor: float = 5.0,
        trainable: str = "layer3",
        batch_norm: str = "frozen",
        views: PairViews | None = None,
        optimization: Optimization | None = None,
        precision: str = "auto",
        random_state: int = 0,
        run: RunOptions | None = None,
    ) -> None:
        self.weights = weights
        self.output = output
        self.matched = matched
        self.matched_share = matched_share
        self.n_components = n_components
        self.n_negatives = n_negatives
        self.temperature = temperature
        self.exclusion = exclusion
        self.reduction_factor = reduction_factor
        self.trainable = trainable
        self.batch_norm = batch_norm
        self.views = views
        self.optimization = optimization
        self.precision = precision
        self.random_state = random_state
        self.run = run

    @classmethod
    def default_views(cls) -> PairViews:
        """Return what views=None stands for."""
        return PairViews()

    @classmethod
    def default_optimization(cls) -> Optimization:
        """Return what optimization=None stands for."""
        return Optimization(
            epochs=15,
            batch_size=16,
            optimizer="adamw",
            learning_rate=2e-4,
            schedule="cosine",
            clip_norm=5.0,
        )

    def _check(self) -> None:
        check_choice(self.trainable, "trainable", TRAINABLE)
        check_choice(self.batch_norm, "batch_norm", BATCH_NORM)
        if self.matched is not None and not isinstance(self.matched, MatchedPhotos):
            raise TypeError(
                "matched must be MatchedPhotos, as match_photos or MatchedPhotos.load returns; got "
                f"{type(self.matched).__name__}"
            )
        check_real(self.matched_share, "matched_share", minimum=0.0, maximum=1.0)
        check_integer(self.n_components, "n_components", minimum=1, maximum=N_CHANNELS)
        check_integer(self.n_negatives, "n_negatives", minimum=0)
        check_real(self.temperature, "temperature", minimum=0.0, exclusive_minimum=True)
        check_real(self.exclusion, "exclusion", minimum=0.0)
        check_real(self.reduction_factor, "reduction_factor", minimum=0.0)

    def _with_enough(self, photos: LabelledPhotos) -> LabelledPhotos:
        if len(photos) < 2:
            raise DatasetError(f"training needs at least two photos; got {len(photos)}")
        if self.matched is not None:
            pairs_among(self.matched, photos)
        return photos

    def _store(self, photos: LabelledPhotos, views: Any) -> PhotoStore:
        files = [photos.file(row) for row in range(len(photos))]
        return PhotoStore(files, [views.max_side] * len(files), whole=True)

    def _own_settings(self) -> dict[str, Any]:
        return {
            "matched_share": float(self.matched_share),
            "matched": None if self.matched is None else self.matched.fingerprint(),
            "n_components": int(self.n_components),
            "n_negatives": int(self.n_negatives),
            "temperature": float(self.temperature),
            "exclusion": float(self.exclusion),
            "reduction_factor": float(self.reduction_factor),
            "trainable": self.trainable,
            "batch_norm": self.batch_norm,
        }

    def _build(
        self, setting: Setting, views: Any, optimization: Optimization
    ) -> tuple[Job, Callable[[], Weights]]:
        trunk = TrainableTrunk(
            setting.weights,
            trainable=self.trainable,
            batch_norm=self.batch_norm,
            frozen_dtype=setting.precision or torch.float32,
            device=str(setting.processes.device),
        )
        reduction, is_known = self._first_reduction(setting.weights)
        model = ContrastiveModel(
            trunk,
            reduction,
            side=views.side,
            n_negatives=self.n_negatives,
            temperature=self.temperature,
            exclusion=self.exclusion,
        )
        job = Job(
            model=model,
            make_batch=PairBatches(
                setting.plan,
                setting.photos,
                setting.store,
                views,
                model.centres,
                matched=self.matched,
                matched_share=self.matched_share,
                random_state=setting.random_state,
            ),
            steps_per_epoch=setting.plan.steps_per_epoch,
            optimization=optimization,
            factors={"reduction.": self.reduction_factor},
            settings=setting.settings,
            precision=setting.precision,
            begin=None if is_known else _first_projection(model, self.n_components),
            losses=lambda outputs, batch: [(outputs[0], outputs[1])],
        )

        def learned() -> Weights:
            trained = {n: t.detach().cpu().contiguous() for n, t in trunk.state_dict().items()}
            tensors = {n: trained.get(n, t).clone() for n, t in setting.weights.tensors.items()}
            pca = {name: t.numpy() for name, t in model.reduction_tensors().items()}
            return dataclasses.replace(
                setting.weights, tensors=tensors, attention={}, pca=pca, score_scale=1.0
            )

        return job, learned

    def _first_reduction(self, weights: Weights) -> tuple[Reduction, bool]:
        """Return the reduction of the weights, where they have one of enough components."""
        k = int(self.n_components)
        known = len(weights.pca.get("pca.components", ())) >= k
        if known:
            mean, components = (
                torch.from_numpy(np.array(weights.pca[f"pca.{name}"], np.float32))
                for name in ("mean", "components")
            )
            return Reduction(mean, components[:k]), True
        return Reduction(torch.zeros(N_CHANNELS), torch.zeros(k, N_CHANNELS)), False


def _first_projection(model: ContrastiveModel, n_components: int) -> Callable[[PairBatch], None]:
    """Return what sets the projection that training begins with: the PCA of the first batch."""

    def begin(batch: PairBatch) -> None:
        model.eval()
        with torch.no_grad():
            features: Tensor = model.trunk(batch.inputs)
            rows = features.float().permute(0, 2, 3, 1).flatten(0, 2)
            mean, components = first_reduction(rows, n_components)
            model.reduction.mean.copy_(mean)
            model.reduction.components.copy_(components)

    return begin
