"""Pretrained encoders as other people's evaluation suites load them; no suite needs to be installed to import these."""
