"""The trunk in strips of rows against the trunk at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch.extraction.network import STRIDE_LAYOUTS, FoldedTrunk
from delfsearch.extraction.strips import _pool, features_in_strips

MEAN = torch.tensor([123.68, 116.779, 103.939])


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.integers(0, 256, (height, width, 3), np.uint8))


def at_once(trunk: FoldedTrunk, rgb: torch.Tensor) -> torch.Tensor:
    return trunk(rgb.permute(2, 0, 1)[None].float() - MEAN[:, None, None])


@pytest.fixture(scope="module")
def trunks(tensors):
    torch_tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}
    return {
        (layout, dtype): FoldedTrunk(torch_tensors, layout, bn_eps=1e-3, dtype=dtype)
        for layout in STRIDE_LAYOUTS
        for dtype in (torch.float32, torch.bfloat16)
    }


@pytest.mark.parametrize("layout", STRIDE_LAYOUTS)
@pytest.mark.parametrize("size", [(10, 10), (11, 37), (97, 130), (131, 66)])
def test_strips_give_what_the_whole_image_gives(trunks, layout, size):
    # Few bytes: strips of four rows; many: one strip.
    rgb = image(*size)
    with torch.inference_mode():
        expected = at_once(trunks[layout, torch.float32], rgb)
        scale = expected.abs().max()
        for strip_bytes in (1, 1 << 15, 1 << 17, 1 << 30):
            got = features_in_strips(
                trunks[layout, torch.float32], rgb, MEAN, strip_bytes=strip_bytes
            )
            assert got.shape == expected.shape
            assert got.is_contiguous(memory_format=torch.channels_last)
            assert (got - expected).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("layout", STRIDE_LAYOUTS)
def test_strips_in_bf16(trunks, layout):
    trunk, rgb = trunks[layout, torch.bfloat16], image(97, 130)
    with torch.inference_mode():
        expected = at_once(trunk, rgb).float().flatten(2)
        got = features_in_strips(trunk, rgb, MEAN, strip_bytes=1 << 15).float().flatten(2)
    assert F.cosine_similarity(got, expected, dim=1).min() > 0.999


def test_strips_without_fused_operators(trunks, monkeypatch):
    trunk, rgb = trunks["keras", torch.float32], image(75, 91)
    with torch.inference_mode():
        expected = at_once(trunk, rgb)
        monkeypatch.setattr(trunk, "fused", None)
        got = features_in_strips(trunk, rgb, MEAN, strip_bytes=1)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@given(
    n=st.integers(3, 40),
    before=st.sampled_from([0, 1]),
    after=st.sampled_from([0, 1]),
    axis=st.sampled_from([1, 2]),
    seed=st.integers(0, 9),
)
@settings(max_examples=80, deadline=None)
def test_pooling_against_max_pool2d(n, before, after, axis, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, *((n, 3) if axis == 1 else (3, n)), 4, generator=generator)
    n_out = (n + before + after - 3) // 2 + 1
    sides = (0, 0, before, after) if axis == 1 else (before, after, 0, 0)
    kernel, stride = ((3, 1), (2, 1)) if axis == 1 else ((1, 3), (1, 2))
    expected = F.max_pool2d(F.pad(x.permute(0, 3, 1, 2), sides), kernel, stride)
    got = _pool(x, axis, n_out, before)
    assert torch.equal(got, expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize("layout", STRIDE_LAYOUTS)
@pytest.mark.parametrize("size", [(67, 10), (300, 10), (10, 300), (131, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strips_of_one_column(trunks, layout, size, dtype):
    """Where an axis has one cell, torch's own layouts are ambiguous, and bfloat16 may be wrong."""
    trunk, rgb = trunks[layout, dtype], image(*size)
    with torch.inference_mode():
        expected = at_once(trunks[layout, torch.float32], rgb).flatten(2)
        for strip_bytes in (1, 1 << 13, 1 << 15):
            got = features_in_strips(trunk, rgb, MEAN, strip_bytes=strip_bytes).float().flatten(2)
            assert F.cosine_similarity(got, expected, dim=1).min() > 0.999
