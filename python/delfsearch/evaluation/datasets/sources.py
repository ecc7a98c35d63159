"""Where each set comes from, for the errors that name an absent file. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Source(NamedTuple):
    """title : what the set is called. obtain : who gives it out. terms : hint, not legal advice."""

    title: str
    obtain: str
    terms: str


_FLICKR_TERMS = "photographs from Flickr, under their owners' terms; research use"

SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "oxford5k": Source(
            "the Oxford Buildings Dataset",
            "the Visual Geometry Group, University of Oxford (images, ground truth files)",
            _FLICKR_TERMS,
        ),
        "paris6k": Source(
            "the Paris Dataset",
            "the Visual Geometry Group, University of Oxford (images in two parts, ground truth)",
            _FLICKR_TERMS,
        ),
        "flickr100k": Source(
            "the Flickr100k distractors",
            "the Oxford Buildings page of the Visual Geometry Group, University of Oxford",
            _FLICKR_TERMS,
        ),
        "roxford5k": Source(
            "Revisited Oxford (gnd_roxford5k.pkl with the images of Oxford5k)",
            "the revisitop project of the Visual Recognition Group, CTU in Prague",
            _FLICKR_TERMS,
        ),
        "rparis6k": Source(
            "Revisited Paris (gnd_rparis6k.pkl with the images of Paris6k)",
            "the revisitop project of the Visual Recognition Group, CTU in Prague",
            _FLICKR_TERMS,
        ),
        "holidays": Source(
            "the INRIA Holidays dataset",
            "the LEAR/THOTH team, INRIA (images in two parts)",
            "copyright INRIA; research use",
        ),
        "smvs": Source(
            "the Stanford Mobile Visual Search data set",
            "Stanford University (one archive for each category)",
            "academic use; some images have terms of their own",
        ),
        "google_landmarks": Source(
            "the Google Landmarks Dataset v2",
            "the google-landmark project of the Common Visual Data Foundation",
            "annotations CC BY 4.0; each photograph has its own Creative Commons or public-domain "
            "licence",
        ),
    }
)


def advice(key: str) -> str:
    """Return what to do about an absent file of a set; '' for the user's own formats."""
    if key not in SOURCES:
        return ""
    source = SOURCES[key]
    return (
        f"; get {source.title} from {source.obtain} and lay it out as docs/datasets.md shows "
        "(nothing is downloaded by itself)"
    )
