from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from delfsearch.extraction import network
from delfsearch.extraction.network import (
    STRIDE_LAYOUTS,
    FoldedTrunk,
    ResNet50Conv4,
    layers,
    tensor_shapes,
)
from delfsearch.extraction.pyramid import pyramid
from delfsearch.extraction.receptive_field import receptive_field, to_photo_pixels

EXPECTED = {  # size, stride, padding along an axis whose pooling needs no odd padding
    "keras": (291, 16, 145),
    "torchvision": (267, 16, 133),
    "slim": (291, 32, 145),
    "slim16": (291, 16, 145),
    "delg": (291, 32, 143),
    "delg16": (291, 16, 143),
}


def positive_network(layout: str) -> ResNet50Conv4:
    """Every path contributes a positive amount, so gradients cannot cancel or die."""
    model = ResNet50Conv4(layout).double().eval()
    for name, value in model.state_dict().items():
        if value.ndim == 4:
            value.fill_(1.0 / value[0].numel())
        elif name.endswith("bias"):
            value.fill_(0.1)
    return model


@pytest.mark.parametrize("layout", STRIDE_LAYOUTS)
@pytest.mark.parametrize("length", [354, 355])
def test_impulse_response_is_the_derived_field(layout, length, monkeypatch):
    # Averaging instead of maximum: same geometry, but a gradient everywhere.
    monkeypatch.setattr(F, "max_pool2d", lambda x, k, s, p=0: F.avg_pool2d(x, k, s, p))
    model = positive_network(layout)
    axis = 2 + length % 2
    shape = [1, 3, 17, 17]
    shape[axis] = length
    x = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    y = model(x)
    field = receptive_field(layers(layout), length)
    assert y.shape[axis] == field.n_cells
    for cell in (0, field.n_cells // 2, field.n_cells - 1):
        (gradient,) = torch.autograd.grad(y.select(axis, cell).sum(), x, retain_graph=True)
        seen = np.flatnonzero(gradient.abs().sum(dim=(0, 1, 5 - axis)).numpy())
        centre, half = field.centres()[cell], (field.size - 1) / 2
        assert seen[0] == max(0, centre - half)
        assert seen[-1] == min(length - 1, centre + half)


@pytest.mark.parametrize("layout", STRIDE_LAYOUTS)
def test_known_figures(layout):
    size, stride, padding = EXPECTED[layout]
    field = receptive_field(layers(layout), 321)
    assert (field.size, field.stride, field.padding) == (size, stride, padding)
    even = receptive_field(layers(layout), 320)
    assert even.padding == padding - {"slim": 2, "delg": 1}.get(layout[:4], 0)


@pytest.mark.parametrize("layout", STRIDE_LAYOUTS)
@pytest.mark.parametrize("size", [(46, 63), (65, 44), (11, 10)])
def test_folded_trunk_equals_reference(layout, size, tensors):
    torch_tensors = {k: torch.from_numpy(v) for k, v in tensors.items()}
    std = (58.0, 57.0, 57.0)
    model = ResNet50Conv4(layout, 1e-3).eval()
    model.load_state_dict({**model.state_dict(), **torch_tensors})
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 255 - 120
    trunk = FoldedTrunk(torch_tensors, layout, bn_eps=1e-3, input_std=std)
    with torch.inference_mode():
        expected = model(x / torch.tensor(std)[:, None, None])
        for fused in {trunk.fused, None}:
            trunk.fused = fused
            torch.testing.assert_close(trunk(x), expected, atol=2e-4, rtol=2e-4)
        half = FoldedTrunk(torch_tensors, layout, bn_eps=1e-3, input_std=std, dtype=torch.bfloat16)(
            x
        ).float()
    assert F.cosine_similarity(half, expected, dim=1).mean() > 0.98


def test_fusion_that_does_not_work_is_left_alone(monkeypatch):
    def broken(*_args):
        raise RuntimeError("not implemented on this processor")

    cpu = torch.device("cpu")
    monkeypatch.setattr(network._OneDnn, "conv_relu", broken)
    assert network.fused_operators(cpu, torch.float32) is None
    wrong = staticmethod(lambda x, k, b, s, p: F.conv2d(x, k, b))
    monkeypatch.setattr(network._OneDnn, "conv_relu", wrong)
    assert network.fused_operators(cpu, torch.float32) is None


def test_layouts_are_checked():
    with pytest.raises(ValueError, match="layout must be one of"):
        layers("resnext")


def test_resizing_maps_edges_to_edges():
    ends = np.array([-0.5, 49.5])
    np.testing.assert_allclose(to_photo_pixels(ends, 50, 200), [-0.5, 199.5])
    np.testing.assert_allclose(to_photo_pixels(np.array([0.0]), 50, 200), [1.5])


@pytest.mark.parametrize("layout", STRIDE_LAYOUTS)
def test_a_blob_keeps_its_place_across_scales(layout):
    # Kernels that pass on the middle pixel alone: the output is the image, sampled at the centres.
    passing = {}
    for name, shape in tensor_shapes().items():
        value = torch.zeros(shape)
        if len(shape) == 4:
            value[0, 0, shape[2] // 2, shape[3] // 2] = 1.0
        elif name.endswith(("weight", "running_var")):
            value = torch.ones(shape)
        passing[name] = value
    trunk = FoldedTrunk(passing, layout, bn_eps=0.0)
    width, height, where = 640, 500, np.array([290.0, 233.0])
    y, x = np.mgrid[:height, :width]
    blob = 250 * np.exp(-((x - where[0]) ** 2 + (y - where[1]) ** 2) / (2 * 60.0**2))
    image = Image.fromarray(blob.astype(np.uint8)).convert("RGB")
    for level in pyramid(image, (0.5, 2**-0.5, 1.0, 2**0.5)):
        rgb = torch.from_numpy(level.rgb).permute(2, 0, 1)[None].float()
        with torch.inference_mode():
            response = trunk(rgb)[0, 0].double().numpy()
        centres = [
            to_photo_pixels(receptive_field(layers(layout), side).centres(), side, whole)
            for side, whole in zip(level.size, (width, height))
        ]
        total = response.sum()
        found = np.array([response.sum(0) @ centres[0], response.sum(1) @ centres[1]]) / total
        # A mistake of one cell's offset would be 8 pixels and more.
        np.testing.assert_allclose(found, where, atol=1.0)
