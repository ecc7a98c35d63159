"""Training: descriptor fine-tuning, attention, both at once, reduction. See docs/training.md."""

from delfsearch.training.attention import AttentionTrainer
from delfsearch.training.checkpoint import CheckpointError
from delfsearch.training.contrastive import ContrastiveTrainer
from delfsearch.training.curves import read_curves
from delfsearch.training.descriptor import DescriptorTrainer, JointTrainer
from delfsearch.training.inlier_attention import InlierAttentionTrainer
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.loop import RunOptions
from delfsearch.training.matched_photos import MATCHERS, MatchedPhotos, Matcher, match_photos
from delfsearch.training.optimization import Optimization
from delfsearch.training.reduction import ReductionTrainer
from delfsearch.training.sources import (
    photos_from_csv,
    photos_from_google_landmarks,
    photos_from_image_folder,
    photos_from_library_folder,
    read_photos,
)
from delfsearch.training.two_views import PairViews
from delfsearch.training.views import Views

__all__ = [
    "MATCHERS",
    "AttentionTrainer",
    "CheckpointError",
    "ContrastiveTrainer",
    "DescriptorTrainer",
    "InlierAttentionTrainer",
    "JointTrainer",
    "LabelledPhotos",
    "MatchedPhotos",
    "Matcher",
    "Optimization",
    "PairViews",
    "ReductionTrainer",
    "RunOptions",
    "Views",
    "match_photos",
    "photos_from_csv",
    "photos_from_google_landmarks",
    "photos_from_image_folder",
    "photos_from_library_folder",
    "read_curves",
    "read_photos",
]
