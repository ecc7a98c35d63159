"""What contrastive training trains: the trunk and the reduction, by matched points of two views.

A point of the one view must be nearer to its spot in the other view than to everything else: other
spots of the batch, and descriptors of earlier steps, which a queue keeps (InfoNCE; the queue as in
MoCo, without its second network). Source: ours; the paper trains by classification (Sec. 3.2). What
is compared is what the index compares: L2, projection, L2 (Sec. 3.4).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delfsearch.extraction.network import N_CHANNELS, layers
from delfsearch.extraction.receptive_field import receptive_field
from delfsearch.training.trunk import TrainableTrunk

# Descriptors of a step that enter the queue.
_N_QUEUED = 512
# Descriptors kept for each component, though told from by no one, to find the principal axes.
_N_FOR_AXES = 4
_MASKED = -1e4


class Reduction(nn.Module):
    """(n, 1024) -> (n, k): L2, projection, L2. Source: Sec. 3.4; the projection is trained."""

    def __init__(self, mean: Tensor, components: Tensor) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean.detach().clone())
        self.components = nn.Parameter(components.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        """Return the descriptors, of length 1."""
        return F.normalize((F.normalize(features, dim=1) - self.mean) @ self.components.T, dim=1)


class ContrastiveModel(nn.Module):
    """Views and points -> (loss, accuracy), and of the head, if there is one.

    reduction : where training begins. side : of the views. n_negatives : of the queue, what is told
        from; it is no shorter than the principal axes need.
    temperature : of the softmax over cosines of descriptors. exclusion : spots of the
        same photo that are nearer than so many cells are neither right nor wrong; nor is what shows
        the same class elsewhere in the batch, or in the queue any class of the batch.
    """

    def __init__(
        self,
        trunk: TrainableTrunk,
        reduction: Reduction,
        *,
        side: int,
        n_negatives: int,
        temperature: float,
        exclusion: float,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        device = trunk._mean.device
        self.reduction = reduction.to(device)
        field = receptive_field(layers(trunk.layout), side)
        self.centres = field.centres()
        self._offset, self._stride = field.offset, field.stride
        self._last_cell = max(field.n_cells - 1, 1)
        self._temperature = temperature
        self._exclusion = exclusion * field.stride
        n_components = len(reduction.components)
        self._n_negatives = n_negatives
        n_kept = max(n_negatives, _N_FOR_AXES * n_components)
        self.queue: Tensor
        self.queue_classes: Tensor
        self.register_buffer("queue", torch.zeros(n_kept, n_components, device=device))
        self.register_buffer("queue_classes", torch.full((n_kept,), -1, device=device))

    def forward(
        self, views: Tensor, points: Tensor, pair_of: Tensor, classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the pairs, each counting the same, and the accuracy."""
        features = self.trunk(views)
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            zero = torch.zeros((), device=features.device)
            if not len(points):
                nothing = sum((p.sum() * 0.0 for p in self.parameters()), zero)
                return nothing, zero
            b = len(classes)
            first = self.reduction(self._at(features[:b], points[:, :2], pair_of))
            second = self.reduction(self._at(features[b:], points[:, 2:], pair_of))
            of_class = classes[pair_of]
            weights = 1.0 / torch.bincount(pair_of, minlength=b).float()[pair_of]
            weights = weights / weights.sum()
            newest = self.queue_classes[: self._n_negatives]
            known = (newest >= 0) & ~torch.isin(newest, classes)
            earlier = self.queue[: self._n_negatives][known]
            there = self._losses(first, second, points[:, 2:], pair_of, of_class, earlier)
            back = self._losses(second, first, points[:, :2], pair_of, of_class, earlier)
            losses, found = (torch.cat(both) for both in zip(there, back))
            weights = torch.cat([weights, weights]) / 2
            if self.training:
                self._enqueue(second.detach(), of_class)
        return (losses * weights).sum(), (found.float() * weights).sum()

    def _at(self, features: Tensor, xy: Tensor, pair_of: Tensor) -> Tensor:
        """Return (m, 1024), the features (b, 1024, h, h) interpolated at the points."""
        counts = torch.bincount(pair_of, minlength=len(features))
        start = torch.cumsum(counts, 0) - counts
        place = torch.arange(len(xy), device=xy.device) - start[pair_of]
        cells = (xy - self._offset) / self._stride
        grid = torch.zeros(len(features), 1, int(counts.max()), 2, device=xy.device)
        grid[pair_of, 0, place] = 2.0 * cells / self._last_cell - 1.0
        sampled = F.grid_sample(features, grid, align_corners=True, padding_mode="border")
        return sampled[:, :, 0].transpose(1, 2)[pair_of, place]

    def _losses(
        self,
        anchors: Tensor,
        others: Tensor,
        xy: Tensor,
        pair_of: Tensor,
        of_class: Tensor,
        earlier: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return each anchor's cross-entropy (m,), and whether its own spot is the nearest (m,).

        others : (m, k), of the spots in the other view, the i-th being the i-th anchor's own; xy :
        where they lie. earlier : (q, k) further ones, all wrong.
        """
        same_class = of_class[:, None] == of_class[None]
        same_pair = pair_of[:, None] == pair_of[None]
        left_out = same_class & (~same_pair | (torch.cdist(xy, xy) < self._exclusion))
        left_out.fill_diagonal_(False)
        logits = (anchors @ others.T / self._temperature).masked_fill(left_out, _MASKED)
        own, total = logits.diagonal(), torch.logsumexp(logits, 1)
        nearest = logits.detach().amax(1)
        if len(earlier):
            # The largest matrix of a step: passed over as few times as can be.
            logits = (anchors / self._temperature) @ earlier.T
            total = torch.logaddexp(total, torch.logsumexp(logits, 1))
            nearest = torch.maximum(nearest, logits.detach().amax(1))
        return total - own, own >= nearest

    def _enqueue(self, descriptors: Tensor, of_class: Tensor) -> None:
        n = min(_N_QUEUED, len(descriptors), len(self.queue))
        if not n:
            return
        rows = torch.linspace(0, len(descriptors) - 1, n, device=descriptors.device).long()
        self.queue.copy_(torch.cat([descriptors[rows], self.queue[: len(self.queue) - n]]))
        self.queue_classes.copy_(
            torch.cat([of_class[rows], self.queue_classes[: len(self.queue) - n]])
        )

    def reduction_tensors(self) -> dict[str, Tensor]:
        """Return pca.mean, pca.components and pca.explained_variance.

        The projection is turned so that its axes are the principal ones of the queue's descriptors:
        no distance changes, but the first components are the ones to keep.
        """
        mean = self.reduction.mean.detach().double().cpu()
        components = self.reduction.components.detach().double().cpu()
        seen = self.queue[self.queue_classes >= 0].double().cpu()
        variances = torch.zeros(len(components), dtype=torch.float64)
        if len(seen) > len(components):
            values, vectors = torch.linalg.eigh(torch.cov(seen.T))
            vectors, variances = vectors.flip(1), values.flip(0).clamp(min=0.0)
            components = vectors.T @ components
            largest = components.abs().argmax(dim=1, keepdim=True)
            components = components * components.gather(1, largest).sign()
        return {
            "pca.mean": mean.float(),
            "pca.components": components.float().contiguous(),
            "pca.explained_variance": variances.float(),
        }


def first_reduction(features: Tensor, n_components: int) -> tuple[Tensor, Tensor]:
    """Return mean (1024,) and principal components (k, 1024) of normalised (n, 1024)."""
    rows = F.normalize(features.double(), dim=1)
    mean = rows.mean(dim=0)
    _, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean))
    components = vectors.flip(1).T[:n_components]
    largest = components.abs().argmax(dim=1, keepdim=True)
    components = components * components.gather(1, largest).sign()
    if len(components) < n_components:
        raise ValueError(f"n_components must be at most {N_CHANNELS}; got {n_components}")
    return mean.float(), components.float().contiguous()
