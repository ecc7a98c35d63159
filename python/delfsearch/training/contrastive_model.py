"""What contrastive training trains: the trunk and the reduction, by matched points of two views.

A point of the one view must be nearer to its spot in the other view than to everything else: other
spots of the batch, and descriptors of earlier steps, which a queue keeps (InfoNCE; the queue as in
MoCo, without its second network). Source: ours; the paper trains by classification (Sec. 3.2). What
is compared is what the index compares: L2, projection, L2 (Sec. 3.4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delfsearch.extraction.network import N_CHANNELS, layers
from delfsearch.extraction.receptive_field import receptive_field
from delfsearch.training.draws import normal_
from delfsearch.training.models import N_HIDDEN
from delfsearch.training.trunk import TrainableTrunk

# Descriptors of a step that enter the queue.
_N_QUEUED = 512
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


class MatchHead(nn.Module):
    """(n, 1024) -> (n,) logits of the chance that a point is found again; an attention head.

    Of the paper's form, 1x1-512, ReLU, 1x1-1, softplus (Sec. 3.3.2). With a chance of p it scores
    softplus(logit) = -log(1 - p).
    """

    def __init__(self, *, random_state: int) -> None:
        super().__init__()
        self.conv1 = nn.Linear(N_CHANNELS, N_HIDDEN)
        self.conv2 = nn.Linear(N_HIDDEN, 1)
        # conv1's inputs are divided by it, which conv1 absorbs when saved.
        self.feature_size: Tensor
        self.register_buffer("feature_size", torch.ones(()))
        normal_(self.conv1.weight, (2.0 / N_CHANNELS) ** 0.5, random_state, 1)
        normal_(self.conv2.weight, 0.01, random_state, 2)
        nn.init.zeros_(self.conv1.bias)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.conv2(torch.relu(self.conv1(features / self.feature_size)))
        return logits[:, 0]

    def head_tensors(self) -> dict[str, Tensor]:
        """Return attention.conv1 and attention.conv2 as extraction/scores.py runs them."""
        kernel = self.conv1.weight.detach().double() / self.feature_size.double()
        tensors = {
            "attention.conv1.weight": kernel[:, :, None, None],
            "attention.conv1.bias": self.conv1.bias.detach(),
            "attention.conv2.weight": self.conv2.weight.detach()[:, :, None, None],
            "attention.conv2.bias": self.conv2.bias.detach(),
        }
        return {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}


class ContrastiveModel(nn.Module):
    """Views and points -> (loss, accuracy), and of the head, if there is one.

    head : learns, from features that it does not change, the probability that the softmax gives to
        the right spot. reduction : where training begins. side : of the views. n_negatives : length
        of the queue.
    temperature : of the softmax over cosines of descriptors. exclusion : spots of the
        same photo that are nearer than so many cells are neither right nor wrong; nor is what shows
        the same class elsewhere in the batch, or in the queue any class of the batch.
    """

    def __init__(
        self,
        trunk: TrainableTrunk,
        reduction: Reduction,
        head: MatchHead | None = None,
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
        # The name by which its gradients are clipped on their own.
        self.branch = None if head is None else head.to(device)
        field = receptive_field(layers(trunk.layout), side)
        self.centres = field.centres()
        self._offset, self._stride = field.offset, field.stride
        self._last_cell = max(field.n_cells - 1, 1)
        self._temperature = temperature
        self._exclusion = exclusion * field.stride
        n_components = len(reduction.components)
        self.queue: Tensor
        self.queue_classes: Tensor
        self.register_buffer("queue", torch.zeros(n_negatives, n_components, device=device))
        self.register_buffer("queue_classes", torch.full((n_negatives,), -1, device=device))

    def forward(
        self, views: Tensor, points: Tensor, pair_of: Tensor, classes: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the mean loss over the pairs, each counting the same, and the accuracy.

        With a head its cross-entropy follows, and how often it says rightly which chances are even
        or better.
        """
        features = self.trunk(views)
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            zero = torch.zeros((), device=features.device)
            if not len(points):
                nothing = sum((p.sum() * 0.0 for p in self.parameters()), zero)
                return (nothing, zero) if self.branch is None else (nothing, zero, nothing, zero)
            b = len(classes)
            at_first = self._at(features[:b], points[:, :2], pair_of)
            at_second = self._at(features[b:], points[:, 2:], pair_of)
            first, second = self.reduction(at_first), self.reduction(at_second)
            of_class = classes[pair_of]
            weights = 1.0 / torch.bincount(pair_of, minlength=b).float()[pair_of]
            weights = weights / weights.sum()
            known = (self.queue_classes >= 0) & ~torch.isin(self.queue_classes, classes)
            earlier = self.queue[known]
            there = self._losses(first, second, points[:, 2:], pair_of, of_class, earlier)
            back = self._losses(second, first, points[:, :2], pair_of, of_class, earlier)
            losses, found = (torch.cat(both) for both in zip(there, back))
            weights = torch.cat([weights, weights]) / 2
            if self.training:
                self._enqueue(second.detach(), of_class)
        terms = [losses, found.float()]
        if self.branch is not None:
            chances = torch.exp(-losses.detach())
            said: Tensor = self.branch(torch.cat([at_first, at_second]).detach()).float()
            terms.append(F.binary_cross_entropy_with_logits(said, chances, reduction="none"))
            terms.append(((said > 0) == (chances > 0.5)).float())
        return tuple((term * weights).sum() for term in terms)

    def calibrate(self, views: Tensor, mean: Callable[[Tensor], Tensor]) -> None:
        """Set the head's constant from a batch; mean : over the processes."""
        if self.branch is not None:
            with torch.no_grad():
                size = mean(self.trunk(views).float().square().mean()).sqrt()
                self.branch.feature_size.copy_(size.clamp(min=1e-6))

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
