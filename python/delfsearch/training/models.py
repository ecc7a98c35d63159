"""What is trained: the trunk with a classifier, the attention branch, or both.

Every model maps a batch's inputs to a tuple of logits (n, n_classes), one for each loss.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from delfsearch._validation import check_choice
from delfsearch.errors import WeightsError
from delfsearch.extraction.network import N_CHANNELS, FoldedTrunk
from delfsearch.extraction.weights import Weights
from delfsearch.training.draws import normal_
from delfsearch.training.trunk import TrainableTrunk

N_HIDDEN = 512
POOLING = ("sum", "mean")
_BN_EPS = 1e-3
_BN_MOMENTUM = 0.1
# The frozen trunk takes photos in groups of about so many pixels.
_GROUP_PIXELS = {"cpu": 1 << 20, "cuda": 1 << 24}


class DescriptorModel(nn.Module):
    """Stage 1: trunk, global average pooling, linear classifier. Source: Sec. 3.2."""

    def __init__(self, trunk: TrainableTrunk, n_classes: int, *, random_state: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.classifier = nn.Linear(N_CHANNELS, n_classes)
        normal_(self.classifier.weight, 0.01, random_state, 0)
        nn.init.zeros_(self.classifier.bias)
        self.to(trunk._mean.device)

    def forward(self, photos: Tensor) -> tuple[Tensor, ...]:
        """Return logits (n, n_classes) of photos (n, h, w, 3) uint8."""
        return (self._classify(self.trunk(photos)),)

    def _classify(self, features: Tensor) -> Tensor:
        pooled = features.mean((2, 3), dtype=torch.float32)
        with torch.autocast(pooled.device.type, enabled=False):
            return self.classifier(pooled)  # type: ignore[no-any-return]


class AttentionBranch(nn.Module):
    """Features (n, cells, 1024) float32 -> logits of y = W sum_n a(f_n) f_n.

    a is 1x1-512, ReLU, 1x1-1, softplus, on raw features. pooling : "sum", or "mean" over the cells.
    normalize : pool L2-normalised features. batch_norm : batch normalisation ahead of the ReLU. The
        last three as "mean", True, True are the official code's.
    feature_size, pooled_norm : constants that conv1's inputs and the pooled vectors are divided by.
        conv1 and W absorb them, so the model is eq. 1, but a step of the optimiser then means the
        same whatever the size of the trunk's features.
    Source: Sec. 3.3.2, eq. 1.
    """

    def __init__(
        self,
        n_classes: int,
        *,
        pooling: str = "sum",
        normalize: bool = False,
        batch_norm: bool = False,
        random_state: int,
    ) -> None:
        super().__init__()
        self.pooling = check_choice(pooling, "pooling", POOLING)
        self.normalize = normalize
        self.conv1 = nn.Linear(N_CHANNELS, N_HIDDEN)
        self.bn = nn.BatchNorm1d(N_HIDDEN, _BN_EPS, _BN_MOMENTUM) if batch_norm else None
        self.conv2 = nn.Linear(N_HIDDEN, 1)
        self.classifier = nn.Linear(N_CHANNELS, n_classes, bias=False)
        self.feature_size: Tensor
        self.pooled_norm: Tensor
        self.register_buffer("feature_size", torch.ones(()))
        self.register_buffer("pooled_norm", torch.ones(()))
        normal_(self.conv1.weight, (2.0 / N_CHANNELS) ** 0.5, random_state, 1)
        normal_(self.conv2.weight, 0.01, random_state, 2)
        normal_(self.classifier.weight, 0.01, random_state, 3)
        nn.init.zeros_(self.conv1.bias)
        nn.init.zeros_(self.conv2.bias)

    def scores(self, features: Tensor) -> Tensor:
        """Return a(f) (n, cells) float32 of features (n, cells, 1024)."""
        hidden = self.conv1(features / self.feature_size)
        if self.bn is not None:
            flat = hidden.flatten(0, 1).float()
            flat = F.batch_norm(
                flat,
                self.bn.running_mean,
                self.bn.running_var,
                self.bn.weight,
                self.bn.bias,
                self.training,
                _BN_MOMENTUM,
                _BN_EPS,
            )
            hidden = flat.view(hidden.shape)
        logits: Tensor = self.conv2(torch.relu(hidden))
        return F.softplus(logits[..., 0].float())

    def pooled(self, features: Tensor) -> Tensor:
        """Return the pooled vectors (n, 1024) float32, not divided by pooled_norm."""
        scores = self.scores(features)
        with torch.autocast(features.device.type, enabled=False):
            if self.normalize:
                features = F.normalize(features, dim=-1)
            total = torch.bmm(scores[:, None, :], features)[:, 0]
            return total / features.shape[1] if self.pooling == "mean" else total

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (n, n_classes)."""
        pooled = self.pooled(features) / self.pooled_norm
        with torch.autocast(features.device.type, enabled=False):
            return self.classifier(pooled)  # type: ignore[no-any-return]

    def calibrate(self, features: Tensor, gamma: float, mean: Callable[[Tensor], Tensor]) -> None:
        """Set the two constants from a batch of features: rms of a value, length at gamma 1.

        mean : over the processes.
        """
        with torch.no_grad():
            self.feature_size.copy_(mean(features.square().mean()).sqrt().clamp(min=1e-6))
            length = mean(torch.linalg.vector_norm(self.pooled(features), dim=1).mean())
            if self.pooling == "sum":
                length = length / gamma**2
            self.pooled_norm.copy_(length.clamp(min=1e-6))

    def head_tensors(self) -> dict[str, Tensor]:
        """Return attention.conv1 and attention.conv2 as extraction/scores.py runs them.

        feature_size, and batch normalisation with the statistics that it has gathered, are folded
        into conv1.
        """
        kernel = self.conv1.weight.detach().double() / self.feature_size.double()
        bias = self.conv1.bias.detach().double()
        if self.bn is not None:
            # The buffers exist: BatchNorm1d tracks its statistics.
            variance, mean = self.bn.running_var.double(), self.bn.running_mean.double()  # type: ignore[union-attr]
            gain = self.bn.weight.detach().double() / torch.sqrt(variance + _BN_EPS)
            kernel = kernel * gain[:, None]
            bias = (bias - mean) * gain + self.bn.bias.detach().double()
        tensors = {
            "attention.conv1.weight": kernel[:, :, None, None],
            "attention.conv1.bias": bias,
            "attention.conv2.weight": self.conv2.weight.detach()[:, :, None, None],
            "attention.conv2.bias": self.conv2.bias.detach(),
        }
        return {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}


class FrozenTrunk:
    """Photos (n, h, w, 3) uint8 -> features (n, cells, 1024) of the weights' trunk, no gradient."""

    def __init__(self, weights: Weights, *, dtype: torch.dtype, device: torch.device) -> None:
        self.name = weights.name
        self.device = device
        self.dtype = dtype
        self._mean = torch.tensor(weights.input_mean, device=device)[:, None, None]
        self._trunk = FoldedTrunk(
            weights.tensors,
            weights.layout,
            bn_eps=weights.bn_eps,
            input_std=weights.input_std,
            dtype=dtype,
            device=str(device),
        )

    def __call__(self, photos: Tensor) -> Tensor:
        """Return the features in the trunk's dtype."""
        pixels = photos.shape[1] * photos.shape[2]
        group = max(1, _GROUP_PIXELS.get(self.device.type, 1 << 22) // pixels)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            parts = []
            for some in torch.split(photos, group):
                x = some.permute(0, 3, 1, 2).float() - self._mean
                parts.append(self._trunk(x).permute(0, 2, 3, 1).flatten(1, 2))
            return torch.cat(parts)


def half(features: Tensor, *, weights: str, instead: str) -> NDArray[np.float16]:
    """Return features in half precision, to be kept.

    weights : their name, and instead : what else to do, for the WeightsError where they do not fit.
    """
    largest = float(features.float().abs().max()) if features.numel() else 0.0
    if not largest <= torch.finfo(torch.float16).max:  # also true of NaN
        raise WeightsError(
            f"raw features of weights {weights!r} go up to {largest:g}, half precision, in which "
            f"they are kept, to 65504: {instead}"
        )
    halved: NDArray[np.float16] = features.half().cpu().numpy()
    return halved


class AttentionModel(nn.Module):
    """Stage 2: the attention branch on features of a frozen trunk. Source: Sec. 3.3.2."""

    def __init__(self, trunk: FrozenTrunk, branch: AttentionBranch) -> None:
        super().__init__()
        self.branch = branch.to(trunk.device)
        self._trunk = trunk

    def features(self, inputs: Tensor) -> Tensor:
        """Return features (n, cells, 1024) of photos (n, h, w, 3) uint8, or of cached features."""
        return self._trunk(inputs) if inputs.dtype == torch.uint8 else inputs

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return logits (n, n_classes)."""
        return (self.branch(self.features(inputs).float()),)

    def calibrate(self, inputs: Tensor, gamma: float, mean: Callable[[Tensor], Tensor]) -> None:
        """Set the constants of the branch from a batch."""
        self.branch.calibrate(self.features(inputs).float(), gamma, mean)


class JointModel(DescriptorModel):
    """Both at once; the attention branch's gradient stops at the features. Source: Sec. 3.3.2."""

    def __init__(
        self,
        trunk: TrainableTrunk,
        branch: AttentionBranch,
        n_classes: int,
        *,
        random_state: int,
    ) -> None:
        super().__init__(trunk, n_classes, random_state=random_state)
        self.branch = branch.to(trunk._mean.device)

    def forward(self, photos: Tensor) -> tuple[Tensor, ...]:
        """Return logits of the descriptor and of the attention branch, both (n, n_classes)."""
        features = self.trunk(photos)
        cells = features.detach().flatten(2).transpose(1, 2)
        return self._classify(features), self.branch(cells.float())

    def calibrate(self, inputs: Tensor, gamma: float, mean: Callable[[Tensor], Tensor]) -> None:
        """Set the constants of the branch from a batch."""
        with torch.no_grad():
            cells = self.trunk(inputs).flatten(2).transpose(1, 2)
        self.branch.calibrate(cells.float(), gamma, mean)
