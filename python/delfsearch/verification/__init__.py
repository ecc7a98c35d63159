"""Matches -> Hits: seeded affine RANSAC, scores and rejection."""
