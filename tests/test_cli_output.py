import json

import numpy as np
import pytest

from delfsearch.cli.output import group_by_label, hits_as_json, hits_as_text
from delfsearch.matches import Hit


def a_hit(number, label=None, n_inliers=10, path=None):
    return Hit(
        id=number,
        score=float(n_inliers),
        n_inliers=n_inliers,
        affine=np.array([[1.0, 0.5, -3.25], [0.0, 2.0, 1e-9]]),
        inliers=np.zeros((n_inliers, 4), np.float32),
        path=f"photos/{number}.jpg" if path is None else path,
        label=label,
    )


def test_json_holds_exactly_what_is_documented():
    text = hits_as_json("q.jpg", [a_hit(2**40, "tower", 31)])
    assert "\n" not in text
    assert json.loads(text) == {
        "version": 1,
        "query": "q.jpg",
        "hits": [
            {
                "id": 2**40,
                "path": f"photos/{2**40}.jpg",
                "label": "tower",
                "score": 31.0,
                "n_inliers": 31,
                "affine": [[1.0, 0.5, -3.25], [0.0, 2.0, 1e-9]],
            }
        ],
    }


def test_json_without_hits():
    assert json.loads(hits_as_json("q", [])) == {"version": 1, "query": "q", "hits": []}


@pytest.mark.parametrize("name", ["caf\u00e9/\u6771\u4eac.jpg", "bad\udcff.jpg", 'a"b\\c\n.jpg'])
def test_json_is_ascii_and_brings_any_name_back(name):
    text = hits_as_json(name, [a_hit(1, path=name)])
    assert text.isascii() and "\n" not in text
    assert json.loads(text)["query"] == json.loads(text)["hits"][0]["path"] == name


def test_text_says_no_match():
    assert hits_as_text("q.jpg", [], 0.25) == "q.jpg: no match (0.25 s)"


def test_text_lists_hits_best_first():
    text = hits_as_text("q.jpg", [a_hit(5, n_inliers=40), a_hit(3, n_inliers=9)], 1.0)
    assert text.splitlines() == [
        "q.jpg: 2 photos (1.00 s)",
        "    1.   40 inliers  photos/5.jpg  #5",
        "    2.    9 inliers  photos/3.jpg  #3",
    ]


def test_text_groups_by_place_and_keeps_the_ranks():
    hits = [a_hit(1, "tower", 40), a_hit(2, "bridge", 30), a_hit(3, "tower", 20), a_hit(4, None, 9)]
    assert hits_as_text("q.jpg", hits, 1.0).splitlines() == [
        "q.jpg: 4 photos (1.00 s)",
        "  tower: 2 photos, up to 40 inliers",
        "      1.   40 inliers  photos/1.jpg  #1",
        "      3.   20 inliers  photos/3.jpg  #3",
        "  bridge: 1 photo, up to 30 inliers",
        "      2.   30 inliers  photos/2.jpg  #2",
        "    4.    9 inliers  photos/4.jpg  #4",
    ]


def test_photos_without_label_are_never_one_place():
    groups = group_by_label([a_hit(1), a_hit(2, "tower"), a_hit(3)])
    assert [(label, [hit.id for hit in group]) for label, group in groups] == [
        (None, [1]),
        ("tower", [2]),
        (None, [3]),
    ]
