"""The two experiments of T. Morita (2026) on quantizers: discrete autoencoding and wav2vec 2.0 pretraining."""
