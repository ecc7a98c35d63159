"""Every row of every table, run end to end on miniature sets in the real file formats."""

import json
import shutil
from collections import Counter

import h5py
import numpy as np
import pytest
import torch
from baselines.tiny_networks import resnet_tensors, vgg_tensors
from evaluation.miniature import make_miniature
from random_weights import RANDOM_META, save_random_weights

from delfsearch.baselines.delf import DelfSystem
from delfsearch.cli import main
from delfsearch.errors import DatasetError
from delfsearch.evaluation.paper.output import as_json, as_markdown, plot_table, write_table
from delfsearch.evaluation.paper.printed import TABLE_NAMES
from delfsearch.evaluation.paper.reproduce import ReproduceSettings, reproduce
from delfsearch.evaluation.paper.sets import Limits, Sources
from delfsearch.evaluation.paper.tables import get_table
from delfsearch.evaluation.running.feature_store import FeatureStore
from delfsearch.evaluation.running.runnable import Effort
from delfsearch.extraction.weights import load_weights, save_weights

PARTS = ("oxford5k", "paris6k", "flickr100k", "large", "library", "training")
GRID = (Effort(4, 8), Effort(16, 64))


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return make_miniature(root, parts=PARTS, n_queries=1, size=(64, 48))


@pytest.fixture(scope="module")
def weights(tmp_path_factory, miniature):
    """The networks that the paper names, with random numbers in them."""
    folder = tmp_path_factory.mktemp("weights")
    trunk = save_random_weights(folder / "trunk.safetensors")
    attention = save_attention(trunk, folder / "attention.safetensors")
    torch.save(resnet_tensors(), folder / "resnet.pth")
    torch.save(vgg_tensors(), folder / "vgg.pth")
    files = {name: trunk for name in ("imagenet", "SD", "LF", "LC")}
    files |= {name: attention for name in ("Att-LC", "LC+RS", "LF+RS")}
    files |= {"DIR": folder / "resnet.pth", "siaMAC": folder / "vgg.pth"}
    return {name: str(file) for name, file in files.items()}


def save_attention(trunk, path):
    loaded = load_weights(trunk)
    rng = np.random.default_rng(1)
    arrays = {name: tensor.numpy() for name, tensor in loaded.tensors.items()}
    arrays["attention.conv1.weight"] = rng.normal(0, 0.05, (8, 1024, 1, 1)).astype(np.float32)
    arrays["attention.conv1.bias"] = np.zeros(8, np.float32)
    arrays["attention.conv2.weight"] = rng.normal(0, 0.5, (1, 8, 1, 1)).astype(np.float32)
    arrays["attention.conv2.bias"] = np.zeros(1, np.float32)
    save_weights(path, arrays, RANDOM_META)
    return path


@pytest.fixture(scope="module")
def lift(tmp_path_factory, miniature):
    """Files as LIFT's released code writes them, a descriptor for each corner of a grid."""
    folder = tmp_path_factory.mktemp("lift")
    rng = np.random.default_rng(2)
    x, y = np.meshgrid(np.arange(4, 64, 8), np.arange(4, 48, 8))
    for photo in miniature.root.rglob("*.jpg"):
        keypoints = np.zeros((x.size, 13), np.float32)
        keypoints[:, 0], keypoints[:, 1], keypoints[:, 2] = x.ravel(), y.ravel(), 1.6
        keypoints[:, 4] = rng.random(x.size)
        with h5py.File(folder / f"{photo.stem}_desc.h5", "w") as file:
            file["keypoints"] = keypoints
            file["descriptors"] = rng.normal(size=(x.size, 128)).astype(np.float32)
    return folder


@pytest.fixture(scope="module")
def sources(miniature):
    return Sources(
        oxford=miniature["oxford5k"],
        paris=miniature["paris6k"],
        flickr100k=miniature["flickr100k"],
        large=miniature["large"],
        training=miniature["training"] / "landmarks_clean",
    )


@pytest.fixture(scope="module")
def settings(weights, lift):
    return ReproduceSettings.small(
        grid=GRID,
        weights=weights,
        lift=lift,
        limits=Limits(queries=4, photos=30, fit_photos=12),
        global_components=8,
        max_side=64,
        sides=(64,),
    )


@pytest.fixture(scope="module")
def everything(tmp_path_factory, sources, settings):
    """All tables in one folder: results by name, the store, what DELF was asked to extract."""
    folder = tmp_path_factory.mktemp("out")
    store = FeatureStore(folder / "features")
    asked = Counter()
    with pytest.MonkeyPatch.context() as patch:
        count_extractions(patch, asked)
        results = {
            name: reproduce(name, sources, folder, settings=settings, store=store)
            for name in TABLE_NAMES
        }
    return results, store, asked


def count_extractions(patch, asked):
    """Count how often each photo goes through the network, by network, scales and scoring."""
    stream = DelfSystem.stream

    def counted(self, photos):
        what = (str(self.weights), str(self.scales), self.score, self.iou_threshold)

        def seen():
            for photo in photos:
                name = str(photo) if not hasattr(photo, "tobytes") else hash(photo.tobytes())
                asked[what, name] += 1
                yield photo

        return stream(self, seen())

    patch.setattr(DelfSystem, "stream", counted)


@pytest.mark.parametrize("name", TABLE_NAMES)
def test_every_row_runs(everything, name):
    result = everything[0][name]
    table = get_table(name)
    assert [row.name for row in result.rows] == [row.name for row in table.rows]
    assert result.missing == ()
    for row in result.rows:
        assert row.left_out == ""
        assert [cell.column for cell in row.cells] == [column.name for column in table.columns]
        assert set(row.ran) == set(table.datasets)
        for cell in row.cells:
            assert np.isfinite(cell.value) and cell.value >= 0
            assert cell.value == max(cell.grid.values(), default=cell.value)
            points = set() if not cell.effort else {str(effort) for effort in GRID}
            assert set(cell.grid) == points
        for cost in row.costs:
            assert cost.n_database > 0 and cost.bytes_per_photo > 0 and cost.seconds_per_photo > 0
    found = [cell.value for row in result.rows for cell in row.cells]
    assert max(found) > 0, "something must be found"


def test_no_photo_goes_through_the_network_twice(everything):
    asked = everything[2]
    assert asked and max(asked.values()) == 1


def test_rows_that_differ_in_reduction_or_number_share_their_features(everything):
    # 0.25-2 by L2, whatever the PCA, the network's name and the number of features; Table 2's two
    # suppressions; two other sets of scales; attention and its product.
    assert len({what for what, _ in everything[2]}) == 1 + 2 + 2 + 2


def test_rows_that_are_the_same_system_have_the_same_figures(everything):
    first = {row.name: row for row in everything[0]["table1"].rows}
    second = {row.name: row for row in everything[0]["table2"].rows}
    values = [cell.value for cell in first["0.25-2, L2 1000"].cells]
    assert values == [cell.value for cell in second["1000 features, IoU 1.0"].cells]
    fifth = {row.name: [c.value for c in row.cells] for row in everything[0]["table5"].rows}
    seventh = {row.name: [c.value for c in row.cells] for row in everything[0]["table7"].rows}
    for row in ("DELF-FT-L2", "DELF-FT+Att", "DELF-FT-L2+Att"):
        assert fifth[row] == seventh[f"{row}, beta 0.01"]
    assert fifth == {row.name: [c.value for c in row.cells] for row in everything[0]["fig4"].rows}


def test_the_curve_of_fig4_passes_through_the_table(everything):
    for row in everything[0]["fig4"].rows:
        cell = next(cell for cell in row.cells if cell.column == "TP@90%")
        reached = [tp for tp, p in zip(row.curve.true_positives, row.curve.precision) if p >= 0.9]
        assert max(reached, default=0) == cell.value
        assert row.curve.effort == cell.effort


def test_more_distractor_queries_never_raise_recall(everything):
    for row in everything[0]["table4"].rows:
        for short in ("Oxf105k*", "Par106k*"):
            cells = [cell for cell in row.cells if cell.column.startswith(short)]
            assert [cell.n_distractor_queries for cell in cells] == [0, 4, 4, 4]
            for effort in cells[0].grid:
                assert cells[0].grid[effort] >= cells[1].grid[effort] == cells[3].grid[effort]


@pytest.mark.parametrize("name", TABLE_NAMES)
def test_output(everything, sources, tmp_path, name):
    result = everything[0][name]
    files = write_table(result, sources, tmp_path)
    assert [file.name for file in files] == [f"{name}.json", f"{name}.md", f"{name}.png"]
    document = json.loads(files[0].read_text())
    assert document["table"] == name
    assert len(document["rows"]) == len(get_table(name).rows)
    text = files[1].read_text(encoding="utf-8")
    for row in result.rows:
        for cell in row.cells:
            # True positives are a count.
            ours = f"{cell.value:.0f}" if cell.metric.startswith("TP@") else f"{cell.value:.2f}"
            assert f"| {ours} |" in text
            assert cell.paper is None or f"{cell.paper:.2f}" in text
    assert "tunes on the test set" in text and "`ran`" in text
    assert len(plot_table(result).axes) >= 1


def without_seconds(document):
    for row in document["rows"]:
        for cost in row["costs"]:
            cost.pop("seconds_per_photo")
    return document


def copy_fitted(everything, folder):
    """Spare a test the PCA, seconds of work: it depends on the photos and the network only."""
    shutil.copytree(everything[1].root.parent / "fitted", folder / "fitted")


@pytest.mark.parametrize("stage", ["photos", "photos indexed", "answers"])
def test_an_interrupted_run_goes_on_and_ends_alike(
    everything, sources, settings, tmp_path, stage, monkeypatch
):
    only = Sources(large=sources.large, training=sources.training)
    asked = Counter()
    count_extractions(monkeypatch, asked)
    copy_fitted(everything, tmp_path)

    class Stop(Exception):
        pass

    def stop(row, dataset, what, done, total):
        if row == "500 features" and what == stage and done >= 1:
            raise Stop
        if stage == "photos" and what == stage and done == 5:
            raise Stop

    with pytest.raises(Stop):
        reproduce("table6", only, tmp_path, settings=settings, progress=stop)
    result = reproduce("table6", only, tmp_path, settings=settings)
    expected = as_json(everything[0]["table6"], only)
    assert without_seconds(as_json(result, only)) == without_seconds(expected)
    # What was on its way through the network when it stopped is all that is done again.
    twice = [name for name, n in asked.items() if n > 1]
    assert max(asked.values()) <= 2 and len(twice) <= (16 if stage == "photos" else 0)
    n = sum(asked.values())
    reproduce("table6", only, tmp_path, settings=settings)
    assert sum(asked.values()) == n


def test_without_the_papers_networks_the_output_says_what_ran(
    everything, sources, settings, tmp_path
):
    copy_fitted(everything, tmp_path)
    bare = ReproduceSettings.small(
        grid=GRID[:1],
        weights={"imagenet": settings.weights["imagenet"]},
        limits=settings.limits,
        max_side=64,
    )
    only = Sources(large=sources.large, training=sources.training)
    result = reproduce("table7", only, tmp_path, settings=bare)
    rows = {row.name: row for row in result.rows}
    assert "in place of descriptors fine-tuned on LC" in rows["DELF-FT-L2, beta 0"].ran["large"]
    assert "LF+RS=FILE" in rows["DELF-FT+Att, beta 0.01"].left_out
    text = as_markdown(result)
    assert text.count("| left out |") == 6 * 3
    # The paper's figure stands beside a row that could not be run here.
    assert "| DELF-FT+Att, beta 0.01 | left out | 61.87 | left out | 92.61 |" in text
    assert rows["DELF-FT+Att, beta 0.01"].cells == ()


def test_sets_that_are_not_at_hand_are_named(sources, settings, tmp_path):
    with pytest.raises(DatasetError, match=r"table1: oxford5k.* needs the folder of paris"):
        reproduce("table1", Sources(oxford=sources.oxford), tmp_path, settings=settings)
    with pytest.raises(DatasetError, match="large needs the folder of large"):
        reproduce("table5", Sources(oxford=sources.oxford), tmp_path, settings=settings)


def test_an_unknown_network_is_refused(sources, tmp_path):
    settings = ReproduceSettings.small(weights={"LD": "x"})
    with pytest.raises(ValueError, match=r"weights must be named by imagenet, SD.*'LD'"):
        reproduce("table6", sources, tmp_path, settings=settings)


def test_the_command(miniature, weights, tmp_path, capsys):
    command = ["reproduce", "table6", "fig4", "--smoke", str(miniature["library"])]
    command += ["--out", str(tmp_path / "out"), "--quiet", "--json"]
    for name in ("imagenet", "DIR"):
        command += ["--weights", f"{name}={weights[name]}"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    documents = [json.loads(line) for line in lines]
    assert [document["table"] for document in documents] == ["table6", "fig4"]
    assert all(document["smoke"] for document in documents)
    text = (tmp_path / "out" / "fig4.md").read_text(encoding="utf-8")
    assert "Not the paper's data" in text
    assert documents[1]["rows"][2]["curve"]["true_positives"]
    assert [bool(row["left_out"]) for row in documents[1]["rows"]] == [False] * 3 + [True] * 2
    assert main(["reproduce", "table6", "--out", str(tmp_path), "--large", "nowhere"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert main(["reproduce", "table6", "--out", str(tmp_path)]) == 2
    assert "large needs the folder" in capsys.readouterr().err
