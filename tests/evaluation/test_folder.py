"""Reading the library's own folder format, and refusing what only looks like it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from delfsearch.evaluation.folder import PhotoFolder

TABLE = """\ufeffpath,role,scene,kind,subset,source
q/été.jpg,query,tower,pair,landmarks,x
db/1.jpg,db,tower,pair,landmarks,x
db/2.jpg,db,bridge,pair,landmarks,x
d/1.jpg,distractor,,,,x
n.jpg,query_nomatch,,nomatch_query,objects,x
"""


def truth() -> dict:
    return {
        "queries": {
            "q/été.jpg": {
                "scene": "tower",
                "kind": "pair",
                "subset": "landmarks",
                "positives": ["db/1.jpg"],
                "junk": ["db/2.jpg"],
            },
            "n.jpg": {"positives": []},
        },
        "headline_queries": ["q/été.jpg"],
        "no_match_queries": ["n.jpg"],
        "distractor_queries": ["d/1.jpg"],
        "database": ["db/1.jpg", "db/2.jpg", "d/1.jpg"],
    }


def write(root: Path, table: str = TABLE, content: dict | str | None = None) -> Path:
    (root / "photos.csv").write_text(table, encoding="utf-8")
    content = truth() if content is None else content
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "ground_truth.json").write_text(text, encoding="utf-8")
    for path in ("q/été.jpg", "db/1.jpg", "db/2.jpg", "d/1.jpg", "n.jpg"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).touch()
    return root


def test_everything_is_read(tmp_path):
    assert not PhotoFolder.is_one(tmp_path)
    folder = PhotoFolder.read(write(tmp_path))
    assert PhotoFolder.is_one(tmp_path)
    assert folder.paths == ("q/été.jpg", "db/1.jpg", "db/2.jpg", "d/1.jpg", "n.jpg")
    assert folder.database == ("db/1.jpg", "db/2.jpg", "d/1.jpg")
    assert folder.queries["q/été.jpg"].positives == ("db/1.jpg",)
    assert folder.positives == {"q/été.jpg": ("db/1.jpg",), "n.jpg": ()}
    assert folder.junk == {"q/été.jpg": ("db/2.jpg",), "n.jpg": ()}
    assert folder.headline_queries == ("q/été.jpg",)
    assert folder.no_match_queries == ("n.jpg",)
    assert folder.distractor_queries == ("d/1.jpg",)
    assert folder.labels == {"q/été.jpg": "tower", "db/1.jpg": "tower", "db/2.jpg": "bridge"}
    assert folder.roles["d/1.jpg"] == "distractor" and folder.subsets["n.jpg"] == "objects"


def changed(**entries) -> dict:
    return {**truth(), **entries}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (changed(database=["db/9.jpg"]), r"database .* 'db/9\.jpg' is not \(1 in all\)"),
        (changed(database=["db/1.jpg"] * 3), r"database .* 'db/1\.jpg' is there 3 times"),
        (changed(queries={"x.jpg": {"positives": []}}), r"queries .* 'x\.jpg' is not"),
        (changed(queries={"n.jpg": {"positives": ["y.jpg"]}}), r"positives .* 'y\.jpg'"),
        (changed(queries={"n.jpg": {}}), "KeyError: 'positives'"),
        (changed(queries=[]), "AttributeError"),
        (changed(headline_queries=["db/1.jpg"]), r"'db/1\.jpg' .* must be one of the queries"),
        (changed(distractor_queries=["z"]), "distractor_queries .* 'z' is not"),
        (
            changed(queries={"n.jpg": {"positives": ["db/1.jpg"], "junk": ["db/1.jpg"]}}),
            "both as positive and as junk",
        ),
        ("{", "is not as it must be: JSONDecodeError"),
        ("[]", "is not as it must be"),
    ],
)
def test_ground_truth_that_does_not_fit_is_refused(tmp_path, content, text):
    if isinstance(content, dict) and content["queries"] != truth()["queries"]:
        content["headline_queries"] = []
    with pytest.raises(ValueError, match=text):
        PhotoFolder.read(write(tmp_path, content=content))


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("", "lists no photo"),
        ("path,role\n", "lists no photo"),
        ("file,role\na.jpg,db\n", "must have a column path; it has file, role"),
        (TABLE + "db/1.jpg,db,tower,,,\n", r"photos\.csv must name a photo once; 'db/1\.jpg'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, table, text):
    with pytest.raises(ValueError, match=text):
        PhotoFolder.read(write(tmp_path, table=table))


def test_absent_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no photos\.csv"):
        PhotoFolder.read(tmp_path)
    write(tmp_path)
    (tmp_path / "db" / "2.jpg").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of the 5 photos .* 'db/2\.jpg'"):
        PhotoFolder.read(tmp_path)
    assert len(PhotoFolder.read(tmp_path, check_files=False).paths) == 5
    (tmp_path / "ground_truth.json").unlink()
    with pytest.raises(ValueError, match=r"no ground_truth\.json"):
        PhotoFolder.read(tmp_path)


def test_the_real_photographs_if_they_are_here():
    """The folder that benchmarks use: DELFSEARCH_PHOTOS, or ../shared/photos beside the source."""
    default = Path(__file__).parents[3] / "shared" / "photos"
    root = Path(os.environ.get("DELFSEARCH_PHOTOS") or default)
    if not PhotoFolder.is_one(root):
        return
    folder = PhotoFolder.read(root)
    assert set(folder.headline_queries) <= set(folder.queries)
    assert not set(folder.queries) & set(folder.database)
