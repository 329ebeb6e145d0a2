"""Metrics, frozen features, probes, tokens and the report page."""
