"""The loop over the steps: loss, gradient, change, curves, checkpoints.

A step depends on the parameters, the state of the optimiser and its own number, all of which a
checkpoint holds; so a run that goes on from one computes what an unbroken run would have. On a
processor, with as many torch threads, that is so to the last bit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delfsearch._validation import check_choice, check_integer, check_n_jobs, check_real
from delfsearch.errors import PhotoError
from delfsearch.extraction.runtime import resolve_precision
from delfsearch.training.batches import Batch, prepared
from delfsearch.training.checkpoint import (
    Checkpoint,
    make_folder,
    read_checkpoint,
    refuse_unshared,
    write_checkpoint,
)
from delfsearch.training.curves import COLUMNS, CurveWriter
from delfsearch.training.made_with import made_with
from delfsearch.training.optimization import Optimization, Optimizer
from delfsearch.training.photo_store import KEEP
from delfsearch.training.processes import ACCELERATE, Processes

logger = logging.getLogger("delfsearch")

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# Reading a loss waits for a GPU: there, losses are read so many steps at a time.
_READ_EVERY = {"cpu": 1}
_READ_EVERY_ELSEWHERE = 20


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a run works; nothing here changes what it computes, rounding aside.

    device : "auto" (a GPU if there is one), "cpu", "cuda", ... n_jobs : processor threads, -1 for
        all.
    keep_photos : where decoded photos are kept: "auto", "ram", "disk" (in the output folder) or
        "none".
    accelerate : "auto" uses Hugging Face accelerate where several processes were started.
    checkpoint_every, checkpoint_seconds : a checkpoint after so many steps, or so much time,
        whichever comes first.
    tensorboard : write the curves for TensorBoard too.
    """

    device: str = "auto"
    n_jobs: int | None = -1
    keep_photos: str = "auto"
    accelerate: str = "auto"
    checkpoint_every: int = 1000
    checkpoint_seconds: float = 300.0
    tensorboard: bool = False

    def check(self) -> None:
        """Refuse values that make no sense."""
        check_choice(self.keep_photos, "keep_photos", KEEP)
        check_choice(self.accelerate, "accelerate", ACCELERATE)
        check_n_jobs(self.n_jobs)
        check_integer(self.checkpoint_every, "checkpoint_every", minimum=1)
        check_real(self.checkpoint_seconds, "checkpoint_seconds", minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run trains.

    model : batch.arguments -> a tuple of outputs. make_batch : step -> batch, a named tuple with
    inputs and arguments, called by several threads. losses : (outputs, batch) -> loss and accuracy
    of each output; None means cross-entropy of logits and batch.labels.
    factors : learning rates by prefix of a parameter's name, as in Optimizer. settings : JSON-able,
    all that the result depends on. columns : of the curves. begin : called with the first batch
    before the first step. unreadable : of the photos, by row, what is known so far; a run that goes
    on adds what its checkpoint knows.
    """

    model: nn.Module
    make_batch: Callable[[int], Any]
    steps_per_epoch: int
    optimization: Optimization
    factors: Mapping[str, float]
    settings: Mapping[str, Any]
    precision: torch.dtype | None
    columns: tuple[str, ...] = COLUMNS
    begin: Callable[[Any], None] | None = None
    losses: Callable[[tuple[Tensor, ...], Any], list[tuple[Tensor, Tensor]]] | None = None
    unreadable: dict[int, PhotoError] = field(default_factory=dict)


class Ran(NamedTuple):
    """What a run did.

    rows : of the curves, of the steps that were done now. made_with : what all steps were done
    with, in order, see made_with.py. is_new : whether it began with the first step.
    """

    rows: list[tuple[float, ...]]
    made_with: list[dict[str, Any]]
    is_new: bool


def resolve_amp(precision: str, device: torch.device) -> torch.dtype | None:
    """Turn "auto", "fp32", "bf16" or "fp16" into the dtype of autocast; None means none.

    "auto" is bf16 where the hardware multiplies it, else fp16 on a GPU and fp32 on a processor.
    """
    check_choice(precision, "precision", PRECISIONS)
    if device.type == "cuda":
        if precision == "auto":
            precision = "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if precision == "fp16":
        raise ValueError(
            f"precision='fp16' needs a CUDA GPU; got device {device.type!r}: use 'bf16', 'fp32' or "
            "'auto' there"
        )
    dtype = resolve_precision(precision, device)
    return None if dtype == torch.float32 else dtype


def run(
    job: Job,
    folder: Path | None,
    processes: Processes,
    options: RunOptions,
    *,
    n_threads: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> Ran:
    """Train from the checkpoint in folder, if there is one, to the end.

    folder : for curves and checkpoints; None keeps nothing. Raises CheckpointError, in all of the
    processes where they do not find the same checkpoint; ValueError where loss, gradient or
    parameters are no longer finite: no checkpoint is written after that.
    """
    total = job.optimization.epochs * job.steps_per_epoch
    optimizer = Optimizer(job.model, job.optimization, factors=job.factors, clip_apart="branch.")
    scaler = _new_scaler() if job.precision == torch.float16 else None
    found = None if folder is None else _common_checkpoint(folder, job.settings, processes)
    step, seconds = 0, 0.0
    makers: list[dict[str, Any]] = []
    if found is not None:
        step, seconds = found.step, float(found.state["seconds"])
        makers = list(found.state.get("made_with", []))
        _restore(found, job, optimizer, scaler)
    elif job.begin is not None:
        with _autocast(processes.device, job.precision):
            job.begin(_on_device(job.make_batch(0), processes.device))
    if step < total and (maker := made_with(processes)) not in makers:
        makers.append(maker)
    writer = None
    if folder is not None and processes.is_main:
        make_folder(folder)
        writer = CurveWriter(folder, job.columns, done=step, tensorboard=options.tensorboard)
    model = processes.prepare(job.model).train()
    read_every = _READ_EVERY.get(processes.device.type, _READ_EVERY_ELSEWHERE)
    started = saved = time.monotonic()
    rows: list[tuple[float, ...]] = []
    unread: list[tuple[int, Tensor, float]] = []
    batches = prepared(_pinned(job.make_batch, processes), step, total, n_threads=n_threads)
    try:
        for batch in batches:
            rate = job.optimization.rate(step, job.steps_per_epoch)
            figures = _one_step(model, _on_device(batch, processes.device), job, scaler)
            length = optimizer.step(rate, scaler)
            if scaler is not None:  # which has left out a step whose gradient is not finite
                length = torch.zeros_like(length)
            figures = torch.cat([figures, length[None].to(figures)])
            step += 1
            unread.append((step, figures, rate))
            due = step % options.checkpoint_every == 0 or step == total
            if not (due or len(unread) >= read_every):
                continue
            now = time.monotonic()
            new = _read(unread, processes, job.steps_per_epoch, seconds + now - started)
            unread.clear()
            rows += new
            if writer is not None:
                writer.add(new)
                if folder is not None and (due or now - saved >= options.checkpoint_seconds):
                    writer.sync()  # so that no checkpoint is of more steps than its curves
                    elapsed = seconds + time.monotonic() - started
                    _save(folder, step, elapsed, job, optimizer, scaler, makers)
                    saved = time.monotonic()
            if processes.is_main:
                _log_epochs(new, rows, job)
                if progress is not None:
                    progress("steps", step, total)
    finally:
        batches.close()
        if writer is not None:
            writer.close()
    processes.agree(job.model)
    processes.wait()
    return Ran(rows, makers, found is None)


def _common_checkpoint(
    folder: Path, settings: Mapping[str, Any], processes: Processes
) -> Checkpoint | None:
    """Return the latest checkpoint, where all processes find the same one, or none."""
    found = read_checkpoint(folder, settings)
    what = "no checkpoint" if found is None else f"step {found.step}, {found.digest()}"
    refuse_unshared(folder, processes, what)
    return found


def _one_step(
    model: nn.Module, batch: Any, job: Job, scaler: torch.amp.GradScaler | None
) -> Tensor:
    """Compute the gradients; return (loss, accuracy) of each output, on the device."""
    device, dtype = batch.inputs.device, job.precision
    with _autocast(device, dtype):
        outputs: tuple[Tensor, ...] = model(*batch.arguments)
    if job.losses is None:
        losses = _classification(outputs, batch, job.optimization.label_smoothing)
    else:
        losses = job.losses(outputs, batch)
    total = torch.zeros((), device=device)
    for loss, _ in losses:
        total = total + loss
    scaled: Tensor = total if scaler is None else scaler.scale(total)
    scaled.backward()  # type: ignore[no-untyped-call]
    return torch.stack([figure.detach() for pair in losses for figure in pair])


def _autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def _classification(
    outputs: tuple[Tensor, ...], batch: Batch, label_smoothing: float
) -> list[tuple[Tensor, Tensor]]:
    n = batch.weights.sum().clamp(min=1.0)
    figures = []
    for logits in outputs:
        losses = F.cross_entropy(
            logits.float(),
            batch.labels,
            reduction="none",
            label_smoothing=label_smoothing,
        )
        right = (logits.argmax(1) == batch.labels).float()
        figures.append(((losses * batch.weights).sum() / n, (right * batch.weights).sum() / n))
    return figures


def _read(
    unread: list[tuple[int, Tensor, float]],
    processes: Processes,
    steps_per_epoch: int,
    seconds: float,
) -> list[tuple[float, ...]]:
    """Return the rows of the curves of some steps; the last of their figures is the gradient's."""
    figures = processes.mean(torch.stack([figures for _, figures, _ in unread])).tolist()
    rows = []
    for (step, _, rate), (*values, length) in zip(unread, figures):
        if not all(map(_finite, values)):
            raise ValueError(
                f"the loss of step {step} is not finite; lower learning_rate, set clip_norm, or "
                "use precision='fp32'. The last checkpoint is from before it"
            )
        if not _finite(length):
            raise ValueError(
                f"the gradient of step {step} is not finite; lower learning_rate or use "
                "precision='fp32'. The last checkpoint is from before it"
            )
        rows.append((step, 1 + (step - 1) // steps_per_epoch, *values, rate, round(seconds, 3)))
    return rows


def _log_epochs(new: list[tuple[float, ...]], rows: list[tuple[float, ...]], job: Job) -> None:
    """Log the means of the epochs that have just ended."""
    for step, epoch, *_ in new:
        if step % job.steps_per_epoch == 0:
            ended = np.array([row for row in rows if row[1] == epoch])
            means = dict(zip(job.columns, ended.mean(axis=0)))
            logger.info(
                "epoch %d of %d: loss %.4f, accuracy %.4f",
                epoch,
                job.optimization.epochs,
                means["loss"],
                means["accuracy"],
            )


def _finite(value: float) -> bool:
    return abs(value) < float("inf")  # also false of NaN


def _save(
    folder: Path,
    step: int,
    seconds: float,
    job: Job,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler | None,
    makers: list[dict[str, Any]],
) -> None:
    tensors = {f"model|{name}": tensor for name, tensor in job.model.state_dict().items()}
    tensors |= {f"optimizer|{name}": tensor for name, tensor in optimizer.tensors().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{name.replace('|', ' ')} is not finite after step {step}; lower learning_rate. "
                "The last checkpoint is from before it"
            )
    state = {
        "settings": dict(job.settings),
        "seconds": seconds,
        "scaler": None if scaler is None else scaler.state_dict(),
        "unreadable": {str(row): str(error) for row, error in job.unreadable.copy().items()},
        "made_with": makers,
    }
    write_checkpoint(folder, Checkpoint(step, tensors, state))


def _restore(
    found: Checkpoint,
    job: Job,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler | None,
) -> None:
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    for full_name, tensor in found.tensors.items():
        part, _, name = full_name.partition("|")
        parts[part][name] = tensor
    # Copies into the tensors that are there, so that layouts in memory stay as they are: another
    # layout may be summed in another order.
    job.model.load_state_dict(parts["model"])
    optimizer.load(parts["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(found.state["scaler"])
    for row, reason in found.state.get("unreadable", {}).items():
        job.unreadable.setdefault(int(row), PhotoError(reason))


def _new_scaler() -> torch.amp.GradScaler:
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda")
    return torch.cuda.amp.GradScaler()  # type: ignore[return-value]  # torch before 2.3


def _pinned(make: Callable[[int], Any], processes: Processes) -> Callable[[int], Any]:
    """Return a function that leaves batches where a GPU fetches them while it computes."""
    if processes.device.type != "cuda":
        return make

    return lambda step: _each_tensor(make(step), lambda tensor: tensor.pin_memory())


def _on_device(batch: Any, device: torch.device) -> Any:
    return _each_tensor(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _each_tensor(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return type(batch)(*(change(x) if isinstance(x, Tensor) else x for x in batch))
