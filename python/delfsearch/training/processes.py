"""One process, or several on some GPUs or machines through Hugging Face accelerate.

Started plainly, training runs in one process and needs torch alone. Started by `accelerate launch`
or torchrun, every process takes its share of each batch, and accelerate averages the gradients.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from delfsearch._validation import check_choice
from delfsearch.extraction.runtime import resolve_device

ACCELERATE = ("auto", "always", "never")


class Processes:
    """A single process. count, index : how many there are, and which of them this is."""

    def __init__(self, device: str) -> None:
        self.device = resolve_device(device)
        self.count = 1
        self.index = 0

    @property
    def is_main(self) -> bool:
        """Whether this one writes files and reports."""
        return self.index == 0

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return what to call instead of the model so that gradients are averaged."""
        return model

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        return values

    def wait(self) -> None:
        """Wait until every process has come here."""

    def main_first(self, action: Callable[[], Any]) -> Any:
        """Run an action in the main process, then in the others."""
        if self.is_main:
            result = action()
            self.wait()
            return result
        self.wait()
        return action()


class _Accelerated(Processes):
    def __init__(self, device: str) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import DistributedType
        except ImportError as error:
            raise ImportError(
                "training in several processes needs Hugging Face accelerate, which is not "
                "installed: pip install delfsearch[training]"
            ) from error
        on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        # Precision and checkpoints are the loop's own, whether or not there is accelerate.
        self._accelerator = Accelerator(mixed_precision="no", cpu=on_cpu)
        kind = self._accelerator.distributed_type
        if kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            raise ValueError(
                f"training splits batches over processes, not models; accelerate is configured "
                f"for {kind.value}: run `accelerate config` without it"
            )
        self.device = self._accelerator.device
        self.count = int(self._accelerator.num_processes)
        self.index = int(self._accelerator.process_index)

    def prepare(self, model: nn.Module) -> nn.Module:
        prepared: nn.Module = self._accelerator.prepare_model(model)
        return prepared

    def mean(self, values: Tensor) -> Tensor:
        reduced: Tensor = self._accelerator.reduce(values, "mean")
        return reduced

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()


def make_processes(accelerate: str, device: str) -> Processes:
    """Return the processes of this run.

    accelerate : "auto" uses it where several processes were started, "always", "never".
    """
    check_choice(accelerate, "accelerate", ACCELERATE)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerate == "always" or (accelerate == "auto" and started > 1):
        return _Accelerated(device)
    return Processes(device)
