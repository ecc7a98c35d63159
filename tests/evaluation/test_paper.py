"""The paper's figures: typed in once, checked against sums of the printed columns."""

import math

import pytest

from delfsearch.evaluation.paper.printed import TABLE_NAMES, paper_figures, paper_value
from delfsearch.evaluation.paper.tables import MEAN_AP, RECALL, TP_PRECISIONS, get_table

NO_FIGURE = {("LIFT", name) for name in ("Oxf105k", "Par106k")}


@pytest.mark.parametrize("name", TABLE_NAMES)
def test_every_cell_of_every_preset_has_the_papers_figure(name):
    table = get_table(name)
    for row in table.rows:
        for column in table.columns:
            short = column.name.split()[0].rstrip("*")
            missing = paper_value(name, row.name, column.name) is None
            assert missing == ((row.name, short) in NO_FIGURE), (row.name, column.name)


def test_every_figure_has_a_preset():
    cells = {
        (name, row.name, column.name)
        for name in TABLE_NAMES
        for row in get_table(name).rows
        for column in get_table(name).columns
    }
    assert all((f.table, f.row, f.column) in cells for f in paper_figures())


def test_rows_and_columns_are_named_once():
    for name in TABLE_NAMES:
        table = get_table(name)
        assert len({row.name for row in table.rows}) == len(table.rows)
        assert len({column.name for column in table.columns}) == len(table.columns)


# Column sums, added up from the printed tables apart from paper.py.
@pytest.mark.parametrize(
    ("table", "column", "n", "total"),
    [
        ("table2", "Oxf5k* R@90%", 6, 148.84),
        ("table2", "Par6k* R@90%", 6, 111.03),
        ("table3", "Oxf5k mAP", 9, 709.06),
        ("table3", "Par106k* R@90%", 8, 164.52),
        ("table4", "Oxf105k* R@90% Q^D=0", 4, 225.67),
        ("table4", "Par106k* R@90% Q^D=1600", 4, 106.61),
        ("table5", "TP@90%", 5, 207.44),
        ("table6", "TP@95%", 4, 76.95),
        ("table7", "TP@85%", 9, 489.49),
    ],
)
def test_column_sums(table, column, n, total):
    values = [f.value for f in paper_figures() if (f.table, f.column) == (table, column)]
    assert len(values) == n
    assert math.isclose(sum(values), total, abs_tol=1e-9)


def test_figures_that_appear_twice_agree():
    for row in ("DIR", "DELF-L2", "DELF-Att", "DELF-L2+Att"):
        for name in ("Oxf105k*", "Par106k*"):
            third = paper_value("table3", row, f"{name} R@90%")
            assert third == paper_value("table4", row, f"{name} R@90% Q^D=800")
    for precision in TP_PRECISIONS:
        for row in ("DELF-FT-L2", "DELF-FT+Att", "DELF-FT-L2+Att"):
            fifth = paper_value("table5", row, precision)
            assert fifth == paper_value("table7", f"{row}, beta 0.01", precision)
            assert fifth == paper_value("fig4", row, precision)
        sixth = paper_value("table6", "500 features", precision)
        assert sixth == paper_value("table7", "DELF-FT-L2, beta 0", precision)
    for name in ("Oxf5k* R@90%", "Par6k* R@90%"):
        first = paper_value("table1", "0.25-2, L2 1000", name)
        assert first == paper_value("table2", "1000 features, IoU 1.0", name)


def test_what_the_presets_ask_for():
    rows = {row.name: row for row in get_table("table1").rows}
    assert rows["1, all"].options["scales"] == (1.0,)
    assert rows["0.25-2, L2 1000, PCA 512"].options["n_components"] == 512
    assert rows["0.25-2, L2+Att-LF+RS 1000, PCA 40, LC"].network == "LF+RS"
    assert {c.n_distractor_queries for c in get_table("table1").columns} == {400}
    third = {c.name: c for c in get_table("table3").columns}
    assert (third["Oxf5k mAP"].metric, third["Oxf5k* R@90%"].metric) == (MEAN_AP, RECALL)
    assert third["Par106k* R@90%"].n_distractor_queries == 800
    fourth = [c.n_distractor_queries for c in get_table("table4").columns]
    assert fourth == [0, 400, 800, 1600] * 2
    seventh = [row.options["score_threshold"] for row in get_table("table7").rows]
    assert seventh == [None, 0.01, 0.1] * 3
    assert all(row.options["max_features"] == 500 for row in get_table("table7").rows)


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="table must be one of 'table1'"):
        get_table("table8")
