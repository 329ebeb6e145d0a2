"""Metrics, codebook measures, frozen features, linear probe, fine-tuning and the report page."""
