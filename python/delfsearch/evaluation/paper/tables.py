"""Every row of the paper's Tables 1 to 7 and Fig. 4 as a preset: which system, how, on which set.

A preset says what the paper ran, not what can be run: a row's network is named ("LC" for
descriptors fine-tuned on the clean landmarks, "LF+RS" for the attention learned on top of them),
and ``systems`` finds the weights, or says what stood in.

The paper picks the best of 20 points (5 K x 4 T) for each row by the figure that it reports. That
is tuning on the test set; it is done here as well, because the figures are to be compared, and the
whole grid is kept beside the best point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from delfsearch.evaluation.paper.printed import TABLE_NAMES
from delfsearch.evaluation.running.runnable import Effort

# Sec. 5.2.
PAPER_GRID = tuple(Effort(k, t) for k in (8, 16, 32, 64, 128) for t in (1280, 5000, 10000, 15000))
SMALL_GRID = (Effort(8, 1280), Effort(32, 5000))
# More cells than the pyramid of any photo of at most 1,024 pixels has.
ALL_FEATURES = 100_000

TP_PRECISIONS = {"TP@95%": 0.95, "TP@90%": 0.90, "TP@85%": 0.85}
RECALL, MEAN_AP = "R@90%", "mAP"


@dataclass(frozen=True)
class Row:
    """One row of a table.

    name : as in ``paper``. system : as in ``baselines.load_system``. network : what the paper's
        network was, see NETWORKS; "" where there is none to choose.
    options : of the system. stored_features : features of a photo that are extracted and kept, so
        that rows which differ only in how many they use share them.
    """

    name: str
    system: str
    network: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    stored_features: int = 1000


@dataclass(frozen=True)
class Column:
    """One column of a table.

    name : as in ``paper``. dataset : as in ``datasets.load_dataset``, without Q^D. metric : RECALL
    and TP@... over all queries together, or MEAN_AP. n_distractor_queries : Q^D of the set.
    """

    name: str
    dataset: str
    metric: str
    n_distractor_queries: int = 0


@dataclass(frozen=True)
class Table:
    """A table of the paper: its rows and columns, and where its text is."""

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """The sets it needs, each once."""
        return tuple(dict.fromkeys(column.dataset for column in self.columns))


# What each network name means; the last four rows have an attention head on LC's descriptors.
NETWORKS = {
    "imagenet": "ResNet50 trained on ImageNet",
    "SD": "descriptors fine-tuned on SD, 551 landmarks",
    "LF": "descriptors fine-tuned on LF, 586 landmarks",
    "LC": "descriptors fine-tuned on LC, 586 landmarks, clean",
    "Att-LC": "descriptors fine-tuned on LC, attention learned on LC",
    "LC+RS": "descriptors fine-tuned on LC, attention learned on LC with random scaling",
    "LF+RS": "descriptors fine-tuned on LC, attention learned on LF with random scaling",
    "DIR": "ResNet101 trained for retrieval",
    "siaMAC": "VGG16 trained for retrieval",
}
ATTENTION_NETWORKS = ("Att-LC", "LC+RS", "LF+RS")


def get_table(name: str) -> Table:
    """Return a table's preset; ValueError for a name that is not in TABLE_NAMES."""
    if name not in TABLE_NAMES:
        raise ValueError(f"table must be one of {', '.join(map(repr, TABLE_NAMES))}; got {name!r}")
    return _MAKERS[name]()


def delf_row(
    name: str,
    network: str,
    *,
    scales: str | tuple[float, ...] = "0.25-2",
    score: str = "l2",
    max_features: int = 1000,
    n_components: int | None = 40,
    iou_threshold: float = 1.0,
    score_threshold: float | None = None,
    stored_features: int = 1000,
) -> Row:
    """Return a DELF row; the options are DelfExtractor's."""
    options = {
        "scales": scales,
        "score": score,
        "max_features": max_features,
        "n_components": n_components,
        "iou_threshold": iou_threshold,
        "score_threshold": score_threshold,
    }
    return Row(name, "delf", network, options, stored_features)


def _starred(n_distractor_queries: int) -> tuple[Column, ...]:
    return (
        Column("Oxf5k* R@90%", "oxford5k*", RECALL, n_distractor_queries),
        Column("Par6k* R@90%", "paris6k*", RECALL, n_distractor_queries),
    )


_TP_COLUMNS = tuple(Column(name, "large", name, 10**9) for name in TP_PRECISIONS)


def _unselected(name: str, scales: str | tuple[float, ...], max_features: int) -> Row:
    """Return a row of the scales of which all features are extracted."""
    return delf_row(
        name,
        "imagenet",
        scales=scales,
        max_features=max_features,
        n_components=None,
        stored_features=ALL_FEATURES,
    )


def _table1() -> Table:
    rows = [
        _unselected("1, all", (1.0,), ALL_FEATURES),
        _unselected("0.25-1, all", "0.25-1", ALL_FEATURES),
        _unselected("0.25-1, L2 1000", "0.25-1", 1000),
        delf_row("0.25-2, L2 1000", "imagenet", n_components=None),
    ]
    rows += [
        delf_row(f"0.25-2, L2 1000, PCA {n}", "imagenet", n_components=n) for n in (512, 128, 40)
    ]
    rows += [delf_row(f"0.25-2, L2 1000, PCA 40, {name}", name) for name in ("SD", "LF", "LC")]
    for label, score in (("Att", "attention"), ("L2+Att", "l2*attention")):
        for learned, network in (("LC", "Att-LC"), ("LC+RS", "LC+RS"), ("LF+RS", "LF+RS")):
            name = f"0.25-2, {label}-{learned} 1000, PCA 40, LC"
            rows.append(delf_row(name, network, score=score))
    title = "Scales, selection, reduction, fine-tuning and attention (R@90%)"
    return Table("table1", title, "Table 1", tuple(rows), _starred(400))


def _table2() -> Table:
    rows = tuple(
        delf_row(
            f"{n} features, IoU {iou:.1f}",
            "imagenet",
            max_features=n,
            iou_threshold=iou,
            n_components=None,
        )
        for n in (400, 1000)
        for iou in (0.5, 0.7, 1.0)
    )
    title = "Non-maximum suppression by intersection over union (R@90%)"
    return Table("table2", title, "Table 2", rows, _starred(400))


def _delf_rows(prefix: str = "DELF-", **options: Any) -> tuple[Row, ...]:
    """The three scorings of the fine-tuned network; attention as the paper chose it, LF+RS."""
    names = ("L2", "Att", "L2+Att") if prefix == "DELF-" else ("-L2", "+Att", "-L2+Att")
    networks = ("LC", "LF+RS", "LF+RS")
    scores = ("l2", "attention", "l2*attention")
    return tuple(
        delf_row(prefix + name, network, score=score, **options)
        for name, network, score in zip(names, networks, scores)
    )


_DIR = Row("DIR", "dir", "DIR")
_CONGAS = Row("CONGAS", "congas", options={"n_components": 40, "max_features": 1000})


def _table3() -> Table:
    rows = (
        _DIR,
        Row("DIR+QE", "dir+qe", "DIR"),
        Row("siaMAC", "siamac", "siaMAC"),
        Row("siaMAC+QE", "siamac+qe", "siaMAC"),
        _CONGAS,
        Row("LIFT", "lift", options={"max_features": 1000}),
        *_delf_rows(),
    )
    columns = tuple(
        column
        for short, name in (
            ("Oxf5k", "oxford5k"),
            ("Oxf105k", "oxford105k"),
            ("Par6k", "paris6k"),
            ("Par106k", "paris106k"),
        )
        for column in (
            Column(f"{short} mAP", f"{name}*", MEAN_AP),
            Column(f"{short}* R@90%", f"{name}*", RECALL, 800),
        )
    )
    title = "DELF beside the systems it is compared with (mAP, R@90%)"
    return Table("table3", title, "Table 3", rows, columns)


def _table4() -> Table:
    columns = tuple(
        Column(f"{short} R@90% Q^D={n}", name, RECALL, n)
        for short, name in (("Oxf105k*", "oxford105k*"), ("Par106k*", "paris106k*"))
        for n in (0, 400, 800, 1600)
    )
    title = "More and more distractor queries (R@90%)"
    return Table("table4", title, "Table 4", (_DIR, *_delf_rows()), columns)


def _large_rows() -> tuple[Row, ...]:
    congas = Row("CONGAS", "congas", options={"n_components": 40, "max_features": 500})
    return (_DIR, congas, *_delf_rows("DELF-FT", max_features=500, score_threshold=0.01))


def _table5() -> Table:
    title = "The large set (true positives at a precision)"
    return Table("table5", title, "Table 5", _large_rows(), _TP_COLUMNS)


def _table6() -> Table:
    rows = tuple(delf_row(f"{n} features", "LC", max_features=n) for n in (400, 500, 600, 1000))
    return Table("table6", "Features of a photo, DELF-FT-L2", "Table 6", rows, _TP_COLUMNS)


def _table7() -> Table:
    rows = tuple(
        Row(
            f"{row.name}, beta {beta:g}",
            row.system,
            row.network,
            {**row.options, "score_threshold": beta or None},
        )
        for row in _delf_rows("DELF-FT", max_features=500)
        for beta in (0.0, 0.01, 0.1)
    )
    return Table("table7", "Threshold beta on the scores", "Table 7", rows, _TP_COLUMNS)


def _fig4() -> Table:
    return Table("fig4", "Precision and true positives", "Fig. 4", _large_rows(), _TP_COLUMNS)


_MAKERS = {
    "table1": _table1,
    "table2": _table2,
    "table3": _table3,
    "table4": _table4,
    "table5": _table5,
    "table6": _table6,
    "table7": _table7,
    "fig4": _fig4,
}
