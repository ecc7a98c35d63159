"""The trunk and the heads against the reference network and eq. 1 written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training.small import save_small_weights

from delfsearch.extraction.network import STRIDE_LAYOUTS, ResNet50Conv4
from delfsearch.extraction.scores import Scorer
from delfsearch.extraction.weights import load_weights
from delfsearch.training.models import (
    AttentionBranch,
    AttentionModel,
    DescriptorModel,
    FrozenTrunk,
    JointModel,
)
from delfsearch.training.trunk import TRAINABLE, TrainableTrunk

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=STRIDE_LAYOUTS)
def weights(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("layout") / "w.safetensors"
    return load_weights(save_small_weights(path, request.param))


def reference(weights, *, training: bool) -> ResNet50Conv4:
    net = ResNet50Conv4(weights.layout, weights.bn_eps)
    net.load_state_dict({**net.state_dict(), **weights.tensors})
    return net.train(training)


def a_batch(n=2, side=64, seed=0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, side, side, 3), np.uint8))


def normalised(photos: torch.Tensor, weights) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (weights.input_mean, weights.input_std))
    return (photos.permute(0, 3, 1, 2).float() - mean) / std


@pytest.mark.parametrize("side", [64, 49])
def test_every_split_of_the_trunk_computes_the_reference_features(weights, side):
    photos = a_batch(side=side)
    expected = reference(weights, training=False)(normalised(photos, weights))
    for trainable in TRAINABLE:
        trunk = TrainableTrunk(weights, trainable=trainable, batch_norm="frozen").train()
        torch.testing.assert_close(trunk(photos), expected, rtol=1e-3, atol=1e-3)
    frozen = FrozenTrunk(weights, dtype=torch.float32, device=CPU)(photos)
    torch.testing.assert_close(frozen, expected.flatten(2).transpose(1, 2), rtol=1e-3, atol=1e-3)


def test_gradients_are_those_of_the_reference_network(weights):
    photos = a_batch()
    net = reference(weights, training=False)
    direction = torch.from_numpy(np.random.default_rng(1).standard_normal(1024, np.float32))
    (net(normalised(photos, weights)).mean((0, 2, 3)) @ direction).backward()
    expected = {name: p.grad for name, p in net.named_parameters()}
    for trainable in ("all", "layer3"):
        trunk = TrainableTrunk(weights, trainable=trainable, batch_norm="frozen").train()
        (trunk(photos).mean((0, 2, 3)) @ direction).backward()
        named = dict(trunk.named_parameters())
        assert all(name.startswith("layer3") for name in named) == (trainable == "layer3")
        for name, parameter in named.items():
            # Rounding moves a few values across a ReLU's corner, so single entries may differ.
            difference = float((parameter.grad - expected[name]).norm())
            assert difference < 1e-2 * float(expected[name].norm()) + 1e-6, name


def test_trained_batch_normalisation_is_the_reference_networks(weights):
    photos = a_batch(3)
    net = reference(weights, training=True)
    expected = net(normalised(photos, weights))
    statistics = net.state_dict()
    trunk = TrainableTrunk(weights, trainable="all", batch_norm="trained").train()
    torch.testing.assert_close(trunk(photos), expected, rtol=2e-3, atol=2e-3)
    for name in weights.tensors:
        value = trunk.state_dict()[name]
        torch.testing.assert_close(value, statistics[name], rtol=2e-3, atol=2e-3, msg=name)
    assert not torch.equal(
        trunk.state_dict()["bn1.running_mean"], weights.tensors["bn1.running_mean"]
    )


def test_trained_batch_normalisation_behind_a_frozen_part(weights):
    """What follows the frozen part is normalised as the reference does with its part frozen."""
    photos = a_batch(3)
    net = reference(weights, training=True)
    for module in (net.bn1, net.layer1, net.layer2):
        module.eval()
    expected = net(normalised(photos, weights))
    trunk = TrainableTrunk(weights, trainable="layer3", batch_norm="trained").train()
    torch.testing.assert_close(trunk(photos), expected, rtol=2e-3, atol=2e-3)
    # Once trained, it is run with the running statistics.
    expected = net.eval()(normalised(photos, weights))
    torch.testing.assert_close(trunk.eval()(photos), expected, rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "w.safetensors"
    return load_weights(save_small_weights(path))


def test_the_descriptors_logits_are_a_linear_map_of_mean_features(keras):
    trunk = TrainableTrunk(keras, trainable="all", batch_norm="frozen")
    model = DescriptorModel(trunk, 5, random_state=3)
    photos = a_batch()
    (logits,) = model(photos)
    pooled = reference(keras, training=False)(normalised(photos, keras)).mean((2, 3))
    weight, bias = model.classifier.weight, model.classifier.bias
    torch.testing.assert_close(logits, pooled @ weight.T + bias, rtol=1e-3, atol=1e-4)
    again = DescriptorModel(trunk, 5, random_state=3).classifier.weight
    other = DescriptorModel(trunk, 5, random_state=4).classifier.weight
    assert torch.equal(weight, again) and not torch.equal(weight, other)


def features(n=3, cells=11, seed=0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.abs(rng.standard_normal((n, cells, 1024), np.float32)) * 2)


def a_branch(**options) -> AttentionBranch:
    branch = AttentionBranch(4, random_state=0, **options)
    rng = np.random.default_rng(9)  # biases and a batch normalisation that do something
    with torch.no_grad():
        for p in branch.parameters():
            p.add_(torch.from_numpy(0.05 * rng.standard_normal(tuple(p.shape), np.float32)))
    return branch


VARIANTS = [
    {"pooling": pooling, "normalize": normalize, "batch_norm": batch_norm}
    for pooling in ("sum", "mean")
    for normalize in (False, True)
    for batch_norm in (False, True)
]


@pytest.mark.parametrize("options", VARIANTS)
def test_the_branch_computes_equation_1(options):
    branch = a_branch(**options)
    f = features()
    branch.calibrate(f, 1.0, lambda values: values)
    branch.train()
    logits = branch(f)
    size, norm = float(branch.feature_size), float(branch.pooled_norm)
    hidden = (f.numpy() / size) @ branch.conv1.weight.detach().numpy().T
    hidden = hidden + branch.conv1.bias.detach().numpy()
    if options["batch_norm"]:
        flat = hidden.reshape(-1, 512)
        hidden = (hidden - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-3)
        hidden = hidden * branch.bn.weight.detach().numpy() + branch.bn.bias.detach().numpy()
    raw = np.maximum(hidden, 0) @ branch.conv2.weight.detach().numpy()[0] + branch.conv2.bias.item()
    scores = np.log1p(np.exp(raw))
    W = branch.classifier.weight.detach().numpy() / norm
    expected = np.zeros((3, 4))
    for i in range(3):
        y = np.zeros(1024)
        for n in range(f.shape[1]):
            cell = f[i, n].numpy().astype(np.float64)
            y += scores[i, n] * (cell / np.linalg.norm(cell) if options["normalize"] else cell)
        expected[i] = W @ (y / f.shape[1] if options["pooling"] == "mean" else y)
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("options", VARIANTS)
def test_the_saved_head_gives_the_scores_of_the_trained_one(options):
    """Batch normalisation and feature_size are folded: extraction runs plain conv1 and conv2."""
    branch = a_branch(**options)
    branch.calibrate(features(), 1.0, lambda values: values)
    branch.train()
    for seed in range(3):
        branch(features(seed=seed))  # moves the statistics
    branch.eval()
    f = features(1, 12, seed=8)
    saved = Scorer("attention", branch.head_tensors(), CPU)(f[0].view(3, 4, 1024))
    torch.testing.assert_close(saved.flatten(), branch.scores(f)[0].detach(), rtol=1e-4, atol=1e-5)
    assert branch.head_tensors().keys() == {
        f"attention.conv{i}.{part}" for i in (1, 2) for part in ("weight", "bias")
    }


def test_calibration_makes_pooled_vectors_of_length_one():
    for options in VARIANTS:
        branch = a_branch(**options).eval()
        f = features(8, 30)
        branch.calibrate(f, 0.5, lambda values: values)
        lengths = torch.linalg.vector_norm(branch.pooled(f) / branch.pooled_norm, dim=1)
        # The vectors of a sum are judged at gamma 1, where there are four times as many cells.
        expected = 0.25 if options["pooling"] == "sum" else 1.0
        assert lengths.mean().item() == pytest.approx(expected, rel=1e-4)
        assert float((f / branch.feature_size).square().mean()) == pytest.approx(1, rel=1e-4)


def test_attention_gradients_do_not_reach_the_trunk(keras):
    trunk = TrainableTrunk(keras, trainable="all", batch_norm="frozen")
    model = JointModel(trunk, AttentionBranch(3, random_state=0), 3, random_state=0)
    descriptor, attention = model(a_batch())
    F.cross_entropy(attention, torch.tensor([0, 1])).backward()
    assert all(p.grad is None for p in model.trunk.parameters())
    assert all(p.grad is None for p in model.classifier.parameters())
    assert all(p.grad is not None for p in model.branch.parameters())
    F.cross_entropy(descriptor, torch.tensor([0, 1])).backward()
    assert all(p.grad is not None for p in model.trunk.parameters())


def test_the_attention_model_takes_photos_or_features(keras):
    frozen = FrozenTrunk(keras, dtype=torch.float32, device=CPU)
    model = AttentionModel(frozen, AttentionBranch(3, random_state=0))
    photos = a_batch()
    (from_photos,) = model(photos)
    (from_features,) = model(frozen(photos).half())
    torch.testing.assert_close(from_photos, from_features, rtol=1e-2, atol=1e-3)
    assert not any(name.startswith("_trunk") for name, _ in model.named_parameters())


def test_many_photos_go_through_the_frozen_trunk_in_groups(keras, monkeypatch):
    from delfsearch.training import models

    frozen = FrozenTrunk(keras, dtype=torch.float32, device=CPU)
    photos = a_batch(5, 48)
    whole = frozen(photos)
    monkeypatch.setitem(models._GROUP_PIXELS, "cpu", 2 * 48 * 48)
    torch.testing.assert_close(frozen(photos), whole, rtol=1e-4, atol=1e-4)
