"""The sets of the tables, from the folders at hand; no photo is opened."""

from pathlib import Path

import pytest
from evaluation.miniature import make_miniature

from delfsearch.errors import DatasetError
from delfsearch.evaluation.paper.sets import Limits, Sources, columns_at_hand, load_set
from delfsearch.evaluation.paper.systems import Laboratory, LeftOut, extraction_of, prepare
from delfsearch.evaluation.paper.tables import MEAN_AP, Row, get_table
from delfsearch.evaluation.running.feature_store import FeatureStore

ALL = Limits()


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    parts = ("oxford5k", "paris6k", "flickr100k", "large", "library", "training")
    return make_miniature(tmp_path_factory.mktemp("sets"), parts=parts, n_queries=2, size=(32, 24))


@pytest.fixture(scope="module")
def sources(miniature):
    return Sources(
        oxford=miniature["oxford5k"],
        paris=miniature["paris6k"],
        flickr100k=miniature["flickr100k"],
        large=miniature["large"],
    )


def test_columns_whose_sets_are_not_at_hand_are_left_out_and_named():
    sources = Sources(oxford=Path("o"), paris=Path("p"))
    columns, missing = columns_at_hand(get_table("table3"), sources)
    assert [c.name for c in columns] == ["Oxf5k mAP", "Oxf5k* R@90%", "Par6k mAP", "Par6k* R@90%"]
    assert missing == (
        "oxford105k* needs the folder of flickr100k",
        "paris106k* needs the folder of flickr100k",
    )
    with pytest.raises(DatasetError, match=r"table4: oxford105k\* needs the folder of flickr100k"):
        columns_at_hand(get_table("table4"), sources)


def test_a_smoke_folder_answers_each_kind_of_column_once():
    smoke = Sources(smoke=Path("s"))
    names = [c.name for c in columns_at_hand(get_table("table3"), smoke)[0]]
    assert names == ["Oxf5k mAP", "Oxf5k* R@90%"]
    fourth = columns_at_hand(get_table("table4"), smoke)[0]
    assert [c.n_distractor_queries for c in fourth] == [0, 400, 800, 1600]


def test_a_set_too_small_for_its_distractor_queries_is_refused_unless_shortened(sources):
    columns = get_table("table1").columns
    with pytest.raises(DatasetError, match="n must be at most 26"):
        load_set("oxford5k*", columns, sources, ALL)
    dataset, _ = load_set("oxford5k*", columns, sources, Limits(queries=5))
    assert (len(dataset.queries), len(dataset.distractor_queries)) == (5, 5)


def test_a_shortened_set_keeps_the_right_answers_first(sources):
    columns = get_table("table4").columns
    limits = Limits(queries=2, photos=8)
    dataset, _ = load_set("oxford105k*", columns, sources, limits)
    for query in dataset.queries:
        assert len(query.positives) == 5 and len(query.junk) == 1
        assert query.positives <= set(dataset.database)
    assert len(dataset.database) == 8
    whole, _ = load_set("oxford105k*", columns, sources, Limits(queries=2))
    assert len(whole.database) == 22 + 9
    assert [p for p in whole.database if p in set(dataset.database)] == list(dataset.database)


def test_what_is_learned_from_is_not_asked(sources):
    columns = get_table("table1").columns
    dataset, fit = load_set("oxford5k*", columns, sources, Limits(queries=6))
    assert "labelled photos of paris6k" in fit.source
    asked = {query.path for query in dataset.all_queries}
    assert not asked & set(fit.photos) and not set(dataset.paths.values()) & set(fit.photos)
    assert len(fit.photos) == len(fit.labels) == len(set(fit.photos))


def test_training_photos_are_taken_where_given(miniature, sources):
    training = Sources(large=sources.large, training=miniature["training"] / "landmarks_clean")
    _, fit = load_set("large", get_table("table5").columns, training, Limits(fit_photos=7))
    assert fit.source == "7 labelled training photos" and len(set(fit.labels)) >= 2
    _, fit = load_set("large", get_table("table5").columns, sources, ALL)
    assert fit.source.endswith("photos of the database itself") and fit.labels == ()


def test_a_smoke_folder_learns_from_photos_that_answer_nothing(miniature):
    smoke = Sources(smoke=miniature["library"])
    dataset, fit = load_set("large", get_table("table5").columns, smoke, ALL)
    right = {dataset.paths[p] for query in dataset.queries for p in query.positives}
    assert fit.photos and not right & set(fit.photos)


def test_a_shortened_smoke_folder_learns_from_labelled_photos_of_other_things(miniature):
    smoke = Sources(smoke=miniature["library"])
    columns = get_table("table5").columns
    dataset, fit = load_set("large", columns, smoke, Limits(queries=2, photos=6))
    scenes = {query.scene for query in dataset.queries}
    assert len(scenes) == 2 and len(set(fit.labels)) == 2
    assert not scenes & set(fit.labels) and len(fit.photos) == 4
    assert not {query.path for query in dataset.all_queries} & set(fit.photos)


def test_mean_average_precision_asks_no_distractor_queries():
    columns = [c for c in get_table("table3").columns if c.metric == MEAN_AP]
    assert len(columns) == 4 and {c.n_distractor_queries for c in columns} == {0}


def test_rows_that_cannot_run_say_what_they_need(tmp_path):
    laboratory = Laboratory(FeatureStore(tmp_path), tmp_path)
    third = {row.name: row for row in get_table("table3").rows}
    lift = prepare(third["LIFT"], laboratory, several_reductions=False)
    assert isinstance(lift, LeftOut) and "LIFT's released code" in lift.reason
    attention = prepare(third["DELF-Att"], laboratory, several_reductions=False)
    assert isinstance(attention, LeftOut) and "LF+RS=FILE" in attention.reason
    congas = Row("CONGAS", "congas", options={"n_components": 40, "max_features": 100})
    with pytest.raises(ValueError, match="give some as training photos"):
        prepare(congas, laboratory, several_reductions=False)


def test_rows_that_share_an_extraction():
    rows = {row.name: row for row in get_table("table1").rows}

    def extraction(name, **weights):
        return extraction_of(rows[name], weights)

    plain = extraction("0.25-2, L2 1000")
    assert plain == extraction("0.25-2, L2 1000, PCA 512") != extraction("0.25-1, L2 1000")
    assert extraction("0.25-1, all") == extraction("0.25-1, L2 1000")
    # Fine-tuned networks that are not there are the same trunk; one that is there is another.
    assert plain == extraction("0.25-2, L2 1000, PCA 40, LC")
    assert plain != extraction("0.25-2, L2 1000, PCA 40, LC", LC="lc.safetensors")
    # LC's descriptors come with an attention network too.
    with_attention = {"LF+RS": "lfrs.safetensors"}
    assert plain != extraction("0.25-2, L2 1000, PCA 40, LC", **with_attention)
    assert plain == extraction("0.25-2, L2 1000, PCA 40, SD", **with_attention)
