"""How weights are changed: optimiser, learning rate as a function of the step, clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delfsearch._validation import check_choice, check_integer, check_real

OPTIMIZERS = ("sgd", "adamw")
SAMPLING = ("photos", "classes")
SCHEDULES = ("linear", "cosine", "step", "constant")


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """Optimiser and schedule.

    epochs : times that as many photos are shown as there are. batch_size : photos of a step, over
        all processes.
    sampling : "photos" shows every photo once an epoch; "classes" draws classes evenly, then one
        of their photos.
    optimizer : "sgd" (with momentum) or "adamw". learning_rate : at its highest.
    classifier_factor : learning rate of the classifiers, which begin at random, over that of the
        rest.
    momentum : of SGD. weight_decay : of kernels; biases and batch normalisation have none.
    schedule : "linear" or "cosine" down to 0, "step", or "constant"; after a linear rise over
        warmup_epochs.
    drop_every, drop_factor : "step" multiplies by drop_factor every drop_every epochs.
    clip_norm : gradients of trunk with classifier, and of the attention branch, are each scaled
        down to this length; None clips nothing.
    label_smoothing : in [0, 1), share of the target that goes to all classes.
    Source: the official code trains by SGD with momentum 0.9 and a linear decay from 0.01; the
        paper states neither.
    """

    epochs: int = 20
    batch_size: int = 32
    sampling: str = "photos"
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    classifier_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "linear"
    warmup_epochs: float = 0.5
    drop_every: float = 10.0
    drop_factor: float = 0.1
    clip_norm: float | None = 10.0
    label_smoothing: float = 0.0

    def check(self) -> None:
        """Refuse values that make no sense."""
        check_integer(self.epochs, "epochs", minimum=1)
        check_integer(self.batch_size, "batch_size", minimum=1)
        check_choice(self.sampling, "sampling", SAMPLING)
        check_choice(self.optimizer, "optimizer", OPTIMIZERS)
        check_choice(self.schedule, "schedule", SCHEDULES)
        for name in ("learning_rate", "classifier_factor", "drop_every", "drop_factor"):
            check_real(getattr(self, name), name, minimum=0.0, exclusive_minimum=True)
        check_real(self.momentum, "momentum", minimum=0.0, maximum=1.0)
        check_real(self.weight_decay, "weight_decay", minimum=0.0)
        check_real(self.warmup_epochs, "warmup_epochs", minimum=0.0, maximum=self.epochs)
        check_real(self.label_smoothing, "label_smoothing", minimum=0.0, maximum=0.999)
        if self.clip_norm is not None:
            check_real(self.clip_norm, "clip_norm", minimum=0.0, exclusive_minimum=True)

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        total = self.epochs * steps_per_epoch
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, total - warmup)
        if self.schedule == "linear":
            return self.learning_rate * (1.0 - done)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
        if self.schedule == "step":
            drops = math.floor(step / (self.drop_every * steps_per_epoch))
            return self.learning_rate * self.drop_factor**drops
        return self.learning_rate


class Optimizer:
    """An optimiser over named parameters whose whole state is a flat set of tensors.

    factors : learning rate of a parameter over that of the schedule, by prefix of its name.
    clip_apart : prefix of the names that are clipped on their own.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Optimization,
        *,
        factors: Mapping[str, float],
        clip_apart: str,
    ) -> None:
        self.settings = settings
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        groups = []
        for name, parameter in self.named.items():
            factor = next((f for start, f in factors.items() if name.startswith(start)), 1.0)
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.append({"params": [parameter], "weight_decay": decay, "factor": factor})
        if settings.optimizer == "sgd":
            self._optimizer: torch.optim.Optimizer = torch.optim.SGD(
                groups, lr=settings.learning_rate, momentum=settings.momentum
            )
        else:
            self._optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
        apart = [p for n, p in self.named.items() if n.startswith(clip_apart)]
        rest = [p for n, p in self.named.items() if not n.startswith(clip_apart)]
        self._clipped = [group for group in (rest, apart) if group]

    def step(self, rate: float, scaler: torch.amp.GradScaler | None) -> Tensor:
        """Change the parameters by their gradients, and drop these; return their largest length.

        That is of the groups that are clipped apart, before clipping. Without a scaler, which
        leaves out steps of its own, a length that is not finite means that all is lost.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if scaler is not None:
            scaler.unscale_(self._optimizer)
        longest = math.inf if self.settings.clip_norm is None else self.settings.clip_norm
        lengths = [nn.utils.clip_grad_norm_(group, longest) for group in self._clipped]
        if scaler is not None:
            scaler.step(self._optimizer)
            scaler.update()
        else:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return torch.stack(lengths).amax()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, by parameter and name."""
        return {
            f"{name}|{key}": value
            for name, parameter in self.named.items()
            for key, value in self._optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state; layouts in memory are those of the parameters."""
        self._optimizer.state.clear()
        for full_name, value in tensors.items():
            name, _, key = full_name.rpartition("|")
            parameter = self.named[name]
            if value.shape == parameter.shape and value.ndim:
                value = torch.empty_like(parameter).copy_(value)
            self._optimizer.state[parameter][key] = value
