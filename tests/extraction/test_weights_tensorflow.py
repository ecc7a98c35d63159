"""Other people's TensorFlow weights, against TensorFlow itself: it writes and computes, we read.

Runs where tensorflow is installed (pip install tensorflow-cpu), which the library does not need.
What TensorFlow wrote once is in tests/data/tensor_bundles and is read by test_tensor_bundle.py.
"""

from __future__ import annotations

import functools
import os

import numpy as np
import pytest
import torch

from delfsearch.extraction.runtime import Runtime
from delfsearch.extraction.weights import load_weights
from delfsearch.extraction.weights_io.tensor_bundle import TensorBundle

from .conftest import texture
from .tensorflow_networks import head_variables, slim_forward, slim_variables, tf2_model

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow", reason="pip install tensorflow-cpu")
v1 = tf.compat.v1

SIZES = [(97, 130), (128, 95)]  # odd and even, heights and widths


def computed(weights):
    """Return our features and attention scores of the photos."""
    runtime = Runtime(weights, score="attention", precision="fp32", device="cpu")
    results = []
    for height, width in SIZES:
        with torch.inference_mode():
            grid = runtime.dense(texture(width, height))
            results.append((grid.numpy(), runtime.scorer(grid).numpy()))
    return results


def assert_same(ours, theirs):
    for got, expected in zip(ours, theirs, strict=True):
        for a, b in zip(got, expected, strict=True):
            assert a.shape == b.shape and np.ptp(b) > 0.01
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.fixture(scope="module")
def slim(tensors, tmp_path_factory):
    """Write slim checkpoints with and without a graph beside them, and SavedModels of two strides.

    Returns (folder, variables, {last stride: (features, scores) of every photo}).
    """
    folder = tmp_path_factory.mktemp("slim")
    variables, results = slim_variables(tensors, head_variables()), {}
    for last_stride in (1, 2):
        with tf.Graph().as_default(), v1.Session() as session:
            image = v1.placeholder(tf.uint8, [None, None, 3], name="input_image")
            handles = {
                name: v1.get_variable(name, value.shape, initializer=v1.zeros_initializer())
                for name, value in variables.items()
            }
            normalized = ((tf.cast(image, tf.float32) - 128.0) / 128.0)[None]
            outputs = slim_forward(tf, handles, normalized, last_stride)
            for name, handle in handles.items():
                handle.load(variables[name], session)
            results[last_stride] = [
                [x[0] for x in session.run(outputs, {image: texture(width, height)})]
                for height, width in SIZES
            ]
            saver = v1.train.Saver()
            if last_stride == 2:
                saver.save(session, str(folder / "bare"), write_meta_graph=False)
                saver.save(session, str(folder / "with_graph"))
            v1.saved_model.simple_save(
                session,
                str(folder / f"saved{last_stride}"),
                {"image": image},
                dict(zip(("features", "scores"), outputs)),
            )
    return folder, variables, results


def test_slim_tensors_are_read_bit_for_bit(slim):
    folder, variables, _ = slim
    for prefix in ("bare", "saved1/variables/variables"):
        bundle = TensorBundle(folder / prefix)
        assert set(bundle) == set(variables)
        for name, expected in variables.items():
            array = bundle.array(name)
            assert array.dtype == np.float32 and array.tobytes() == expected.tobytes()


def test_slim_checkpoints_give_tensorflows_features(slim):
    folder, _, results = slim
    bare = load_weights(folder / "bare")
    assert (bare.layout, bare.bn_eps, bare.input_std) == ("slim", 1e-5, (128.0,) * 3)
    assert_same(computed(bare), results[2])
    assert load_weights(folder / "bare.index").sha256 == bare.sha256
    # Dense features from the same variables, by asking for them.
    assert_same(computed(load_weights(folder / "bare", layout="slim16")), results[1])
    with_graph = load_weights(folder / "with_graph")
    assert (with_graph.layout, with_graph.bn_eps) == ("slim", 1e-5)


def test_slim_saved_models_bring_their_stride(slim):
    folder, _, results = slim
    for last_stride, layout in ((1, "slim16"), (2, "slim")):
        weights = load_weights(folder / f"saved{last_stride}")
        assert weights.layout == layout and weights.receptive_field.stride == 16 * last_stride
        assert_same(computed(weights), results[last_stride])


@pytest.mark.parametrize("block3_strides", [True, False])
def test_tf2_code(tensors, tmp_path, block3_strides):
    model = tf2_model(tf, tensors, head_variables(), block3_strides=block3_strides)
    expected = [[x.numpy() for x in model.extract(texture(w, h))] for h, w in SIZES]
    holder = tf.Module()
    holder._model = model
    holder.extract = model.extract
    tf.saved_model.save(holder, str(tmp_path / "saved"))
    weights = load_weights(tmp_path / "saved")
    assert weights.layout == ("delg" if block3_strides else "delg16") and weights.bn_eps == 1e-3
    assert_same(computed(weights), expected)
    tf.train.Checkpoint(model=model, step=tf.Variable(3)).write(str(tmp_path / "ckpt"))
    for prefix, root in (("ckpt", "model/"), ("saved/variables/variables", "_model/")):
        bundle = TensorBundle(tmp_path / prefix)
        names = [name for name in bundle if name.startswith(root)]
        assert len(names) == len(model.variables)
        for name in names:
            path = name.removeprefix(root).partition("/.ATTRIBUTES")[0].split("/")
            variable = functools.reduce(getattr, path, model)
            assert bundle.array(name).tobytes() == variable.numpy().tobytes()
    checkpoint = load_weights(tmp_path / "ckpt", layout=weights.layout)
    assert checkpoint.sha256 == weights.sha256
    assert load_weights(tmp_path / "ckpt").layout == "delg"
