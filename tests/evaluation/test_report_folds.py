"""The report with weights of folds: nobody is asked for a scene that it was trained on."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from evaluation.miniature import make_miniature
from evaluation.test_reproduce import save_attention
from random_weights import save_random_weights

from delfsearch.baselines import load_system
from delfsearch.cli import main
from delfsearch.cli.report_command import _SMALL
from delfsearch.errors import WeightsError
from delfsearch.evaluation.datasets.library_folder import from_photo_folder
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.evaluation.judging import judge_all
from delfsearch.evaluation.metrics import mean_average_precision, recall_at_precision
from delfsearch.evaluation.report import fold_weights
from delfsearch.evaluation.report.failures import _hits
from delfsearch.evaluation.report.fold_weights import (
    divided,
    fold_files,
    read_folds,
    trained_by_query,
)
from delfsearch.evaluation.report.lineup import lineup
from delfsearch.evaluation.report.standing import ReportSettings, make_report
from delfsearch.evaluation.report.written import write_report
from delfsearch.extraction.weights import cached_path, load_weights, save_weights

TRAINED, UNTRAINED = "delf-attention-0.25-1", "delf-imagenet-l2-0.25-1"
HELD_OUT = (("scene 0", "scene 2"), ("scene 1", "scene 3", "scene of another folder"))
# Paths in the folder of photos: the other fold's scenes, and distractors that no query shows.
TRAINED_ON = (
    ("scenes/1/00.jpg", "scenes/1/01.jpg", "scenes/3/02.jpg", "distractors/4.jpg"),
    ("scenes/0/01.jpg", "scenes/2/01.jpg", "scenes/2/02.jpg", "distractors/5.jpg", "not/here.jpg"),
)


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Weights by name: the trunk, and a folder of two folds whose PCAs and heads differ."""
    place = tmp_path_factory.mktemp("weights")
    trunk = save_random_weights(place / "trunk.safetensors")
    whole = load_weights(save_attention(trunk, place / "attention.safetensors"))
    (place / "folds").mkdir()
    for fold, (held_out, photos) in enumerate(zip(HELD_OUT, TRAINED_ON)):
        arrays = whole.to_arrays()
        rng = np.random.default_rng(fold)
        arrays["attention.conv2.weight"] = rng.normal(0, 0.5, (1, 8, 1, 1)).astype(np.float32)
        axes = np.linalg.qr(rng.normal(size=(1024, 40)))[0].T
        arrays["pca.components"] = axes.astype(np.float32)
        arrays["pca.mean"] = np.zeros(1024, np.float32)
        arrays["pca.explained_variance"] = np.ones(40, np.float32)
        recipe = {"held_out_scenes": list(held_out), "trained_photos": list(photos)}
        save_weights(
            place / "folds" / f"fold-{fold}.safetensors",
            arrays,
            {**whole.to_meta(), "recipe": recipe},
        )
    # What was trained on everything may lie beside them.
    (place / "folds" / "model.safetensors").write_bytes(b"not looked at")
    return place


@pytest.fixture(scope="module")
def imagenet(place, tmp_path_factory):
    """The trunk under the name of the ImageNet weights, in a cache of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DELFSEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        target = cached_path("resnet50-imagenet")
        target.write_bytes((place / "trunk.safetensors").read_bytes())
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = make_miniature(tmp_path_factory.mktemp("sets"), parts=("library",), size=(96, 72))
    return PhotoFolder.read(made["library"])


@pytest.fixture(scope="module")
def settings(place, imagenet):
    return ReportSettings(
        systems=(TRAINED, UNTRAINED, "rootsift"),
        beside=(UNTRAINED, "rootsift"),
        weights={"delf": str(place / "folds")},
        options=_SMALL,
        together=(("landmarks", "objects"),),
        without_trained=True,
        n_resamples=20,
        n_timed=9,
        n_jobs=1,
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def report(folder, settings, out):
    return make_report(folder, out / "work", settings=settings)


def result_of(report, key):
    return next(result for result in report.results if result.contender.key == key)


def test_a_query_is_asked_of_the_weights_that_held_its_scene_out(report, folder):
    entrant = result_of(report, TRAINED).entrant
    dataset = from_photo_folder(folder)
    assert [[q.id for q in part.queries] for _, part in entrant.parts] == [
        ["scenes/0/00.jpg", "scenes/2/00.jpg"],
        ["scenes/1/00.jpg", "scenes/3/00.jpg"],
    ]
    # A query without match, then the distractor queries: of no scene, dealt.
    assert [[q.id for q in part.distractor_queries] for _, part in entrant.parts] == [
        ["scenes/none/00.jpg", "distractors/1.jpg", "distractors/3.jpg"],
        ["distractors/0.jpg", "distractors/2.jpg"],
    ]
    assert all(part.database == dataset.database for _, part in entrant.parts)
    assert len({runnable.shelf.key for runnable, _ in entrant.parts}) == 2
    assert len(result_of(report, UNTRAINED).entrant.parts) == 1


def test_answers_are_those_of_each_file_alone(report, folder, settings, place, out, caplog):
    folded = result_of(report, TRAINED)
    alone = []
    for fold in (0, 1):
        file = str(place / "folds" / f"fold-{fold}.safetensors")
        one = dataclasses.replace(
            settings, systems=(TRAINED,), beside=(), weights={"delf": file}, without_trained=False
        )
        alone.append(make_report(folder, out / "work", settings=one).results[0])
        assert "trained on photos that 2 of the queries show or ask for" in alone[-1].ran
        assert "no fair figures" in caplog.text
        assert str(place) not in alone[-1].ran
    for (_, part), one in zip(folded.entrant.parts, alone):
        for query in part.all_queries:
            assert folded.answers[query.id] == one.answers[query.id]
    assert alone[0].answers != alone[1].answers, "the folds must differ for this to say anything"
    assert folded.bytes_per_photo == pytest.approx(
        (alone[0].bytes_per_photo + alone[1].bytes_per_photo) / 2
    )
    assert set(folded.answers) == {query.id for query in report.dataset.all_queries}
    assert folded.n_unreadable == 0 and folded.unreadable_queries == ()
    assert math.isfinite(folded.timing.seconds_per_query) and folded.timing.seconds_per_query > 0


def test_pictures_show_what_the_right_fold_saw(report, out):
    for result in report.results:
        searches = {}
        for query in report.dataset.all_queries:
            hits = _hits(result.entrant, query, out / "work", searches)
            assert [(path, hit.score) for path, hit in hits.items()] == result.answers[query.id]
        assert len(searches) == len(result.entrant.parts)


def test_photos_trained_on_are_struck_from_the_answers_of_every_system(report):
    name = "headline, without photos trained on"
    (group,) = (group for group in report.groups if group.name == name)
    # Fold 0 knows scenes/1/01, scenes/3/02 and distractors/4 of the database, fold 1 four of it.
    assert group.about.startswith("Each query without the 3 to 4 database photos (of 14) that")
    fold_of = {"0": 0, "1": 1, "2": 0, "3": 1}
    for result in report.results:
        kept = {}
        for query in report.dataset.queries:
            gone = TRAINED_ON[fold_of[query.id.split("/")[1]]]
            kept[query.id] = [a for a in result.answers[query.id] if a[0] not in gone]
        for i, query in enumerate(report.dataset.distractor_queries):
            gone = TRAINED_ON[i % 2]
            kept[query.id] = [a for a in result.answers[query.id] if a[0] not in gone]
        figures = result.figures[name].by_measure
        own = judge_all(kept, report.dataset.queries)
        pooled = judge_all(kept, report.dataset.all_queries)
        assert figures["mAP"].value == mean_average_precision(own)
        assert figures["R@90%"].value == recall_at_precision(pooled, 0.9)


def test_what_is_written(report, out, place, tmp_path):
    files = write_report(report, tmp_path / "results.md", tmp_path / "failures", out / "work")
    text = files[0].read_text(encoding="utf-8")
    document = json.loads(files[1].read_text(encoding="utf-8"))
    assert (
        "**DELF 0.25-1, attention**: DELF on fold-0.safetensors ... fold-1.safetensors (one of "
        "them: seeded random numbers, for tests), scales 0.25-1, score attention, at most 1000 "
        "features, PCA to 40; 2 folds of scenes: each query is answered by the weights that held "
        "its scene out, over the whole database, photos that they were trained on included; scores "
        "of 2 weights are pooled."
    ) in text
    assert str(place) not in text + files[1].read_text(encoding="utf-8")
    assert document["settings"]["weights"] == {"delf": "folds"}
    # Each part has the pairs that were asked for: trained beside untrained and beside RootSIFT.
    groups = [
        "headline",
        "headline, without photos trained on",
        "landmarks + objects",
        "landmarks",
        "objects",
    ]
    names = {TRAINED: "DELF 0.25-1, attention", UNTRAINED: "DELF 0.25-1, ImageNet, L2"}
    pairs = [
        (names[TRAINED], names[UNTRAINED]),
        ("RootSIFT", names[UNTRAINED]),
        (names[TRAINED], "RootSIFT"),
        (names[UNTRAINED], "RootSIFT"),
    ]
    told = [(d["group"], d["system"], d["beside"]) for d in document["differences"]]
    assert told == [(group, *pair) for group in groups for pair in pairs]
    assert text.count(f"Each beside {names[UNTRAINED]}, the same queries") == len(groups)
    assert text.count("Each beside RootSIFT, the same queries") == len(groups)
    assert {file.name for file in files} >= {f"{TRAINED}.png", f"{UNTRAINED}.png"}


def test_made_again_it_extracts_nothing(report, folder, settings, out, monkeypatch):
    monkeypatch.setattr(
        "delfsearch.evaluation.running.feature_store.FeatureShelf._extract",
        lambda *_: pytest.fail("a photo was extracted again"),
    )
    monkeypatch.setattr(
        "delfsearch.evaluation.running.feature_store.FeatureShelf.extract",
        lambda _, photos: pytest.fail("a photo was timed again") if photos else iter(()),
    )
    again = make_report(folder, out / "work", settings=settings)
    for one, other in zip(report.results, again.results):
        assert one.answers == other.answers and one.timing == other.timing


@pytest.mark.parametrize("stop_at", ["photos", "photos indexed", "answers"])
def test_a_run_interrupted_in_the_second_fold_goes_on(report, folder, settings, tmp_path, stop_at):
    few = dataclasses.replace(settings, systems=(TRAINED,), beside=(), n_timed=1)

    class Stop(Exception):
        pass

    def stop(system, what, done, total):
        if system == "DELF 0.25-1, attention, 2 of 2" and what == stop_at and done >= 2:
            raise Stop

    with pytest.raises(Stop):
        make_report(folder, tmp_path, settings=few, progress=stop)
    (result,) = make_report(folder, tmp_path, settings=few).results
    assert result.answers == result_of(report, TRAINED).answers


def test_the_command(report, folder, place, out, capsys):
    command = ["report", str(folder.root), "--out", str(out), "--quiet", "--small"]
    command += ["--systems", f"{TRAINED},{UNTRAINED},rootsift", "--resamples", "20"]
    command += ["--threads", "1", "--weights", f"delf={place / 'folds'}", "--no-pictures"]
    command += ["--beside", f"{UNTRAINED},rootsift", "--together", "landmarks+objects"]
    assert main([*command, "--without-trained"]) == 0
    text = capsys.readouterr().out
    r1 = result_of(report, TRAINED).figures["landmarks"].by_measure["R@1"]
    assert f"| DELF 0.25-1, attention | {r1.value:.3f} [{r1.low:.2f}, {r1.high:.2f}] |" in text
    assert "### headline, without photos trained on" in text
    assert main([*command, "--beside", "xfeat"]) == 2
    assert "beside must name systems that are run" in capsys.readouterr().err
    command[command.index(f"delf={place / 'folds'}")] = f"delf={place / 'trunk.safetensors'}"
    assert main([*command, "--without-trained"]) == 2
    assert "must be a folder of folds" in capsys.readouterr().err
    plain = [part for part in command if not part.startswith("delf=") and part != "--weights"]
    assert main([*plain, "--without-trained"]) == 2
    assert "none were given" in capsys.readouterr().err


def test_the_lineup_of_a_folder(place):
    keys = [contender.key for contender in lineup((), {"delf": str(place / "folds")})]
    assert keys[:6] == [
        f"delf-{score}-{scales}"
        for score in ("attention", "l2", "imagenet-l2")
        for scales in ("0.25-1", "0.25-2")
    ]
    assert "rootsift" in keys


# -- what is refused --------------------------------------------------------------------------


def changed(weights, fold):
    """Return what makes a fold of a folder of folds: weights with another recipe, or parts."""
    recipe = {"held_out_scenes": list(HELD_OUT[fold]), "trained_photos": list(TRAINED_ON[fold])}
    return dataclasses.replace(weights, recipe=recipe)


@pytest.fixture
def two_folds(place, tmp_path, monkeypatch):
    """Two folds that a test may change before they are read, by file name."""
    loaded = load_weights(place / "attention.safetensors")
    folds = {f"fold-{n}.safetensors": changed(loaded, n) for n in (0, 1)}
    for name in folds:
        (tmp_path / name).touch()
    monkeypatch.setattr(fold_weights, "load_weights", lambda file: folds[file.name])
    return folds


def told(folds, name, **recipe):
    """Say something else in the recipe of a fold; None says nothing."""
    recipe = {key: value for key, value in {**folds[name].recipe, **recipe}.items() if value}
    folds[name] = dataclasses.replace(folds[name], recipe=recipe)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("fold-0", "fold-2"), r"lacks fold-1\.safetensors"),
        (("fold-1",), r"lacks fold-0\.safetensors"),
        (("fold-0",), r"lacks fold-1\.safetensors.*1 of at least 2"),
        (("fold-0", "fold-01"), r"must be named .* holds fold-01\.safetensors"),
        (("fold-0", "fold-1", "fold-best"), r"holds fold-best\.safetensors"),
    ],
)
def test_files_missing_in_the_sequence(tmp_path, names, message):
    for name in names:
        (tmp_path / f"{name}.safetensors").touch()
    with pytest.raises(WeightsError, match=message):
        lineup((), {"delf": str(tmp_path)})


def test_what_is_no_folder_of_folds(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert fold_files(tmp_path) == () and fold_files(tmp_path / "model.safetensors") == ()
    assert fold_files("resnet50-imagenet") == ()
    for n in range(11):
        (tmp_path / f"fold-{n}.safetensors").touch()
    assert [path.name for path in fold_files(tmp_path)][-2:] == [
        "fold-9.safetensors",
        "fold-10.safetensors",
    ]


def test_folds_that_do_not_say_what_they_held_out(two_folds, tmp_path):
    told(two_folds, "fold-1.safetensors", held_out_scenes=None)
    with pytest.raises(WeightsError, match=r"fold-1\.safetensors' do not say .*held_out_scenes"):
        read_folds(tmp_path)


def test_a_scene_that_two_folds_held_out(two_folds, tmp_path):
    told(two_folds, "fold-1.safetensors", held_out_scenes=["scene 1", "scene 3", "scene 2"])
    with pytest.raises(WeightsError, match=r"fold-0.* and fold-1.* both held out 'scene 2'"):
        read_folds(tmp_path)


def test_a_scene_that_no_fold_held_out(two_folds, tmp_path, folder):
    told(two_folds, "fold-1.safetensors", held_out_scenes=["scene 1"])
    with pytest.raises(WeightsError, match=r"no fold of .* held out 'scene 3', which queries"):
        divided(from_photo_folder(folder), read_folds(tmp_path))


@pytest.mark.parametrize(
    ("photo", "query"),
    [
        ("scenes/3/00.jpg", "scenes/3/00.jpg"),  # the query itself
        ("scenes/1/02.jpg", "scenes/1/00.jpg"),  # what it is to find
        ("distractors/2.jpg", "distractors/2.jpg"),
    ],
)
def test_weights_that_saw_what_they_are_asked_for(two_folds, tmp_path, folder, photo, query):
    told(two_folds, "fold-1.safetensors", trained_photos=["scenes/0/00.jpg", photo])
    with pytest.raises(WeightsError, match=rf"fold-1.* must not know: .* those of '{query}'"):
        divided(from_photo_folder(folder), read_folds(tmp_path))


def test_folds_of_several_kinds(two_folds, tmp_path):
    kept = dict(two_folds)
    for change, message in (
        ({"attention": {}}, r"attention is attention\.conv1.* in fold-0.* and absent in fold-1"),
        ({"layout": "torchvision"}, "layout is keras in fold-0.* and torchvision in fold-1"),
        (
            {"pca": {"pca.components": np.zeros((40, 1024))}},
            "the number of PCA components is 0 in fold-0.* and 40 in fold-1",
        ),
    ):
        two_folds.update(kept)
        name = "fold-1.safetensors"
        two_folds[name] = dataclasses.replace(two_folds[name], **change)
        with pytest.raises(WeightsError, match=message):
            read_folds(tmp_path)


def test_trained_photos_must_be_known_to_be_struck(two_folds, tmp_path, folder):
    dataset = from_photo_folder(folder)
    found = trained_by_query(dataset, tmp_path)
    assert found["scenes/2/00.jpg"] == {"scenes/1/01.jpg", "scenes/3/02.jpg", "distractors/4.jpg"}
    assert set(found) == {query.id for query in dataset.all_queries}
    told(two_folds, "fold-1.safetensors", trained_photos=None)
    with pytest.raises(WeightsError, match=r"fold-1.* does not say .* has no trained_photos"):
        trained_by_query(dataset, tmp_path)


def test_a_fold_without_queries_is_not_run(two_folds, tmp_path, folder):
    dataset = from_photo_folder(folder)
    few = dataclasses.replace(dataset, queries=dataset.queries[:1], distractor_queries=())
    parts = divided(few, read_folds(tmp_path))
    assert [len(part.all_queries) for part in parts] == [1, 0]


def test_networks_of_later_folds_are_not_kept(monkeypatch):
    system = load_system("delf", weights="nowhere.safetensors", n_jobs=1)
    system._loaded, system.pca_ = "a network", "a PCA"
    monkeypatch.setattr(type(system), "stream", lambda self, photos: self)
    stream = fold_weights._loaded_anew(system)
    first = stream(())
    first._loaded = "another network"
    assert not hasattr(stream(()), "_loaded") and stream(()).pca_ == "a PCA"
    assert stream(()).get_params() == system.get_params()
