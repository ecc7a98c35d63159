"""AttentionTrainer (stage 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from delfsearch._validation import check_choice, check_integer, check_real
from delfsearch.extraction.weights import Weights
from delfsearch.training.batches import Batch, PhotoBatches
from delfsearch.training.descriptor import calibration
from delfsearch.training.draws import Purpose, generator
from delfsearch.training.feature_cache import FeatureCache, cached_gammas
from delfsearch.training.loop import Job, RunOptions
from delfsearch.training.models import POOLING, AttentionBranch, AttentionModel, FrozenTrunk
from delfsearch.training.optimization import Optimization
from delfsearch.training.trainer import PathLike, Setting, Trainer
from delfsearch.training.views import Views

GAMMAS = (0.25, 0.354, 0.5, 0.707, 1.0)
_LOWEST_GAMMA = 0.25


class AttentionTrainer(Trainer):
    """Stage 2: learn which cells matter, on a trunk that does not change.

    weights, output, precision, random_state, run : as in DescriptorTrainer.
    gammas : scales of the crops, one drawn for each batch: a tuple of numbers in (0, 1], or
        "uniform" for any in 0.25 ... 1; (1.0,) is the paper's training without random scaling.
    pooling : "sum" (eq. 1) or "mean" over the cells. normalize : pool L2-normalised features.
    head_batch_norm : batch normalisation in the head, folded into it when saved. The official code
        has "mean", True, True.
    cached_crops : None crops anew at every showing and runs the trunk each time; a number, at least
        2, computes the features of so many random crops of each photo at each scale once (of five
        scales that are drawn where gammas is "uniform") and keeps them in output/features.
    views : None means Views(resize_side=900, crop_side=720). optimization : None means
        Optimization(classifier_factor=10): with sums of raw features a head that learns fast dies.
    The weights are those given, bit by bit, with the new attention head; their PCA stays.
    Learned: weights_ and what else Trainer lists.
    Source: Sec. 3.3.2; gammas: the authors' later statement. Differs: pooled vectors are divided by
        a constant, which W absorbs (AttentionBranch).
    """

    _mode = "attention"

    def __init__(
        self,
        weights: PathLike = "resnet50-imagenet",
        *,
        output: PathLike | None = None,
        gammas: tuple[float, ...] | str = GAMMAS,
        pooling: str = "sum",
        normalize: bool = False,
        head_batch_norm: bool = False,
        cached_crops: int | None = None,
        views: Views | None = None,
        optimization: Optimization | None = None,
        precision: str = "auto",
        random_state: int = 0,
        run: RunOptions | None = None,
    ) -> None:
        self.weights = weights
        self.output = output
        self.gammas = gammas
        self.pooling = pooling
        self.normalize = normalize
        self.head_batch_norm = head_batch_norm
        self.cached_crops = cached_crops
        self.views = views
        self.optimization = optimization
        self.precision = precision
        self.random_state = random_state
        self.run = run

    @classmethod
    def default_views(cls) -> Views:
        """Return what views=None stands for."""
        return Views(resize_side=900, crop_side=720)

    @classmethod
    def default_optimization(cls) -> Optimization:
        """Return what optimization=None stands for."""
        return Optimization(classifier_factor=10.0)

    def _check(self) -> None:
        check_choice(self.pooling, "pooling", POOLING)
        self._gammas()
        if self.cached_crops is not None:
            check_integer(self.cached_crops, "cached_crops", minimum=2)
            if self.output is None:
                raise ValueError("cached_crops needs output, a folder to keep features in")

    def _gammas(self) -> tuple[float, ...] | str:
        if isinstance(self.gammas, str):
            return check_choice(self.gammas, "gammas", ("uniform",))
        values = tuple(
            check_real(g, "gammas", minimum=0.0, maximum=1.0, exclusive_minimum=True)
            for g in self.gammas
        )
        if not values:
            raise ValueError("gammas must hold at least one scale; got none")
        return values

    def _own_settings(self) -> dict[str, Any]:
        gammas = self._gammas()
        return {
            "gammas": gammas if isinstance(gammas, str) else list(gammas),
            "pooling": self.pooling,
            "normalize": bool(self.normalize),
            "head_batch_norm": bool(self.head_batch_norm),
            "cached_crops": self.cached_crops,
        }

    def _gamma_of(self, step: int) -> float:
        gammas = self._gammas()
        rng = generator(int(self.random_state), Purpose.GAMMA, step)
        if isinstance(gammas, str):
            return float(rng.uniform(_LOWEST_GAMMA, 1.0))
        return gammas[int(rng.integers(len(gammas)))]

    def _batches(
        self, setting: Setting, views: Views, trunk: FrozenTrunk
    ) -> Callable[[int], Batch]:
        photos, store, seed = setting.photos, setting.store, setting.random_state
        if self.cached_crops is None or setting.folder is None:
            return PhotoBatches(
                setting.plan, photos, store, views, random_state=seed, gamma_of=self._gamma_of
            )
        names = ("weights_sha256", "photos", "precision", "random_state", "views")
        cache = FeatureCache(
            setting.folder / "features",
            photos,
            views,
            gammas=cached_gammas(self._gammas(), self.cached_crops, _LOWEST_GAMMA, seed),
            random_state=seed,
            key={name: setting.settings[name] for name in names},
        )
        cache.fill(
            trunk,
            store,
            setting.processes,
            n_threads=setting.n_threads,
            progress=setting.progress,
        )
        return cache.batches(setting.plan)

    def _build(
        self, setting: Setting, views: Views, optimization: Optimization
    ) -> tuple[Job, Callable[[], Weights]]:
        trunk = FrozenTrunk(
            setting.weights,
            dtype=setting.precision or torch.float32,
            device=setting.processes.device,
        )
        branch = AttentionBranch(
            len(setting.photos.classes),
            pooling=self.pooling,
            normalize=self.normalize,
            batch_norm=self.head_batch_norm,
            random_state=setting.random_state,
        )
        model = AttentionModel(trunk, branch)
        job = Job(
            model=model,
            make_batch=self._batches(setting, views, trunk),
            steps_per_epoch=setting.plan.steps_per_epoch,
            optimization=optimization,
            factors={"branch.classifier.": optimization.classifier_factor},
            settings=setting.settings,
            precision=setting.precision,
            begin=calibration(model, setting.processes),
        )

        def learned() -> Weights:
            head = branch.head_tensors()
            return dataclasses.replace(setting.weights, attention=head, score_scale=1.0)

        return job, learned
