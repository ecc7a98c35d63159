"""The exported network in onnxruntime, against ours."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from delfsearch import WeightsError
from delfsearch.extraction.network import STRIDE_LAYOUTS
from delfsearch.extraction.onnx_export import export_onnx
from delfsearch.extraction.runtime import Runtime
from delfsearch.extraction.weights import load_weights, make_weights

from .conftest import META, attention_tensors, texture


def ours(weights, photo, score):
    runtime = Runtime(weights, score=score, precision="fp32", device="cpu")
    with torch.inference_mode():
        grid = runtime.dense(photo)
        return grid.permute(2, 0, 1).numpy(), runtime.scorer(grid).numpy()


def session_of(path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'delfsearch[test]'")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def assert_close(results, expected):
    for got, wanted in zip(results, expected, strict=True):
        assert got.shape == wanted.shape
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * scale)


@pytest.fixture(scope="module")
def head():
    """A head with the expansion of DELG ahead, and a scale."""
    rng = np.random.default_rng(0)
    wide = (rng.normal(size=(1024, 1024, 1, 1)) / 32).astype(np.float32)
    expansion = {"attention.conv0.weight": wide, "attention.conv0.bias": wide[0, :, 0, 0]}
    return {**attention_tensors(), **expansion}


@pytest.mark.parametrize("layout", STRIDE_LAYOUTS)
def test_every_layout_and_size(layout, tensors, head, tmp_path):
    pytest.importorskip("onnx", reason="pip install 'delfsearch[onnx]'")
    # Each layout with another kind of score: the two do not touch each other.
    score = ("attention", "l2", "l2*attention")[STRIDE_LAYOUTS.index(layout) % 3]
    meta = {**META, "layout": layout, "score_scale": 0.5}
    weights = make_weights({**tensors, **head}, meta, "0" * 64, "w")
    export_onnx(weights, tmp_path / "delf.onnx", score=score)
    assert [p.name for p in tmp_path.iterdir()] == ["delf.onnx"]
    session = session_of(tmp_path / "delf.onnx")
    for width, height in ((64, 47), (61, 58), (11, 10)):
        photo = texture(width, height)
        results = session.run(["features", "scores"], {"image": photo[None]})
        assert_close([r[0] for r in results], ours(weights, photo, score))


def test_batches_floats_and_metadata(full_weights_path, tmp_path):
    pytest.importorskip("onnx", reason="pip install 'delfsearch[onnx]'")
    export_onnx(full_weights_path, tmp_path / "delf.onnx", input_dtype="float32")
    session, weights = session_of(tmp_path / "delf.onnx"), load_weights(full_weights_path)
    photos = np.stack([texture(48, 40, seed) for seed in range(3)])
    features, scores = session.run(None, {"image": photos.astype(np.float32)})
    for i, photo in enumerate(photos):
        assert_close((features[i], scores[i]), ours(weights, photo, "attention"))
    described = json.loads(session.get_modelmeta().custom_metadata_map["delfsearch"])
    assert described["layout"] == "keras" and described["score"] == "attention"
    assert described["receptive_field"] == {"size": 291, "stride": 16, "padding": 145.0}
    assert described["weights_sha256"] == weights.sha256
    assert [str(i.shape) for i in session.get_inputs()] == ["['n', 'height', 'width', 3]"]


def test_refusals(weights_path, tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="pip install 'delfsearch[onnx]'")
    with pytest.raises(WeightsError, match="needs weights with an attention head"):
        export_onnx(weights_path, tmp_path / "x.onnx", score="attention")
    with pytest.raises(ValueError, match="input_dtype must be one of"):
        export_onnx(weights_path, tmp_path / "x.onnx", input_dtype="int8")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'delfsearch\[onnx\]'"):
        export_onnx(weights_path, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
