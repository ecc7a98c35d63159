"""Keypoint scores: L2 norm of the feature, attention, or their product. Source: Sec. 3.3.

The attention head is a 1x1 convolution to 512 channels with ReLU and a 1x1 convolution to one, with
softplus on top, on the raw conv4_x features (as the official code does). The hidden layers run in
the precision of the network, the last one and the norm in float32. The weights' score_scale
multiplies it, so that the threshold beta can have a stated meaning. Heads of DELG may have one 1x1
convolution to 1,024 channels with ReLU ahead, its autoencoder.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from delfsearch._validation import check_choice
from delfsearch.errors import WeightsError

SCORES = ("auto", "l2", "attention", "l2*attention")


def resolve_score(score: str, has_attention: bool) -> str:
    """Return "l2", "attention" or "l2*attention"; "auto" means what the weights have.

    Raises WeightsError where attention is asked of weights that have none.
    """
    check_choice(score, "score", SCORES)
    if score == "auto":
        return "attention" if has_attention else "l2"
    if score != "l2" and not has_attention:
        raise WeightsError(
            f"score={score!r} needs weights with an attention head (tensors attention.conv1 and "
            "attention.conv2); these have none: use score='l2' or 'auto', or train one"
        )
    return score


class Scorer:
    """features (h, w, 1024) of any dtype -> scores (h, w) float32, on the features' device."""

    def __init__(
        self,
        score: str,
        attention: Mapping[str, Tensor],
        device: torch.device,
        *,
        score_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.score = resolve_score(score, bool(attention))
        self.score_scale = score_scale
        self.dtype = dtype  # of the hidden layers
        # A 1x1 convolution is a linear map per cell: kernels (out, in, 1, 1) become (out, in).
        self._head = {
            key.removeprefix("attention."): value.to(
                device, torch.float32 if "conv2" in key else dtype
            ).reshape(value.shape[:2])
            for key, value in attention.items()
        }

    def __call__(self, features: Tensor) -> Tensor:
        """Return the score of every cell."""
        if self.score == "l2":
            return self._l2(features)
        head = self._head
        hidden = features.to(self.dtype)
        if "conv0.weight" in head:
            hidden = F.linear(hidden, head["conv0.weight"], head["conv0.bias"]).relu_()
        hidden = F.linear(hidden, head["conv1.weight"], head["conv1.bias"]).relu_()
        logits = F.linear(hidden.float(), head["conv2.weight"], head["conv2.bias"])
        attention = F.softplus(logits[..., 0]) * self.score_scale
        return attention * self._l2(features) if self.score == "l2*attention" else attention

    @staticmethod
    def _l2(features: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(features, dim=-1, dtype=torch.float32)
        return norms
