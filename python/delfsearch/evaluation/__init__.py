"""Metrics and protocols for search that must reject queries with no match."""
