from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from delfsearch.training import Optimization
from delfsearch.training.optimization import Optimizer


def rates(per_epoch=10, **options):
    settings = Optimization(**{"epochs": 6, "learning_rate": 0.5, "warmup_epochs": 0, **options})
    settings.check()
    return np.array([settings.rate(s, per_epoch) for s in range(6 * per_epoch)])


def test_linear_and_cosine_fall_from_the_rate_to_almost_nothing():
    linear, cosine = rates(schedule="linear"), rates(schedule="cosine")
    assert np.allclose(linear, 0.5 * (1 - np.arange(60) / 60))
    assert np.allclose(cosine, 0.25 * (1 + np.cos(np.pi * np.arange(60) / 60)))


def test_steps_and_constant():
    step = rates(schedule="step", drop_every=2, drop_factor=0.1)
    assert np.allclose(step, np.repeat([0.5, 0.05, 0.005], 20))
    assert (rates(schedule="constant") == 0.5).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "step", "constant"])
def test_warmup_rises_and_meets_the_schedule(schedule):
    r = rates(schedule=schedule, warmup_epochs=1.0)
    assert np.allclose(np.diff(r[:10]), 0.5 / 11) and r[0] > 0
    assert r.max() == r[10] == 0.5
    assert rates(per_epoch=1, schedule=schedule, warmup_epochs=6)[5] > 0  # warm-up is all there is


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"sampling": "none"},
        {"optimizer": "lion"},
        {"schedule": "exp"},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.5},
        {"weight_decay": -1.0},
        {"warmup_epochs": 21.0},
        {"clip_norm": 0.0},
        {"label_smoothing": 1.0},
        {"classifier_factor": 0.0},
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        dataclasses.replace(Optimization(), **bad).check()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(3, 2)
        self.classifier = nn.Linear(2, 2)
        self.branch = nn.Linear(3, 2)

    def set_gradients(self, seed):
        rng = np.random.default_rng(seed)
        for p in self.parameters():
            p.grad = torch.from_numpy(rng.standard_normal(tuple(p.shape), np.float32))


def test_sgd_is_momentum_with_decay_of_matrices_only():
    model = Model()
    settings = Optimization(momentum=0.9, weight_decay=0.1, clip_norm=None)
    optimizer = Optimizer(model, settings, factors={"classifier.": 10.0}, clip_apart="branch.")
    values = {n: p.detach().numpy().astype(float).copy() for n, p in model.named_parameters()}
    velocity = {n: 0.0 for n in values}
    for step in range(3):
        model.set_gradients(step)
        for name, p in model.named_parameters():
            gradient = p.grad.numpy() + (0.1 * values[name] if p.ndim > 1 else 0.0)
            velocity[name] = 0.9 * velocity[name] + gradient
            rate = 0.01 * (10.0 if name.startswith("classifier") else 1.0)
            values[name] = values[name] - rate * velocity[name]
        optimizer.step(0.01, None)
        assert all(p.grad is None for p in model.parameters())
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), values[name], rtol=1e-5, atol=1e-6)


def test_attention_and_trunk_are_clipped_apart():
    model = Model()
    settings = Optimization(momentum=0.0, weight_decay=0.0, clip_norm=1.0)
    optimizer = Optimizer(model, settings, factors={}, clip_apart="branch.")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.set_gradients(0)
    for p in model.branch.parameters():
        p.grad *= 1000
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    optimizer.step(1.0, None)
    for apart in (True, False):
        names = [n for n in before if n.startswith("branch.") == apart]
        norm = torch.cat([gradients[n].flatten() for n in names]).norm()
        for n in names:
            moved = before[n] - dict(model.named_parameters())[n]
            torch.testing.assert_close(
                moved, (gradients[n] / norm).detach(), rtol=1e-3, atol=1e-5, check_stride=False
            )


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_restored_optimiser_goes_on_to_the_last_bit(kind):
    def after(n, interrupt=None):
        torch.manual_seed(0)
        model = Model()
        options = {"factors": {"branch.": 3.0}, "clip_apart": "branch."}
        optimizer = Optimizer(model, Optimization(optimizer=kind), **options)
        for step in range(n):
            if step == interrupt:
                tensors = {k: t.clone() for k, t in optimizer.tensors().items()}
                optimizer = Optimizer(model, Optimization(optimizer=kind), **options)
                optimizer.load(tensors)
            model.set_gradients(step)
            optimizer.step(0.01 / (step + 1), None)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    whole = after(5)
    for interrupt in range(5):
        assert torch.equal(after(5, interrupt), whole)
