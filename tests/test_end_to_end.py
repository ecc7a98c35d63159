"""Real photographs from end to end, with the weights that the package holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import delfsearch
from delfsearch import DelfExtractor, ImageSearch
from delfsearch.cli import main
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.extraction.weights import DEFAULT_WEIGHTS


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's folder, exit code and output."""
    folder = tmp_path_factory.mktemp("demo")
    with (folder / "said.txt").open("w+", encoding="utf-8") as said:
        before, sys.stdout = sys.stdout, said
        try:
            code = main(["demo", "--out", str(folder / "out"), "--quiet"])
        finally:
            sys.stdout = before
    return folder / "out", code, (folder / "said.txt").read_text(encoding="utf-8")


def test_the_demo_answers_rightly_and_says_what_it_did(demo):
    out, code, said = demo
    assert DEFAULT_WEIGHTS in said and "sha256" in said and "score attention" in said
    assert "Indexing 12 photos: about " in said
    assert "Index: 12 photos, " in said and "descriptors in" in said
    assert "changed views found their photo first" in said and "Total time" in said
    assert code == 0, said
    assert "10 of 10 changed views" in said and "5 of 5 photographs without" in said
    assert len(list(out.glob("match_*.png"))) == 10
    for plot in ("ranked.png", "scores_palace_from_the_side.png"):
        with Image.open(out / plot) as drawn:
            assert drawn.width > 500


def test_the_demo_can_be_run_again(demo):
    out, code, _ = demo
    command = ["demo", "--out", str(out), "--no-plots", "--quiet"]
    own = ["--photos", str(out / "queries"), "--query", str(out / "photos" / "china.jpg")]
    assert main([*command, *own]) == 0
    search = ImageSearch.load(out / "demo-index")
    assert len(search) == 15
    # Leave what the demo itself made to the other tests.
    assert main(command) == code


def test_the_command_line_in_a_process_of_its_own(demo):
    out, _, _ = demo
    queries = [out / "queries" / name for name in ("palace_at_dusk.jpg", "flower.jpg")]
    source = os.path.dirname(os.path.dirname(delfsearch.__file__))
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "delfsearch",
            "query",
            *map(str, (out / "demo-index", *queries)),
            "--json",
        ],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        check=True,
    )
    assert result.stderr == b""
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["query"] for answer in answers] == [str(query) for query in queries]
    for answer in answers:
        assert set(answer) == {"version", "query", "hits"} and answer["version"] == 1
        for hit in answer["hits"]:
            assert set(hit) == {"id", "path", "label", "score", "n_inliers", "affine"}
    (hit,) = answers[0]["hits"]
    assert hit["path"] == "china.jpg" and hit["label"] == "Summer Palace, Beijing"
    # The query is the part (128, 43) ... (480, 320) of the photo, enlarged to 528 x 416: its
    # middle lies at (304, 181). Features 16 px apart and more give the scale only roughly.
    affine = np.array(hit["affine"])
    assert affine @ (264, 208, 1) == pytest.approx((304, 181), abs=20)
    assert affine[:, :2] == pytest.approx(np.eye(2) / 1.5, abs=0.15)
    assert answers[1]["hits"] == []


def shared_photos():
    """The folder of real photographs with ground truth, where there is one."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "photos"
    folder = Path(os.environ.get("DELFSEARCH_PHOTOS", beside))
    return PhotoFolder.read(folder, check_files=False) if PhotoFolder.is_one(folder) else None


FOLDER = shared_photos()

if FOLDER is not None:

    def test_pairs_of_photographs_among_distractors():
        assert FOLDER is not None
        pairs = []  # one query a scene, places first
        for query in sorted(FOLDER.headline_queries, key=lambda path: FOLDER.subsets[path]):
            truth = FOLDER.queries[query]
            if truth.positives and FOLDER.scenes[query] not in {
                FOLDER.scenes[other] for other, _ in pairs
            }:
                pairs.append((query, truth.positives[0]))
        pairs = [pair for pair in pairs if FOLDER.subsets[pair[0]].endswith("landmarks")][::5][:12]
        others = FOLDER.distractor_queries[::30][:12]
        database = [positive for _, positive in pairs] + list(others)
        assert len(database) == 24
        extractor = DelfExtractor.preset("fast", max_side=480, max_features=500)
        search = ImageSearch(extractor).fit([FOLDER.root / path for path in database])
        answers = search.query_many([FOLDER.root / query for query, _ in pairs], min_inliers=3)
        n_right = sum(
            bool(hits) and search.path_of(hits[0]).resolve() == (FOLDER.root / positive).resolve()
            for hits, (_, positive) in zip(answers, pairs)
        )
        assert n_right >= 9, f"{n_right} of 12 right"
