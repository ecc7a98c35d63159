"""Evaluation sets: readers for those of the field and for one's own; nothing is downloaded."""

from __future__ import annotations

from delfsearch.evaluation.datasets.base import Dataset, Location, Query
from delfsearch.evaluation.datasets.distractors import (
    read_flickr100k,
    with_distractor_queries,
    with_distractors,
)
from delfsearch.evaluation.datasets.google_landmarks import read_google_landmarks
from delfsearch.evaluation.datasets.holidays import read_holidays
from delfsearch.evaluation.datasets.image_folder import read_image_folder
from delfsearch.evaluation.datasets.library_folder import from_photo_folder, read_library_folder
from delfsearch.evaluation.datasets.oxford import (
    PARIS6K_UNREADABLE,
    read_oxford5k,
    read_paris6k,
)
from delfsearch.evaluation.datasets.registry import DATASET_NAMES, load_dataset
from delfsearch.evaluation.datasets.revisited import read_revisited, with_difficulty
from delfsearch.evaluation.datasets.smvs import read_smvs
from delfsearch.evaluation.datasets.table import read_table

__all__ = [
    "DATASET_NAMES",
    "PARIS6K_UNREADABLE",
    "Dataset",
    "Location",
    "Query",
    "from_photo_folder",
    "load_dataset",
    "read_flickr100k",
    "read_google_landmarks",
    "read_holidays",
    "read_image_folder",
    "read_library_folder",
    "read_oxford5k",
    "read_paris6k",
    "read_revisited",
    "read_smvs",
    "read_table",
    "with_difficulty",
    "with_distractor_queries",
    "with_distractors",
]
