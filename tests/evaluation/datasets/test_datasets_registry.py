"""Every set by name, on the miniature trees: real formats, real pictures."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from evaluation.miniature import PARTS, UNREADABLE, Camera, make_miniature
from PIL import Image

from delfsearch import DelfExtractor, DelfIndex, Verifier
from delfsearch.boxes import crop
from delfsearch.errors import DatasetError, PhotoError
from delfsearch.evaluation.datasets import DATASET_NAMES, load_dataset

# Where the registry's names are in the miniature.
PART_OF = {
    "gldv2-retrieval": "google_landmarks",
    "gldv2-recognition": "google_landmarks",
    "folder": "library",
    "table": "large",
    "image_folder": "training",
    "oxford105k": "oxford5k",
    "paris106k": "paris6k",
}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    return make_miniature(tmp_path_factory.mktemp("miniature"), size=(160, 120))


def load(miniature, name: str, **changes):
    plain = name.rstrip("*")
    arguments = {}
    if plain in ("oxford105k", "paris106k"):
        arguments["flickr100k"] = miniature["flickr100k"]
    if name.endswith("*"):
        other = "paris6k" if plain.startswith("oxford") else "oxford5k"
        arguments |= {"other_root": miniature[other], "n_distractor_queries": 5}
    root = miniature[PART_OF.get(plain, plain)]
    if plain == "image_folder":
        root = root / "landmarks_clean"
    return load_dataset(name, root, **{**arguments, **changes})


@pytest.mark.parametrize("name", DATASET_NAMES)
def test_every_set_is_loaded_by_name(miniature, name):
    dataset = load(miniature, name)
    assert dataset.name == ("library" if name == "folder" else name)
    assert dataset.check() is dataset and dataset.absent_photos() == ()
    assert dataset.database and (dataset.queries or name == "flickr100k")
    assert len(dataset.distractor_queries) == 5 or not name.endswith("*")
    for photo in dataset.database:
        if photo != UNREADABLE:
            Image.open(dataset.paths[photo]).verify()


def test_names_as_the_paper_abbreviates(miniature):
    for abbreviated, name in {
        "Oxf5k": "oxford5k",
        "Par6k": "paris6k",
        "Oxf105k": "oxford105k",
        "PAR106K*": "paris106k*",
        " Oxf5k *": "oxford5k*",
    }.items():
        changes = {}
        full = load(miniature, name)
        if name.endswith("*"):
            other = miniature["paris6k" if name.startswith("oxford") else "oxford5k"]
            changes = {"other_root": other, "n_distractor_queries": 5}
        if "10" in name:
            changes["flickr100k"] = miniature["flickr100k"]
        root = miniature[PART_OF.get(name.rstrip("*"), name.rstrip("*"))]
        assert load_dataset(abbreviated, root, **changes) == full


def test_options_reach_the_readers(miniature, tmp_path):
    assert load(miniature, "oxford5k").exclude_self is False
    assert load(miniature, "oxford105k*", exclude_self=True).exclude_self is True
    two = [load(miniature, "oxford5k*", random_state=seed) for seed in (0, 1)]
    assert two[0].distractor_queries != two[1].distractor_queries
    assert load(miniature, "large").radius_km == 25.0
    assert load(miniature, "table").radius_km is None
    assert load(miniature, "paris6k*", n_distractor_queries=0).distractor_queries == ()
    with pytest.raises(ValueError, match="missing must be one of"):
        load(miniature, "oxford5k", missing="ignore")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("oxford", {}, "no set is called 'oxford'; there are oxford5k, paris6k"),
        ("holidays*", {}, r"no set is called 'holidays\*'"),
        ("oxford5k**", {"x": 1}, None),
        ("oxford5k*", {}, "needs other_root: the folder of paris6k"),
        ("paris6k*", {"other_root": "."}, r"needs n_distractor_queries: Q\^D"),
        ("oxford105k", {}, "needs flickr100k: the folder of Flickr100k"),
        ("oxford5k", {"flickr100k": "."}, "has no use for flickr100k"),
        ("oxford5k", {"other_root": "."}, "has no use for other_root"),
        ("holidays", {"n_distractor_queries": 3}, "has no use for n_distractor_queries"),
        ("holidays", {"exclude_self": False}, "leaves no choice of exclude_self"),
    ],
)
def test_arguments_that_do_not_fit_the_name(tmp_path, name, changes, message):
    with pytest.raises(TypeError if message is None else DatasetError, match=message):
        load_dataset(name, tmp_path, **changes)


def test_the_same_seed_gives_the_same_miniature(tmp_path):
    files = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        made = make_miniature(
            tmp_path / folder, seed=seed, parts=("holidays", "roxford5k"), size=(48, 36)
        )
        files.append(
            {
                file.relative_to(made.root).as_posix(): file.read_bytes()
                for file in made.root.rglob("*")
                if file.is_file()
            }
        )
    assert files[0] == files[1]
    assert files[0].keys() == files[2].keys() and files[0] != files[2]
    assert set(PARTS) == set(make_miniature.__globals__["_MAKERS"])


def test_the_miniature_pickle_is_plain_for_pickle_too(miniature):
    content = pickle.loads((miniature["roxford5k"] / "gnd_roxford5k.pkl").read_bytes())
    assert set(content) == {"imlist", "qimlist", "gnd"}


def test_a_retrieval_system_finds_the_planted_pairs(tmp_path):
    """DELF with box, index and verifier on the miniature Oxford5k*, as a row of a table does."""
    made = make_miniature(tmp_path, parts=("oxford5k", "paris6k"), n_queries=1, size=(240, 180))
    extractor = DelfExtractor(
        scales=[0.5, 1.0],
        max_features=300,
    )
    dataset = load(made, "oxford5k*", n_distractor_queries=2)
    unreadable = load(made, "paris6k").paths[UNREADABLE]
    ((_, refused),) = extractor.stream([unreadable])
    assert isinstance(refused, PhotoError)
    indexed = extractor.transform([dataset.paths[photo] for photo in dataset.database])
    index = DelfIndex(max_squared_distance=None).fit(indexed)
    right, wrong = [], []
    for query in dataset.all_queries:
        photo = query.path if query.box is None else crop(query.path, query.box).photo
        hits = Verifier(min_inliers=3).verify(index.query(extractor.transform([photo])[0]))
        for hit in hits:
            answer = dataset.database[hit.id]
            if answer not in query.junk:
                (right if answer in query.positives else wrong).append(hit.n_inliers)
    assert len(right) == sum(len(query.positives) for query in dataset.queries) == 15
    # One threshold tells them all apart, distractor queries included.
    assert min(right) > max(wrong)


def test_views_of_one_place_differ_and_show_it():
    camera = Camera(size=(64, 48))
    first, again, second = camera.view("a", 0), camera.view("a", 0), camera.view("a", 1)
    assert first.tobytes() == again.tobytes() != second.tobytes()
    assert first.size == (64, 48) and camera.place("a").size == (96, 72)


def test_the_documentation_names_every_set():
    text = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text(encoding="utf-8")
    for name in DATASET_NAMES:
        assert f"`{name}`" in text, name
