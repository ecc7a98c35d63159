"""Other people's weights under our names, without their frameworks: names, layouts, refusals.

test_weights_tensorflow.py compares the same with TensorFlow where that is installed.
"""

from __future__ import annotations

import os
import re
import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensor_bundles import message, table, write_bundle

from delfsearch import WeightsError
from delfsearch.extraction.network import STRIDE_LAYOUTS
from delfsearch.extraction.scores import Scorer
from delfsearch.extraction.weights import load_weights
from delfsearch.extraction.weights_conversion import convert_weights

from .conftest import attention_tensors, pca_arrays
from .tensorflow_networks import head_variables, slim_variables

HEAD = head_variables()


def assert_trunk(weights, tensors):
    for name, expected in tensors.items():
        np.testing.assert_array_equal(weights.tensors[name].numpy(), expected, err_msg=name)


def scores_of_definition(features, head, epsilon, *, bias=True, expand=None):
    """Convolution, batch normalisation, ReLU, convolution, softplus, one after the other."""
    x = torch.from_numpy(features).double()
    if expand is not None:
        (w1, b1), (w2, b2) = [[torch.from_numpy(a).double() for a in layer] for layer in expand]
        x = torch.relu((x @ w1[0, 0] + b1) @ w2[0, 0] + b2)
    part = {key: torch.from_numpy(value).double() for key, value in head.items()}
    x = x @ part["conv1"][0, 0] + (part["bias1"] if bias else 0.0)
    x = (x - part["moving_mean"]) / torch.sqrt(part["moving_variance"] + epsilon)
    x = torch.relu(x * part["gamma"] + part["beta"]) @ part["conv2"][0, 0] + part["bias2"]
    return F.softplus(x[..., 0]).numpy()


def assert_scores(weights, **options):
    features = np.random.default_rng(4).uniform(0, 2, (3, 4, 1024)).astype(np.float32)
    scorer = Scorer("attention", weights.attention, torch.device("cpu"))
    expected = scores_of_definition(features, HEAD, weights.bn_eps, **options)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(scorer(torch.from_numpy(features)).numpy(), expected, rtol=1e-5)


@pytest.fixture(scope="module")
def slim(tensors, tmp_path_factory):
    """The prefix of a checkpoint as TF-slim names it, with an optimiser's leftovers."""
    variables = {f"tower/{k}": v for k, v in slim_variables(tensors, HEAD).items()}
    variables["global_step"] = np.int64(7) * np.ones((), np.int64)
    variables["tower/resnet_v1_50/conv1/weights/Momentum"] = np.zeros(3, np.float32)
    folder = tmp_path_factory.mktemp("slim")
    return write_bundle(folder / "model.ckpt-7", variables)


def tf2_variables(tensors, *, autoencoder=None):
    """Return the TF2 code's variables under their paths; biases are within the means."""
    result, rng = {}, np.random.default_rng(6)

    def put(path, conv, bn, their_conv, their_bn):
        kernel = tensors[f"{conv}.weight"].transpose(2, 3, 1, 0)
        bias = rng.integers(-4, 5, kernel.shape[-1]).astype(np.float32) / 4
        result[f"{path}/{their_conv}/kernel"] = np.ascontiguousarray(kernel)
        result[f"{path}/{their_conv}/bias"] = bias
        result[f"{path}/{their_bn}/gamma"] = tensors[f"{bn}.weight"]
        result[f"{path}/{their_bn}/beta"] = tensors[f"{bn}.bias"]
        mean = (tensors[f"{bn}.running_mean"].astype(np.float64) + bias).astype(np.float32)
        result[f"{path}/{their_bn}/moving_mean"] = mean
        result[f"{path}/{their_bn}/moving_variance"] = tensors[f"{bn}.running_var"]

    put("backbone", "conv1", "bn1", "conv1", "bn_conv1")
    for block, n_units in ((1, 3), (2, 4), (3, 6)):
        for unit in range(n_units):
            path, name = f"backbone/l{block + 1}{'abcdef'[unit]}", f"layer{block}.{unit}"
            for i, letter in enumerate("abc", start=1):
                put(path, f"{name}.conv{i}", f"{name}.bn{i}", f"conv2{letter}", f"bn2{letter}")
            if unit == 0:
                down = f"{name}.downsample"
                put(path, f"{down}.0", f"{down}.1", "conv_shortcut", "bn_shortcut")
    for i in "12":
        result[f"attention/conv{i}/kernel"] = HEAD[f"conv{i}"]
        result[f"attention/conv{i}/bias"] = HEAD[f"bias{i}"]
    for part in ("gamma", "beta", "moving_mean", "moving_variance"):
        result[f"attention/bn_conv1/{part}"] = HEAD[part]
    for i, (kernel, bias) in enumerate(autoencoder or (), start=1):
        result[f"autoencoder/conv{i}/kernel"] = kernel
        result[f"autoencoder/conv{i}/bias"] = bias
    return {f"model/{k}/.ATTRIBUTES/VARIABLE_VALUE": v for k, v in result.items()}


# -- TensorFlow --------------------------------------------------------------------------------


def test_slim_names(slim, tensors):
    weights = load_weights(slim)
    assert_trunk(weights, tensors)
    assert (weights.layout, weights.bn_eps) == ("slim", 1e-5)
    assert weights.input_mean == weights.input_std == (128.0,) * 3
    assert weights.provenance == "TensorFlow checkpoint model.ckpt-7"
    assert_scores(weights, bias=False)
    # The folder, the index and a data file name the same checkpoint.
    for other in (slim.parent, f"{slim}.index", f"{slim}.data-00000-of-00001"):
        assert load_weights(other).sha256 == weights.sha256
    ours = load_weights(slim, layout="slim16", bn_eps=1e-4, input_mean=[1, 2, 3], input_std=[4] * 3)
    assert (ours.layout, ours.bn_eps, ours.input_mean) == ("slim16", 1e-4, (1.0, 2.0, 3.0))


def test_slim_without_attention_is_imagenets(tmp_path, tensors):
    weights = load_weights(write_bundle(tmp_path / "resnet", slim_variables(tensors, None)))
    assert not weights.attention and weights.input_mean == (123.68, 116.78, 103.94)


@pytest.mark.parametrize("autoencoder", [False, True])
def test_tf2_names(tmp_path, tensors, autoencoder):
    rng = np.random.default_rng(8)
    expand = None
    if autoencoder:
        shapes = ((1, 1, 1024, 16), (16,)), ((1, 1, 16, 1024), (1024,))
        expand = [[(rng.normal(size=s) / 8).astype(np.float32) for s in pair] for pair in shapes]
    write_bundle(tmp_path / "delf", tf2_variables(tensors, autoencoder=expand))
    weights = load_weights(tmp_path / "delf")
    for name, expected in tensors.items():
        np.testing.assert_allclose(weights.tensors[name].numpy(), expected, atol=1e-6)
    assert (weights.layout, weights.bn_eps, weights.input_std) == ("delg", 1e-3, (128.0,) * 3)
    assert_scores(weights, expand=expand)
    assert weights.provenance.startswith("TensorFlow checkpoint delf")
    assert ("without its autoencoder's descriptors" in weights.provenance) == autoencoder
    # What is read from one file is what is written to the other.
    again = convert_weights(tmp_path / "delf", tmp_path / "delf.safetensors")
    assert_scores(again, expand=expand)


def conv_node(name: str, kind: str, stride: int, window: int = 1) -> bytes:
    def attribute(key: str, value: int) -> tuple[int, bytes]:
        numbers = bytes([1, value, value, 1])
        return 5, message((1, key.encode()), (2, message((1, message((3, numbers))))))

    return message(
        (1, name.encode()),
        (2, kind.encode()),
        attribute("strides", stride),
        attribute("ksize", window),
    )


def test_graphs_tell_stride_and_epsilon(tmp_path, slim, tensors):
    last = "while/resnet_v1_50/block3/unit_6/bottleneck_v1/conv2/Conv2D"
    for stride, layout in ((1, "slim16"), (2, "slim")):
        epsilon = message((1, b"epsilon"), (2, b"\x25" + struct.pack("<f", 2e-5)))
        norm = message((1, b"norm"), (2, b"FusedBatchNorm"), (5, epsilon))
        nodes = [(1, conv_node(last, "Conv2D", stride)), (1, norm)]
        graph = slim.with_name(slim.name + ".meta")
        graph.write_bytes(message((2, message(*nodes))))
        try:
            weights = load_weights(slim)
        finally:
            graph.unlink()
        assert (weights.layout, weights.bn_eps) == (layout, 2e-5)
    # A SavedModel keeps its operations in functions.
    folder = tmp_path / "gld/model"
    write_bundle(folder / "variables/variables", tf2_variables(tensors))
    for nodes, layout in (
        ([conv_node("c", "Conv2D", 2)], "delg16"),
        ([conv_node("c", "Conv2D", 2), conv_node("p", "MaxPool", 2)], "delg"),
        ([conv_node("c", "Conv2D", 2), conv_node("p", "MaxPool", 2, 3)], "delg16"),
    ):
        function = message(*((3, node) for node in nodes))
        graph = message((2, message((1, function))))
        (folder / "saved_model.pb").write_bytes(message((2, message((2, graph)))))
        assert load_weights(folder).layout == load_weights(folder.parent).layout == layout
    assert load_weights(folder).provenance == "TensorFlow SavedModel model"


def datum(array: np.ndarray, *, packed: bool = True) -> bytes:
    values = array.astype("<f4").tobytes()
    floats = message((1, values))
    if not packed:
        floats = b"".join(b"\x0d" + values[i : i + 4] for i in range(0, len(values), 4))
    shape = b"".join(message((1, n)) for n in array.shape)
    return message((1, shape), (2, floats))


def test_official_pca_files(tmp_path, tensors):
    folder, pca = tmp_path / "delf_gld", pca_arrays()
    write_bundle(folder / "model/variables/variables", slim_variables(tensors, HEAD))
    (folder / "model/saved_model.pb").write_bytes(b"")
    (folder / "pca").mkdir()
    (folder / "pca/mean.datum").write_bytes(datum(pca["pca.mean"], packed=False))
    (folder / "pca/pca_proj_mat.datum").write_bytes(datum(pca["pca.components"]))
    for source in (folder, folder / "model"):
        weights = load_weights(source)
        np.testing.assert_array_equal(weights.pca["pca.mean"], pca["pca.mean"])
        np.testing.assert_array_equal(weights.pca["pca.components"], pca["pca.components"])
        assert not weights.pca["pca.explained_variance"].any()
        assert weights.provenance == "TensorFlow SavedModel model of delf_gld, PCA beside it"
    (folder / "pca/pca_vars.datum").write_bytes(datum(pca["pca.explained_variance"]))
    np.testing.assert_array_equal(
        load_weights(folder).pca["pca.explained_variance"], pca["pca.explained_variance"]
    )
    whole = datum(pca["pca.mean"])
    for content, words in (
        (whole[:-1], "not a whole .datum file"),
        (datum(pca["pca.mean"][:-1]), "disagrees with itself"),
        (datum(np.full(1024, np.nan)), "finite"),
        (message((1, message((1, 1 << 40)))), "0 floats for the shape"),
    ):
        (folder / "pca/mean.datum").write_bytes(content)
        with pytest.raises(WeightsError, match=words):
            load_weights(folder)


def test_checkpoints_of_other_networks(tmp_path, tensors):
    def refuse(variables, words):
        write_bundle(tmp_path / "b", variables)
        with pytest.raises(WeightsError, match=words):
            load_weights(tmp_path / "b")

    refuse({"a/b": np.zeros(3, np.float32)}, "no variable 'resnet_v1_50/conv1/weights'.* 'a/b'")
    refuse({}, "it is empty")
    refuse({"resnet_v1_101/conv1/weights": np.zeros(3, np.float32)}, "of a ResNet101")
    variables = slim_variables(tensors, HEAD)
    gone = "resnet_v1_50/block2/unit_3/bottleneck_v1/conv2/BatchNorm/beta"
    refuse({k: v for k, v in variables.items() if k != gone}, f"lacks the variable '{gone}'")
    first = "resnet_v1_50/conv1/weights"
    refuse({**variables, first: np.zeros((7, 7, 4, 64), np.float32)}, r"conv1.weight must have sh")
    refuse({**variables, first: np.zeros(3, np.float32)}, "must be a kernel with 4 axes")
    refuse({**variables, first: np.zeros((7, 7, 3, 64), np.int32)}, "must hold floats; it holds i")
    nan = np.full(64, np.nan, np.float32)
    refuse({**variables, "resnet_v1_50/conv1/BatchNorm/beta": nan}, "bn1.bias must hold finite")
    attention = "attention_block/attention/compute/conv1/weights"
    wide = np.zeros((3, 3, 1024, 512), np.float32)
    refuse({**variables, attention: wide}, r"attention.conv1.weight must have shape \(n, 1024, 1")
    lost = "model/backbone/l4c/bn2b/moving_variance/.ATTRIBUTES/VARIABLE_VALUE"
    others = {k: v for k, v in tf2_variables(tensors).items() if k != lost}
    refuse(others, "lacks the variable 'l4c/bn2b/moving_variance'")


def test_folders_and_formats_that_are_none(tmp_path, tensors):
    with pytest.raises(WeightsError, match=r"a TensorFlow checkpoint, or model\.safetensors"):
        load_weights(tmp_path)
    write_bundle(tmp_path / "step-1", {})
    write_bundle(tmp_path / "step-2", {})
    with pytest.raises(WeightsError, match=r"hold 2 checkpoints: pass .*step-2"):
        load_weights(tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(WeightsError, match="are an HDF5 file, which is not supported"):
        load_weights(tmp_path / "weights.h5")
    (tmp_path / "old.ckpt").write_bytes(table({b"": b"", b"a": b"b"}))
    with pytest.raises(WeightsError, match="format of before 2017"):
        load_weights(tmp_path / "old.ckpt")
    with pytest.raises(WeightsError, match="TensorFlow checkpoint or SavedModel; got"):
        load_weights(tmp_path / "absent")


# -- torch -------------------------------------------------------------------------------------

PORT = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6"}


def port_checkpoint(tensors):
    """What the port's solver saves after its second stage."""
    base = {}
    for name, array in tensors.items():
        head, _, rest = name.partition(".")
        base[f"{PORT[head]}.{rest}"] = torch.from_numpy(array)
    attention = {k.removeprefix("attention."): v for k, v in attention_tensors().items()}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
    return {
        "epoch": 3,
        "acc": np.float64(0.5),
        "optimizer": optimizer.state_dict(),
        "base": base,
        "attn": {k: torch.from_numpy(v) for k, v in attention.items()},
        "pool": {},
        "logits": {"0.weight": torch.zeros(586, 1024, 1, 1), "0.bias": torch.zeros(586)},
    }


def test_the_ports_checkpoints(tmp_path, tensors):
    path = tmp_path / "bestshot.pth.tar"
    for zipped in (True, False):  # torch's format of today, and the one before 1.6
        torch.save(port_checkpoint(tensors), path, _use_new_zipfile_serialization=zipped)
        weights = load_weights(path)
        assert_trunk(weights, tensors)
        assert weights.layout == "torchvision" and weights.receptive_field.size == 267
        assert weights.input_mean == (0.0,) * 3 and weights.input_std == (255.0,) * 3
        for name, expected in attention_tensors().items():
            np.testing.assert_array_equal(weights.attention[name].numpy(), expected)
    first_stage = {k: v for k, v in port_checkpoint(tensors).items() if k != "attn"}
    torch.save(first_stage, path)
    assert not load_weights(path).attention
    torch.save({**first_stage, "base": {**first_stage["base"], "7.0.x": torch.zeros(1)}}, path)
    with pytest.raises(WeightsError, match=r"unexpected tensor '7\.0\.x'"):
        load_weights(path)
    torch.save({**first_stage, "attn": [1]}, path)
    with pytest.raises(WeightsError, match="'attn' must be a state dict"):
        load_weights(path)


def test_the_ports_pca(tmp_path, weights_path):
    h5py = pytest.importorskip("h5py")
    pca = pca_arrays()
    with h5py.File(tmp_path / "pca.h5", "w") as file:
        file["pca_mean"] = pca["pca.mean"].astype(np.float64)
        file["pca_matrix"], file["pca_vars"] = pca["pca.components"], pca["pca.explained_variance"]
    weights = convert_weights(weights_path, tmp_path / "w.safetensors", pca=tmp_path / "pca.h5")
    for name, expected in pca.items():
        np.testing.assert_array_equal(weights.pca[name], expected)
    with h5py.File(tmp_path / "pca.h5", "w") as file:
        file["mean"] = pca["pca.mean"]
    with pytest.raises(WeightsError, match="not the PyTorch port's PCA"):
        convert_weights(weights_path, tmp_path / "x.safetensors", pca=tmp_path / "pca.h5")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_state_dicts_that_are_wrapped_and_prefixed(tmp_path, tensors, wrapper):
    state = {f"module.{name}": torch.from_numpy(a) for name, a in tensors.items()}
    state["module.layer4.0.conv1.weight"] = torch.zeros(2)
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 1}, tmp_path / "w.pt")
    weights = load_weights(tmp_path / "w.pt")
    assert_trunk(weights, tensors)
    assert weights.layout == "torchvision" and weights.input_std[0] == 58.395


def test_pickles_with_code_are_refused_wherever_they_are(tmp_path, tensors):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (os.fspath(tmp_path / "ran"),))

    for n, content in enumerate(
        (
            Evil(),
            {"base": Evil()},
            {**port_checkpoint(tensors), "acc": Evil()},
            {"state_dict": Evil()},
        )
    ):
        for zipped in (True, False):
            path = tmp_path / f"evil{n}.pth.tar"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            with pytest.raises(WeightsError, match="holds code, which is never run"):
                load_weights(path)
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match=r"must be a state dict .*; got list"):
        load_weights(tmp_path / "list.pt")


# -- all of them -------------------------------------------------------------------------------


def test_known_receptive_fields_by_layout(weights_path):
    for layout in STRIDE_LAYOUTS:
        weights = load_weights(weights_path, layout=layout)
        assert weights.receptive_field.size == (267 if layout == "torchvision" else 291)
        assert weights.receptive_field.stride == (32 if layout in ("slim", "delg") else 16)
    with pytest.raises(WeightsError, match=re.escape("unknown stride layout 'odd'; known: keras")):
        load_weights(weights_path, layout="odd")
