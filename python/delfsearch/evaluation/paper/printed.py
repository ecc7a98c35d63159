"""The figures that the paper prints, Tables 1 to 7: reference constants, none of them ours.

They are kept to be shown beside what is measured here, labelled as the paper's. Recall and mAP are
in percent, true positives (TP) as printed, without a unit. Source: arXiv v1 of "Image Retrieval
with Deep Local Features and Attention-based Keypoints".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

SOURCE = "Noh, Araujo, Sim, Han: arXiv v1"

_OXF_PAR = ("Oxf5k* R@90%", "Par6k* R@90%")
_TP = ("TP@95%", "TP@90%", "TP@85%")
_Q_D = tuple(
    f"{name} R@90% Q^D={n}" for name in ("Oxf105k*", "Par106k*") for n in (0, 400, 800, 1600)
)
_TABLE3 = (
    "Oxf5k mAP",
    "Oxf5k* R@90%",
    "Oxf105k mAP",
    "Oxf105k* R@90%",
    "Par6k mAP",
    "Par6k* R@90%",
    "Par106k mAP",
    "Par106k* R@90%",
)

_Figures = tuple[float | None, ...]
# section, columns, figures by row; None where the paper prints none.
_TABLES: dict[str, tuple[str, tuple[str, ...], dict[str, _Figures]]] = {
    "table1": (
        "5.3",
        _OXF_PAR,
        {
            "1, all": (6.27, 4.08),
            "0.25-1, all": (18.78, 13.98),
            "0.25-1, L2 1000": (22.32, 12.49),
            "0.25-2, L2 1000": (33.91, 30.35),
            "0.25-2, L2 1000, PCA 512": (35.78, 32.79),
            "0.25-2, L2 1000, PCA 128": (38.71, 34.82),
            "0.25-2, L2 1000, PCA 40": (41.23, 35.26),
            "0.25-2, L2 1000, PCA 40, SD": (40.66, 36.91),
            "0.25-2, L2 1000, PCA 40, LF": (43.64, 40.39),
            "0.25-2, L2 1000, PCA 40, LC": (45.70, 42.17),
            "0.25-2, Att-LC 1000, PCA 40, LC": (43.08, 41.77),
            "0.25-2, Att-LC+RS 1000, PCA 40, LC": (42.63, 39.68),
            "0.25-2, Att-LF+RS 1000, PCA 40, LC": (43.58, 39.33),
            "0.25-2, L2+Att-LC 1000, PCA 40, LC": (46.07, 40.86),
            "0.25-2, L2+Att-LC+RS 1000, PCA 40, LC": (45.14, 40.56),
            "0.25-2, L2+Att-LF+RS 1000, PCA 40, LC": (46.72, 41.09),
        },
    ),
    "table2": (
        "5.3",
        _OXF_PAR,
        {
            "400 features, IoU 0.5": (12.61, 5.62),
            "400 features, IoU 0.7": (27.87, 21.63),
            "400 features, IoU 1.0": (30.66, 26.68),
            "1000 features, IoU 0.5": (15.91, 6.60),
            "1000 features, IoU 0.7": (27.88, 20.15),
            "1000 features, IoU 1.0": (33.91, 30.35),
        },
    ),
    "table3": (
        "5.3",
        _TABLE3,
        {
            "DIR": (86.07, 51.43, 82.75, 5.24, 94.53, 56.73, 90.56, 32.84),
            "DIR+QE": (87.08, 10.93, 85.30, 0.44, 95.23, 7.87, 91.83, 0.52),
            "siaMAC": (77.14, 23.23, 69.46, 2.65, 83.94, 27.19, 76.27, 0.52),
            "siaMAC+QE": (81.73, 3.21, 76.64, 0.60, 86.24, 0.91, 79.77, 0.38),
            "CONGAS": (70.80, 42.39, 61.10, 12.47, 67.12, 35.29, 56.80, 25.13),
            "LIFT": (53.96, 21.98, None, None, 53.62, 16.64, None, None),
            "DELF-L2": (84.44, 43.86, 83.47, 10.90, 85.34, 40.34, 81.42, 35.75),
            "DELF-Att": (83.79, 40.49, 82.62, 12.02, 85.04, 37.09, 81.65, 33.94),
            "DELF-L2+Att": (84.05, 44.77, 83.57, 13.31, 84.77, 38.24, 81.27, 35.44),
        },
    ),
    "table4": (
        "5.3",
        _Q_D,
        {
            "DIR": (63.02, 10.40, 5.24, 2.91, 51.61, 40.48, 32.84, 19.62),
            "DELF-L2": (55.57, 22.79, 10.90, 6.92, 45.17, 38.32, 35.75, 30.89),
            "DELF-Att": (51.41, 24.57, 12.02, 6.73, 43.84, 35.91, 33.94, 28.04),
            "DELF-L2+Att": (55.67, 24.12, 13.31, 6.09, 44.78, 36.57, 35.44, 28.06),
        },
    ),
    "table5": (
        "5.4",
        _TP,
        {
            "DIR": (9.29, 9.59, 9.89),
            "CONGAS": (17.44, 28.44, 35.59),
            "DELF-FT-L2": (22.23, 27.38, 32.09),
            "DELF-FT+Att": (61.87, 92.61, 108.5),
            "DELF-FT-L2+Att": (42.59, 49.42, 59.75),
        },
    ),
    "table6": (
        "5.4",
        _TP,
        {
            "400 features": (24.89, 29.44, 33.99),
            "500 features": (19.67, 21.36, 23.02),
            "600 features": (17.26, 19.54, 21.81),
            "1000 features": (15.13, 17.27, 19.42),
        },
    ),
    "table7": (
        "5.4",
        _TP,
        {
            "DELF-FT-L2, beta 0": (19.67, 21.36, 23.02),
            "DELF-FT-L2, beta 0.01": (22.23, 27.38, 32.09),
            "DELF-FT-L2, beta 0.1": (15.41, 16.84, 18.22),
            "DELF-FT+Att, beta 0": (22.14, 35.98, 41.47),
            "DELF-FT+Att, beta 0.01": (61.87, 92.61, 108.5),
            "DELF-FT+Att, beta 0.1": (43.45, 48.52, 101.61),
            "DELF-FT-L2+Att, beta 0": (34.41, 35.84, 46.29),
            "DELF-FT-L2+Att, beta 0.01": (42.59, 49.42, 59.75),
            "DELF-FT-L2+Att, beta 0.1": (26.37, 44.79, 58.54),
        },
    ),
}
# Fig. 4 plots the systems of Table 5; its curve is printed as no numbers but those.
_SAME = {"fig4": "table5"}
TABLE_NAMES = (*_TABLES, *_SAME)


@dataclass(frozen=True)
class PaperFigure:
    """One printed figure: where it stands, what it is of, its value (percent, or TP as printed)."""

    section: str
    table: str
    row: str
    column: str
    value: float


@cache
def _by_place() -> Mapping[tuple[str, str, str], PaperFigure]:
    figures = {}
    for table, (section, columns, rows) in _TABLES.items():
        for row, values in rows.items():
            for column, value in zip(columns, values, strict=True):
                if value is not None:
                    figures[table, row, column] = PaperFigure(section, table, row, column, value)
    return figures


def paper_figures() -> Iterator[PaperFigure]:
    """Yield every figure of Tables 1 to 7, in the order of the paper."""
    yield from _by_place().values()


def paper_value(table: str, row: str, column: str) -> float | None:
    """Return what the paper prints there, or None where it prints nothing.

    table : "table1" ... "table7", or "fig4", whose systems are those of Table 5.
    row, column : as in ``tables``.
    """
    figure = _by_place().get((_SAME.get(table, table), row, column))
    return None if figure is None else figure.value
