"""A run that stopped at any step goes on to the same curve and the same weights, bit by bit."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training.small import OPTIMIZATION, RUN, VIEWS, same, stop_after

from delfsearch.training import (
    AttentionTrainer,
    CheckpointError,
    DescriptorTrainer,
    JointTrainer,
    Optimization,
    RunOptions,
    read_curves,
)
from delfsearch.training import loop as loop_module
from delfsearch.training.batches import Batch
from delfsearch.training.checkpoint import read_checkpoint
from delfsearch.training.curves import COLUMNS
from delfsearch.training.loop import Job
from delfsearch.training.processes import Processes

FIGURES = [name for name in COLUMNS if name != "seconds"]
CHILD = """
import sys
from pathlib import Path
from training.small import OPTIMIZATION, RUN, VIEWS
from delfsearch.training import DescriptorTrainer, photos_from_image_folder

def progress(what, done, total):
    print(what, done, flush=True)

weights, photos, output = sys.argv[1:]
DescriptorTrainer(
    weights, output=output, views=VIEWS, optimization=OPTIMIZATION, precision="fp32", run=RUN
).fit(photos_from_image_folder(photos), progress=progress)
"""


def same_curves(one, other) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in FIGURES)


def test_a_killed_process_resumes_to_the_last_bit(weights_path, photos, tmp_path):
    options = {"views": VIEWS, "optimization": OPTIMIZATION, "precision": "fp32", "run": RUN}
    whole = DescriptorTrainer(weights_path, output=tmp_path / "whole", **options).fit(photos)
    assert whole.n_steps_ == 6
    command = [
        sys.executable,
        "-c",
        CHILD,
        str(weights_path),
        str(photos.root),
        tmp_path / "killed",
    ]
    tests = os.fspath(Path(__file__).resolve().parent.parent)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": tests}
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.split() == ["steps", "3"]:
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "killed").iterdir()]
    assert "weights.safetensors" not in left
    assert any(name.startswith("checkpoint-") for name in left)
    steps = []
    resumed = DescriptorTrainer(weights_path, output=tmp_path / "killed", **options).fit(
        photos, progress=lambda what, done, total: steps.append(done) if what == "steps" else None
    )
    assert steps[0] > 2 and steps[-1] == 6  # what the checkpoint held was not done again
    assert same_curves(read_curves(tmp_path / "whole"), read_curves(tmp_path / "killed"))
    assert same_curves(whole.curves_, resumed.curves_)
    assert same(whole.weights_.tensors, resumed.weights_.tensors)
    written = [(tmp_path / f / "weights.safetensors").read_bytes() for f in ("whole", "killed")]
    assert written[0] == written[1]


@pytest.mark.parametrize("stop", [1, 5])
@pytest.mark.parametrize(
    "make",
    [
        lambda *a, **k: AttentionTrainer(*a, cached_crops=2, head_batch_norm=True, **k),
        lambda *a, **k: JointTrainer(*a, trainable="layer3", batch_norm="trained", **k),
    ],
    ids=["attention", "joint"],
)
def test_stopped_trainers_resume(weights_path, photos, tmp_path, make, stop):
    options = {"views": VIEWS, "optimization": OPTIMIZATION, "precision": "fp32"}
    run = dataclasses.replace(RUN, checkpoint_every=3)
    whole = make(weights_path, output=tmp_path / "whole", run=run, **options).fit(photos)
    with pytest.raises(KeyboardInterrupt):
        make(weights_path, output=tmp_path / "cut", run=run, **options).fit(
            photos, progress=stop_after(stop)
        )
    resumed = make(weights_path, output=tmp_path / "cut", run=run, **options).fit(photos)
    assert same_curves(whole.curves_, resumed.curves_)
    assert same(whole.weights_.tensors, resumed.weights_.tensors)
    assert same(whole.weights_.attention, resumed.weights_.attention)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.classifier = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.classifier(torch.relu(self.norm(self.layer(x)))),)


def tiny_job(optimizer: str, schedule: str) -> Job:
    def make(step: int) -> Batch:
        rng = np.random.default_rng(step)
        inputs = torch.from_numpy(rng.standard_normal((4, 6), np.float32))
        labels = torch.from_numpy(rng.integers(0, 3, 4))
        return Batch(inputs, labels, torch.ones(4), 1.0)

    return Job(
        model=Tiny(),
        make_batch=make,
        steps_per_epoch=3,
        optimization=Optimization(epochs=3, optimizer=optimizer, schedule=schedule),
        factors={"classifier.": 2.0},
        settings={"optimizer": optimizer, "schedule": schedule},
        precision=None,
    )


def run_tiny(folder, every, stops, **kind):
    """Run, stopped after each of some steps and started again; return curves and tensors."""
    options = RunOptions(device="cpu", n_jobs=1, checkpoint_every=every)
    for stop in [*stops, None]:
        job = tiny_job(**kind)
        try:
            loop_module.run(
                job,
                folder,
                Processes("cpu"),
                options,
                n_threads=1,
                progress=None if stop is None else stop_after(stop),
            )
        except KeyboardInterrupt:
            continue
    return read_curves(folder), job.model.state_dict()


@given(
    stops=st.lists(st.integers(1, 9), max_size=3).map(sorted),
    every=st.integers(1, 10),
    kind=st.fixed_dictionaries(
        {
            "optimizer": st.sampled_from(["sgd", "adamw"]),
            "schedule": st.sampled_from(["linear", "cosine", "step"]),
        }
    ),
)
@settings(deadline=None, max_examples=25)
def test_the_loop_resumes_wherever_it_stopped(tmp_path_factory, stops, every, kind):
    whole = run_tiny(tmp_path_factory.mktemp("whole"), 100, [], **kind)
    cut = run_tiny(tmp_path_factory.mktemp("cut"), every, stops, **kind)
    assert whole[0]["step"].tolist() == list(range(1, 10))
    assert same_curves(whole[0], cut[0])
    assert same(whole[1], cut[1])


def test_checkpoints_come_by_time_too(tmp_path):
    options = RunOptions(device="cpu", n_jobs=1, checkpoint_every=1000, checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        loop_module.run(
            tiny_job("sgd", "linear"),
            tmp_path,
            Processes("cpu"),
            options,
            n_threads=1,
            progress=stop_after(5),
        )
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000005"]


def test_curves_are_durable_before_the_checkpoint_of_their_steps(tmp_path, monkeypatch):
    synced = {}
    fsync, write = os.fsync, loop_module.write_checkpoint

    def recorded(handle):
        fsync(handle)
        synced[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    def checked(folder, checkpoint):
        curves = (folder / "curves.csv").stat()
        assert synced[curves.st_ino] == curves.st_size
        assert read_curves(folder)["step"].tolist() == list(range(1, checkpoint.step + 1))
        return write(folder, checkpoint)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(loop_module, "write_checkpoint", checked)
    run_tiny(tmp_path, 2, [5], optimizer="sgd", schedule="linear")
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000009"]


def test_a_run_whose_curves_are_gone_goes_on(tmp_path, caplog):
    kind = {"optimizer": "sgd", "schedule": "linear"}
    whole = run_tiny(tmp_path / "whole", 2, [], **kind)
    with pytest.raises(KeyboardInterrupt):
        loop_module.run(
            tiny_job(**kind),
            tmp_path / "cut",
            Processes("cpu"),
            RunOptions(device="cpu", n_jobs=1, checkpoint_every=2),
            n_threads=1,
            progress=stop_after(4),
        )
    (tmp_path / "cut" / "curves.csv").unlink()
    curves, tensors = run_tiny(tmp_path / "cut", 2, [], **kind)
    assert "curves.csv lacks 4 of the 4 steps" in caplog.text
    assert curves["step"].tolist() == [5, 6, 7, 8, 9]
    assert np.array_equal(curves["loss"], whole[0]["loss"][4:])
    assert same(tensors, whole[1])


def test_a_finished_run_is_not_done_again(weights_path, photos, tmp_path):
    trainer = AttentionTrainer(
        weights_path, output=tmp_path, views=VIEWS, optimization=OPTIMIZATION, run=RUN
    ).fit(photos)
    (tmp_path / "weights.safetensors").unlink()
    steps = []
    again = AttentionTrainer(
        weights_path, output=tmp_path, views=VIEWS, optimization=OPTIMIZATION, run=RUN
    ).fit(photos, progress=lambda what, *_: steps.append(what))
    assert "steps" not in steps
    assert same(trainer.weights_.attention, again.weights_.attention)
    assert (tmp_path / "weights.safetensors").is_file()


def test_a_run_of_other_settings_or_photos_is_refused_by_name(weights_path, photos, tmp_path):
    options = {"output": tmp_path, "views": VIEWS, "precision": "fp32", "run": RUN}
    AttentionTrainer(weights_path, optimization=OPTIMIZATION, **options).fit(photos)
    slower = dataclasses.replace(OPTIMIZATION, learning_rate=0.5)
    with pytest.raises(CheckpointError, match=r"optimization\.learning_rate=0\.01; got 0\.5"):
        AttentionTrainer(weights_path, optimization=slower, **options).fit(photos)
    with pytest.raises(CheckpointError, match=r"mode='attention'; got 'descriptor'"):
        DescriptorTrainer(weights_path, optimization=OPTIMIZATION, **options).fit(photos)
    with pytest.raises(CheckpointError, match=r"random_state=0; got 3"):
        AttentionTrainer(weights_path, optimization=OPTIMIZATION, random_state=3, **options).fit(
            photos
        )
    with pytest.raises(CheckpointError, match=r"photos\.fingerprint"):
        AttentionTrainer(weights_path, optimization=OPTIMIZATION, **options).fit(
            photos.select([0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 4])
        )


def test_where_a_run_works_does_not_change_it(weights_path, photos, tmp_path):
    options = {"views": VIEWS, "optimization": OPTIMIZATION, "precision": "fp32"}
    results = [
        AttentionTrainer(
            weights_path,
            output=tmp_path / keep,
            run=RunOptions(device="cpu", n_jobs=1, keep_photos=keep, checkpoint_every=every),
            **options,
        ).fit(photos)
        for keep, every in (("ram", 1), ("disk", 4), ("none", 1000))
    ]
    for other in results[1:]:
        assert same_curves(results[0].curves_, other.curves_)
        assert same(results[0].weights_.attention, other.weights_.attention)


def test_a_loss_that_is_not_finite_stops_with_the_remedy(tmp_path):
    job = tiny_job("sgd", "linear")

    def make(step: int) -> Batch:
        batch = job.make_batch(step)
        return batch if step < 4 else batch._replace(inputs=batch.inputs * float("nan"))

    options = RunOptions(device="cpu", n_jobs=1, checkpoint_every=1)
    with pytest.raises(ValueError, match="loss of step 5 is not finite; lower learning_rate"):
        loop_module.run(
            dataclasses.replace(job, make_batch=make),
            tmp_path,
            Processes("cpu"),
            options,
            n_threads=1,
        )
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000004"]


class Spoiled(torch.autograd.Function):
    """The same, with a gradient of no number."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


class SpoiledTiny(Tiny):
    spoil_at = 6

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def forward(self, x):
        self.n += 1
        (logits,) = super().forward(x)
        return (Spoiled.apply(logits) if self.n == self.spoil_at else logits,)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_is_not_finite_spoils_no_checkpoint(tmp_path, clip_norm):
    """The loss of the step, the last one before a checkpoint, is finite."""
    job = tiny_job("sgd", "linear")
    optimization = dataclasses.replace(job.optimization, clip_norm=clip_norm)
    job = dataclasses.replace(job, model=SpoiledTiny(), optimization=optimization)
    options = RunOptions(device="cpu", n_jobs=1, checkpoint_every=3)
    with pytest.raises(ValueError, match="gradient of step 6 is not finite; lower learning_rate"):
        loop_module.run(job, tmp_path, Processes("cpu"), options, n_threads=1)
    found = read_checkpoint(tmp_path, job.settings)
    assert found.step == 3 and all(t.isfinite().all() for t in found.tensors.values())
    job.model.spoil_at = 0  # and from there it goes on
    loop_module.run(job, tmp_path, Processes("cpu"), options, n_threads=1)
    assert read_curves(tmp_path)["step"].tolist() == list(range(1, 10))


def test_parameters_that_are_not_finite_are_not_kept(tmp_path):
    """A step as long as this leaves the range of numbers, its gradient does not."""
    job = tiny_job("sgd", "constant")
    optimization = dataclasses.replace(
        job.optimization, learning_rate=1e38, warmup_epochs=0, clip_norm=None, weight_decay=0.0
    )
    job = dataclasses.replace(
        job,
        optimization=optimization,
        factors={},
        losses=lambda outputs, batch: [(1e3 * outputs[0].sum(), outputs[0].sum())],
    )
    options = RunOptions(device="cpu", n_jobs=1, checkpoint_every=1)
    with pytest.raises(ValueError, match=r"model \S+ is not finite after step 1"):
        loop_module.run(job, tmp_path, Processes("cpu"), options, n_threads=1)
    assert not list(tmp_path.glob("checkpoint-*"))
