"""The trunk with most of its arithmetic in 8-bit integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from delfsearch import DelfExtractor
from delfsearch.extraction import int8
from delfsearch.extraction import runtime as runtime_module
from delfsearch.extraction.int8 import Int8Trunk
from delfsearch.extraction.network import FoldedTrunk
from delfsearch.extraction.strips import features_in_strips

from .conftest import texture

MEAN = torch.tensor([123.68, 116.779, 103.939])
needs_int8 = pytest.mark.skipif(
    not int8._int8_works(), reason="this torch has no int8 convolutions that compute rightly here"
)


@needs_int8
@pytest.mark.parametrize("layout", ["keras", "torchvision", "delg"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_close_to_those_in_floating_point(tensors, layout, dtype):
    torch_tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}
    exact = FoldedTrunk(torch_tensors, layout, bn_eps=1e-3)
    trunk = Int8Trunk(torch_tensors, layout, bn_eps=1e-3, dtype=dtype)
    for width, height in ((130, 97), (40, 31), (200, 180)):
        rgb = torch.from_numpy(texture(width, height))
        with torch.inference_mode():
            expected = features_in_strips(exact, rgb, MEAN).flatten(2)
            calibrated = trunk.calibrated(rgb[::2, ::2], MEAN)
            got = features_in_strips(calibrated, rgb, MEAN)
            again = features_in_strips(calibrated, rgb, MEAN, strip_bytes=1)
        assert got.dtype == dtype
        cosine = F.cosine_similarity(got.float().flatten(2), expected, dim=1)
        assert cosine.mean() > 0.98
        # A last digit may fall on the other side of a step.
        cosine = F.cosine_similarity(again.float().flatten(2), got.float().flatten(2), dim=1)
        assert cosine.min() > 0.999


@needs_int8
def test_extractor(full_weights_path, monkeypatch):
    monkeypatch.setattr(runtime_module, "processor_has_int8", lambda: True)
    photo = texture(130, 90, 1)

    def extract(precision, n_jobs=1):
        extractor = DelfExtractor(
            full_weights_path,
            scales=(0.5, 1.0),
            n_components=8,
            max_features=500,
            precision=precision,
            n_jobs=n_jobs,
        )
        return extractor.transform([photo])[0]

    exact, got, threads = extract("fp32"), extract("int8"), extract("int8", n_jobs=3)
    order = [
        np.lexsort((f.keypoints_xy[:, 0], f.keypoints_xy[:, 1], f.scales)) for f in (exact, got)
    ]
    cosine = (exact.descriptors[order[0]] * got.descriptors[order[1]]).sum(1)
    assert cosine.mean() > 0.97
    assert got.descriptors.tobytes() == threads.descriptors.tobytes()


def test_processors_without_it_are_told(full_weights_path, monkeypatch):
    monkeypatch.setattr(runtime_module, "processor_has_int8", lambda: False)
    extractor = DelfExtractor(full_weights_path, precision="int8")
    with pytest.raises(ValueError, match="precision='int8' needs device='cpu'"):
        extractor.transform([texture(64, 64)])


def test_operators_that_compute_wrongly_are_not_used(monkeypatch):
    def saturating(x, k, scale, scale_out, stride, padding):
        return torch.zeros(1, 8, 5, 7, dtype=torch.uint8)

    monkeypatch.setattr(int8, "_int8_conv_relu", saturating)
    assert not int8._int8_works()
    monkeypatch.setattr(int8, "_quantized", lambda *_: (_ for _ in ()).throw(RuntimeError("none")))
    assert not int8._int8_works()
