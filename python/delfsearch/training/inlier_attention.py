"""InlierAttentionTrainer: attention that looks at what verified matches are made of."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from delfsearch._validation import check_integer, check_n_jobs
from delfsearch.extraction.network import N_CHANNELS
from delfsearch.extraction.pyramid import resolve_scales
from delfsearch.extraction.weights import Weights, load_weights
from delfsearch.training import loop
from delfsearch.training.batches import Plan
from delfsearch.training.checkpoint import make_folder, refuse_unshared
from delfsearch.training.draws import normal_
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.loop import Job, RunOptions, resolve_amp
from delfsearch.training.matched_cells import MatchedCells, all_cells_of, match_cells
from delfsearch.training.matched_photos import MatchedPhotos
from delfsearch.training.models import N_HIDDEN
from delfsearch.training.optimization import Optimization
from delfsearch.training.pair_batches import pairs_among
from delfsearch.training.processes import make_processes
from delfsearch.training.results import (
    check_licence,
    conclude,
    left_out_text,
    output_folder,
    refuse_other_run,
    save_learned,
    torch_threads,
)
from delfsearch.training.trainer import PathLike, ProgressCallback

logger = logging.getLogger("delfsearch")

_N_NEWTON = 30
_N_HALVINGS = 40


class CellBatch(NamedTuple):
    """inputs : (b, m, 1024) float16, cells of b photos. shares : (b, m), see MatchedCells."""

    inputs: Tensor
    shares: Tensor

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """What the model takes."""
        return self.inputs, self.shares


class InlierHead(nn.Module):
    """An attention head of the paper's form, 1x1-512, ReLU, 1x1-1, softplus (Sec. 3.3.2).

    It learns to rank the cells of a photo: the cross-entropy of the softmax of its logits over the
    photo's cells with their shares (ListNet, Cao et al. 2007).
    """

    def __init__(self, *, random_state: int) -> None:
        super().__init__()
        self.conv1 = nn.Linear(N_CHANNELS, N_HIDDEN)
        self.conv2 = nn.Linear(N_HIDDEN, 1)
        # Inputs are divided by it, which conv1 absorbs when saved.
        self.feature_size: Tensor
        self.register_buffer("feature_size", torch.ones(()))
        normal_(self.conv1.weight, (2.0 / N_CHANNELS) ** 0.5, random_state, 1)
        normal_(self.conv2.weight, 0.01, random_state, 2)
        nn.init.zeros_(self.conv1.bias)
        nn.init.zeros_(self.conv2.bias)

    def logits(self, cells: Tensor) -> Tensor:
        """Return (...,) float32 of cells (..., 1024)."""
        hidden = torch.relu(self.conv1(cells.float() / self.feature_size))
        logits: Tensor = self.conv2(hidden)
        return logits[..., 0].float()

    def forward(self, cells: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the photos, and the accuracy.

        Accuracy: of as many cells of the highest logits as a photo has matched ones, the share that
        is matched; mean over the photos.
        """
        logits = self.logits(cells).masked_fill(shares < 0, float("-inf"))
        wanted = shares.clamp(min=0.0)
        wanted = wanted / wanted.sum(1, keepdim=True).clamp(min=1e-6)
        # Not -inf times 0 where there is no cell.
        chances = torch.log_softmax(logits, 1).masked_fill(shares < 0, 0.0)
        loss = -(wanted * chances).sum(1).mean()
        matched = shares > 0
        n_matched = matched.sum(1, keepdim=True)
        ranks = logits.detach().argsort(dim=1, descending=True, stable=True).argsort(1)
        hits = (matched & (ranks < n_matched)).sum(1, keepdim=True)
        return loss, (hits / n_matched.clamp(min=1)).mean()

    def calibrate(self, size: Tensor) -> None:
        """Set the constant that features are divided by."""
        self.feature_size.copy_(size.clamp(min=1e-6))

    def head_tensors(self, slope: float, constant: float) -> dict[str, Tensor]:
        """Return attention.conv1 and attention.conv2; logits z become slope * z + constant."""
        kernel = self.conv1.weight.detach().double() / self.feature_size.double()
        tensors = {
            "attention.conv1.weight": kernel[:, :, None, None],
            "attention.conv1.bias": self.conv1.bias.detach(),
            "attention.conv2.weight": self.conv2.weight.detach()[:, :, None, None].double() * slope,
            "attention.conv2.bias": self.conv2.bias.detach().double() * slope + constant,
        }
        return {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}


class InlierAttentionTrainer(BaseEstimator):  # type: ignore[misc]
    """Learn which cells end up as inliers of verified matches, on a trunk that does not change.

    Matched photos are matched again with all cells of their pyramids, nothing selected, and
    verified. The head learns to rank the cells of a photo by the share of its verified pairs in
    which they are inliers; then its logits are scaled so that they are those of that share, p, over
    the photos trained on. Its score is -log(1 - p), so that a score_threshold of 0.1 drops
    cells of p below about one in ten.
    weights, output, precision, random_state, run : as in DescriptorTrainer; the weights' own PCA
        reduces what is matched. With precision "fp16" the cells, of which an extractor makes none
        in fp16, are extracted in fp32.
    matched : MatchedPhotos, whose pairs are used, see match_photos; pairs of photos that fit is not
        given are left out.
    scales, max_side : of the pyramids, as in DelfExtractor.
    n_cells : drawn of each photo, to learn from. min_inliers : for a pair to be verified.
    optimization : None means AdamW at 5e-4, batches of 16 photos of classes drawn evenly, 15
        epochs, cosine decay.
    The weights are those given, bit by bit, with the new attention head. Learned: weights_;
    curves_; n_steps_; left_out_, (path, reason) of photos that could not be read; n_photos_ and
    n_pairs_, what was learned from.
    Source: ours; the head is the paper's (Sec. 3.3.2), which learns it by classification instead
        (AttentionTrainer).
    """

    _mode = "inlier attention"

    def __init__(
        self,
        weights: PathLike,
        *,
        matched: MatchedPhotos | None = None,
        output: PathLike | None = None,
        scales: str | tuple[float, ...] = "0.25-1",
        max_side: int | None = 1024,
        n_cells: int = 1000,
        min_inliers: int = 120,
        optimization: Optimization | None = None,
        precision: str = "auto",
        random_state: int = 0,
        run: RunOptions | None = None,
    ) -> None:
        self.weights = weights
        self.matched = matched
        self.output = output
        self.scales = scales
        self.max_side = max_side
        self.n_cells = n_cells
        self.min_inliers = min_inliers
        self.optimization = optimization
        self.precision = precision
        self.random_state = random_state
        self.run = run

    @classmethod
    def default_optimization(cls) -> Optimization:
        """Return what optimization=None stands for."""
        return Optimization(
            epochs=15,
            batch_size=16,
            sampling="classes",
            optimizer="adamw",
            learning_rate=5e-4,
            weight_decay=1e-3,
            schedule="cosine",
            clip_norm=5.0,
        )

    def fit(
        self,
        photos: LabelledPhotos,
        y: Any = None,
        *,
        licence: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> InlierAttentionTrainer:
        """Train; go on where an earlier run with the same output folder stopped; return self.

        licence : of the photos, as in DescriptorTrainer.fit.
        progress : called as progress(what, done, total), what being "cells" (pairs matched) or
            "steps".
        Raises DatasetError where no pair of matched is of these photos or none is verified;
        CheckpointError where output holds a run of other settings or photos, or there is no space;
        WeightsError.
        """
        if not isinstance(photos, LabelledPhotos):
            raise TypeError(
                "photos must be LabelledPhotos, as read_photos returns; got "
                f"{type(photos).__name__}"
            )
        check_licence(licence)
        optimization = self.optimization or self.default_optimization()
        options = self.run or RunOptions()
        optimization.check()
        options.check()
        check_integer(self.n_cells, "n_cells", minimum=1)
        check_integer(self.min_inliers, "min_inliers", minimum=3)
        seed = check_integer(self.random_state, "random_state", minimum=0, maximum=2**63 - 1)
        pairs = self._pairs(photos)
        processes = make_processes(options.accelerate, options.device)
        precision = resolve_amp(self.precision, processes.device)
        folder = output_folder(self.output, options)
        weights = load_weights(self.weights)
        extractor = all_cells_of(
            self.weights,
            scales=self.scales,
            max_side=self.max_side,
            precision="bf16" if precision == torch.bfloat16 else "fp32",
            device=str(processes.device),
            n_jobs=options.n_jobs,
        )
        settings = self._settings(photos, pairs, weights, precision, optimization)
        if folder is not None:
            refuse_other_run(folder, settings)
            make_folder(folder)
            if processes.is_main:
                make_folder(folder / "cells")
            processes.wait()
            refuse_unshared(folder / "cells", processes)
        cells = processes.main_first(
            lambda: match_cells(
                photos,
                pairs,
                extractor,
                weights.pca,
                n_cells=self.n_cells,
                min_inliers=self.min_inliers,
                random_state=seed,
                folder=None if folder is None else folder / "cells",
                key={name: value for name, value in settings.items() if name != "optimization"},
                progress=progress,
            )
        )
        self.left_out_ = [(photos.paths[row], reason) for row, reason in cells.unreadable]
        if self.left_out_:
            logger.warning(left_out_text(self.left_out_, len(photos)))
        plan = Plan(
            np.unique(photos.labels[cells.rows], return_inverse=True)[1].astype(np.int64),
            batch_size=optimization.batch_size,
            sampling=optimization.sampling,
            random_state=seed,
            n_parts=processes.count,
            part=processes.index,
        )
        head = InlierHead(random_state=seed).to(processes.device)
        job = Job(
            model=head,
            make_batch=lambda step: _batch(cells, plan.step(step)[2]),
            steps_per_epoch=plan.steps_per_epoch,
            optimization=optimization,
            factors={},
            settings=settings,
            precision=precision,
            begin=lambda batch: head.calibrate(_size(batch, processes.mean)),
            losses=lambda outputs, batch: [(outputs[0], outputs[1])],
        )
        n_threads = check_n_jobs(options.n_jobs) or os.cpu_count() or 1
        with torch_threads(n_threads):
            ran = loop.run(
                job, folder, processes, options, n_threads=min(n_threads, 4), progress=progress
            )
            slope, constant = _logistic(head, cells, processes.device)
        self.n_photos_, self.n_pairs_ = len(cells.rows), cells.n_verified
        self.n_steps_ = optimization.epochs * plan.steps_per_epoch
        learned = dataclasses.replace(
            weights, attention=head.head_tensors(slope, constant), score_scale=1.0
        )
        conclude(self, learned, job, ran, photos, folder, processes, licence=licence)
        return self

    def save(self, path: PathLike, *, half: bool = False) -> Path:
        """Write the weights that fit learned; DelfExtractor(weights=path) takes them.

        path : ends in .safetensors. half : in half precision, half the size.
        Raises NotFittedError before fit.
        """
        return save_learned(self, path, half)

    def _pairs(self, photos: LabelledPhotos) -> list[tuple[int, int]]:
        if not isinstance(self.matched, MatchedPhotos):
            raise TypeError(
                "matched must be MatchedPhotos, as match_photos or MatchedPhotos.load returns; got "
                f"{type(self.matched).__name__}"
            )
        return [(a, b) for _, a, b in pairs_among(self.matched, photos)]

    def _settings(
        self,
        photos: LabelledPhotos,
        pairs: list[tuple[int, int]],
        weights: Weights,
        precision: torch.dtype | None,
        optimization: Optimization,
    ) -> dict[str, Any]:
        return {
            "mode": self._mode,
            "weights_sha256": weights.sha256,
            "photos": {
                "n_photos": len(photos),
                "n_classes": len(photos.classes),
                "fingerprint": photos.fingerprint(),
            },
            "pairs": hashlib.blake2b(repr(pairs).encode(), digest_size=16).hexdigest(),
            "precision": "fp32" if precision is None else str(precision).removeprefix("torch."),
            "random_state": int(self.random_state),
            "scales": list(resolve_scales(self.scales)),
            "max_side": self.max_side,
            "n_cells": int(self.n_cells),
            "min_inliers": int(self.min_inliers),
            "optimization": dataclasses.asdict(optimization),
        }


def _batch(cells: MatchedCells, photos: NDArray[np.int64]) -> CellBatch:
    return CellBatch(
        torch.from_numpy(np.ascontiguousarray(cells.features[photos])),
        torch.from_numpy(cells.shares[photos]),
    )


def _size(batch: CellBatch, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the root of the mean square of a value; mean : over the processes."""
    values = batch.inputs[batch.shares >= 0].float()
    return mean(values.square().mean()).sqrt()


def _logistic(head: InlierHead, cells: MatchedCells, device: torch.device) -> tuple[float, float]:
    """Return slope and constant that make logits z those of the shares: p = sigmoid(s z + c).

    Least cross-entropy over all cells that were drawn, by Newton's method.
    """
    parts = []
    with torch.no_grad():
        for row in range(len(cells.rows)):
            of_photo = torch.from_numpy(np.array(cells.features[row : row + 1]))
            parts.append(head.logits(of_photo.to(device))[0].double().cpu())
    there = torch.from_numpy(cells.shares.reshape(-1) >= 0)
    z = torch.cat(parts)[there]
    shares = torch.from_numpy(cells.shares.reshape(-1)).double()[there]
    centre, size = z.mean(), z.std().clamp(min=1e-12)
    inputs = torch.stack([(z - centre) / size, torch.ones_like(z)], 1)
    # A little ridge, so that there is a solution where cells are told apart without error.
    ridge = 1e-6

    def loss(solution: Tensor) -> Tensor:
        logits = inputs @ solution
        return nn.functional.binary_cross_entropy_with_logits(logits, shares) + ridge * (
            solution[0].square()
        )

    share = shares.mean().clamp(1e-6, 1 - 1e-6)
    solution = torch.stack([torch.zeros_like(share), torch.logit(share)])
    for _ in range(_N_NEWTON):
        chances = torch.sigmoid(inputs @ solution)
        weights = chances * (1 - chances) / len(z)
        gradient = inputs.T @ (chances - shares) / len(z)
        gradient[0] += 2 * ridge * solution[0]
        curvature = (inputs * weights[:, None]).T @ inputs + ridge * torch.eye(2).double()
        step = torch.linalg.solve(curvature, gradient)
        before = loss(solution)
        while loss(solution - step) > before and step.abs().max() > 1e-9:
            step = step / 2
        solution = solution - step
    solution = torch.stack([solution[0] / size, solution[1] - solution[0] * centre / size])
    slope, constant = solution.tolist()
    if slope > 0:
        return slope, constant
    # The order of a head that learned nothing must stay: only the mean share is met.
    logger.warning(
        "the attention head ranks matched cells no better than others: its scores tell nothing; "
        "train longer, or match more photos"
    )
    return 1.0, _constant(z, float(share))


def _constant(z: Tensor, share: float) -> float:
    """Return the constant that gives sigmoid(z + constant) this mean, by bisection."""
    middle = float(torch.logit(torch.tensor(share, dtype=torch.float64)))
    low, high = middle - float(z.max()), middle - float(z.min())
    for _ in range(_N_HALVINGS):
        constant = (low + high) / 2
        if torch.sigmoid(z + constant).mean() < share:
            low = constant
        else:
            high = constant
    return (low + high) / 2
