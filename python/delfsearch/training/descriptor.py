"""DescriptorTrainer (stage 1) and JointTrainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from delfsearch._validation import check_choice, check_real
from delfsearch.extraction.weights import Weights
from delfsearch.training.batches import Batch, PhotoBatches
from delfsearch.training.curves import JOINT_COLUMNS
from delfsearch.training.loop import Job, RunOptions
from delfsearch.training.models import (
    POOLING,
    AttentionBranch,
    AttentionModel,
    DescriptorModel,
    JointModel,
)
from delfsearch.training.optimization import Optimization
from delfsearch.training.processes import Processes
from delfsearch.training.trainer import PathLike, Setting, Trainer
from delfsearch.training.trunk import BATCH_NORM, TRAINABLE, TrainableTrunk
from delfsearch.training.views import Views


class DescriptorTrainer(Trainer):
    """Stage 1: fine-tune the trunk as a classifier of landmarks.

    weights : where to begin, as in DelfExtractor. output : folder for weights, curves and
        checkpoints, from which an interrupted run goes on; None keeps nothing but the result.
        Processes on several machines need a folder that all of them share.
    trainable : "all", "layer2+" or "layer3"; what is not named is frozen.
    batch_norm : "frozen" keeps the statistics of the weights, "trained" normalises each batch by
        its own and lets the statistics follow; scales and shifts are trained in both.
    views : None means Views(): the centre square at 250 x 250, random crops of 224 x 224.
    optimization : None means Optimization().
    precision : "fp32", "bf16", "fp16" (GPU), or "auto", see resolve_amp.
    random_state : integer; with it and the settings the run is fixed. run : None means
        RunOptions().
    The weights have neither attention nor PCA: those that the trunk had fit it no more.
    Learned: weights_ and what else Trainer lists.
    Source: Sec. 3.2. Differs: cross-entropy may have label smoothing; what is frozen, optimiser and
        epochs are our choice, as the paper states none.
    """

    _mode = "descriptor"

    def __init__(
        self,
        weights: PathLike = "resnet50-imagenet",
        *,
        output: PathLike | None = None,
        trainable: str = "all",
        batch_norm: str = "frozen",
        views: Views | None = None,
        optimization: Optimization | None = None,
        precision: str = "auto",
        random_state: int = 0,
        run: RunOptions | None = None,
    ) -> None:
        self.weights = weights
        self.output = output
        self.trainable = trainable
        self.batch_norm = batch_norm
        self.views = views
        self.optimization = optimization
        self.precision = precision
        self.random_state = random_state
        self.run = run

    def _check(self) -> None:
        check_choice(self.trainable, "trainable", TRAINABLE)
        check_choice(self.batch_norm, "batch_norm", BATCH_NORM)

    def _own_settings(self) -> dict[str, Any]:
        return {"trainable": self.trainable, "batch_norm": self.batch_norm}

    def _trunk(self, setting: Setting) -> TrainableTrunk:
        return TrainableTrunk(
            setting.weights,
            trainable=self.trainable,
            batch_norm=self.batch_norm,
            frozen_dtype=setting.precision or torch.float32,
            device=str(setting.processes.device),
        )

    def _batches(self, setting: Setting, views: Views) -> Callable[[int], Batch]:
        return PhotoBatches(
            setting.plan, setting.photos, setting.store, views, random_state=setting.random_state
        )

    def _build(
        self, setting: Setting, views: Views, optimization: Optimization
    ) -> tuple[Job, Callable[[], Weights]]:
        trunk = self._trunk(setting)
        model = DescriptorModel(
            trunk, len(setting.photos.classes), random_state=setting.random_state
        )
        job = Job(
            model=model,
            make_batch=self._batches(setting, views),
            steps_per_epoch=setting.plan.steps_per_epoch,
            optimization=optimization,
            factors={"classifier.": optimization.classifier_factor},
            settings=setting.settings,
            precision=setting.precision,
        )
        return job, lambda: _learned(setting.weights, trunk, {})


class JointTrainer(DescriptorTrainer):
    """Trunk and attention branch at once; the branch's gradient does not reach the trunk.

    The trunk therefore comes out as DescriptorTrainer's, to the last bit on a processor. attention_
    factor : learning rate of the branch over the trunk's. pooling, normalize, head_batch_norm : as
    in AttentionTrainer. Everything else as in DescriptorTrainer. The weights have no PCA.
    Source: Sec. 3.3.2, where the paper finds joint training weak; the stopped gradient is the
        official code's.
    """

    _mode = "joint"

    def __init__(
        self,
        weights: PathLike = "resnet50-imagenet",
        *,
        output: PathLike | None = None,
        trainable: str = "all",
        batch_norm: str = "frozen",
        pooling: str = "sum",
        normalize: bool = False,
        head_batch_norm: bool = False,
        attention_factor: float = 1.0,
        views: Views | None = None,
        optimization: Optimization | None = None,
        precision: str = "auto",
        random_state: int = 0,
        run: RunOptions | None = None,
    ) -> None:
        self.weights = weights
        self.output = output
        self.trainable = trainable
        self.batch_norm = batch_norm
        self.pooling = pooling
        self.normalize = normalize
        self.head_batch_norm = head_batch_norm
        self.attention_factor = attention_factor
        self.views = views
        self.optimization = optimization
        self.precision = precision
        self.random_state = random_state
        self.run = run

    def _check(self) -> None:
        super()._check()
        check_choice(self.pooling, "pooling", POOLING)
        check_real(self.attention_factor, "attention_factor", minimum=0.0, exclusive_minimum=True)

    def _own_settings(self) -> dict[str, Any]:
        return {
            **super()._own_settings(),
            "pooling": self.pooling,
            "normalize": bool(self.normalize),
            "head_batch_norm": bool(self.head_batch_norm),
            "attention_factor": float(self.attention_factor),
        }

    def _build(
        self, setting: Setting, views: Views, optimization: Optimization
    ) -> tuple[Job, Callable[[], Weights]]:
        trunk = self._trunk(setting)
        n_classes = len(setting.photos.classes)
        branch = AttentionBranch(
            n_classes,
            pooling=self.pooling,
            normalize=self.normalize,
            batch_norm=self.head_batch_norm,
            random_state=setting.random_state,
        )
        model = JointModel(trunk, branch, n_classes, random_state=setting.random_state)
        factor = optimization.classifier_factor
        job = Job(
            model=model,
            make_batch=self._batches(setting, views),
            steps_per_epoch=setting.plan.steps_per_epoch,
            optimization=optimization,
            factors={
                "classifier.": factor,
                "branch.classifier.": factor * self.attention_factor,
                "branch.": self.attention_factor,
            },
            settings=setting.settings,
            precision=setting.precision,
            columns=JOINT_COLUMNS,
            begin=calibration(model, setting.processes),
        )
        return job, lambda: _learned(setting.weights, trunk, branch.head_tensors())


def _learned(weights: Weights, trunk: TrainableTrunk, head: dict[str, Tensor]) -> Weights:
    """Return the weights with the trained tensors as they are now, the rest as loaded."""
    trained = {n: t.detach().cpu().contiguous() for n, t in trunk.state_dict().items()}
    tensors = {name: trained.get(name, t).clone() for name, t in weights.tensors.items()}
    return dataclasses.replace(weights, tensors=tensors, attention=head, pca={}, score_scale=1.0)


def calibration(
    model: AttentionModel | JointModel, processes: Processes
) -> Callable[[Batch], None]:
    """Return what sets the constants of a model's attention branch from the first batch."""

    def begin(batch: Batch) -> None:
        model.eval()  # the loop turns training on; statistics must not move yet
        model.calibrate(batch.inputs, batch.gamma, processes.mean)

    return begin
