"""One process, or several on some GPUs or machines through Hugging Face accelerate.

Started plainly, training runs in one process and needs torch alone. Started by `accelerate launch`
or torchrun, every process takes its share of each batch, and accelerate averages the gradients.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from delfsearch._validation import check_choice
from delfsearch.extraction.runtime import resolve_device

ACCELERATE = ("auto", "always", "never")
# How long processes wait for each other: for what the main one does alone, matching and decoding,
# the ten (NCCL) or thirty minutes that torch gives them are too few.
TIMEOUT = datetime.timedelta(hours=24)


class Processes:
    """A single process. count, index : how many there are, and which of them this is.

    count_here : how many there are on this machine.
    """

    def __init__(self, device: str) -> None:
        self.device = resolve_device(device)
        self.count = self.count_here = 1
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

    def joined(self, items: list[Any]) -> list[Any]:
        """Return the items of all processes."""
        return items

    def is_common(self, value: Any) -> bool:
        """Whether a value is the same in all processes. All must ask."""
        return all(other == value for other in self.joined([value]))

    def agree(self, model: nn.Module) -> None:
        """Give the model of every process the main one's buffers."""

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
            from accelerate.utils import (
                DistributedDataParallelKwargs,
                DistributedType,
                InitProcessGroupKwargs,
            )
        except ImportError as error:
            raise ImportError(
                "training in several processes needs Hugging Face accelerate, which is not "
                "installed: pip install delfsearch[training]"
            ) from error
        asked = resolve_device(device)
        if asked.type not in ("cpu", "cuda") or asked.index is not None:
            raise ValueError(
                f"device must be 'auto', 'cpu' or 'cuda' with accelerate, which gives each process "
                f"a GPU of its own; got {device!r}"
            )
        # Buffers (statistics, the queue of negatives) are the main process's in all of them before
        # every step: so what its checkpoint holds is all that there is to go on from.
        buffers = DistributedDataParallelKwargs(broadcast_buffers=True)
        patience = InitProcessGroupKwargs(timeout=TIMEOUT)
        # Precision and checkpoints are the loop's own, whether or not there is accelerate.
        self._accelerator: Any = Accelerator(
            mixed_precision="no",
            cpu=asked.type == "cpu",
            kwargs_handlers=[buffers, patience],
        )
        kind = self._accelerator.distributed_type
        if kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            raise ValueError(
                f"training splits batches over processes, not models; accelerate is configured "
                f"for {kind.value}: run `accelerate config` without it"
            )
        self.device = self._accelerator.device
        self.count = int(self._accelerator.num_processes)
        self.count_here = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        self.index = int(self._accelerator.process_index)

    def prepare(self, model: nn.Module) -> nn.Module:
        prepared: nn.Module = self._accelerator.prepare_model(model)
        return prepared

    def mean(self, values: Tensor) -> Tensor:
        reduced: Tensor = self._accelerator.reduce(values, "mean")
        return reduced

    def joined(self, items: list[Any]) -> list[Any]:
        from accelerate.utils import gather_object

        joined: list[Any] = gather_object(items)
        return joined

    def agree(self, model: nn.Module) -> None:
        from accelerate.utils import broadcast

        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer, from_process=0))

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()


def make_processes(accelerate: str, device: str) -> Processes:
    """Return the processes of this run.

    accelerate : "auto" uses it where several processes were started, "always", "never".
    """
    check_choice(accelerate, "accelerate", ACCELERATE)
    if accelerate == "always" or (accelerate == "auto" and _n_started() > 1):
        return _Accelerated(device)
    return Processes(device)


def refuse_several(what: str, instead: str) -> None:
    """Raise ValueError where several processes were started for what works in one."""
    if (n := _n_started()) > 1:
        raise ValueError(
            f"{what} works in one process; {n} were started (WORLD_SIZE={n}): start it plainly, "
            f"without accelerate launch or torchrun{instead}"
        )


def _n_started() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
