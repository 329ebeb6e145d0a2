"""Fixtures that these tests share with those of fine-tuning."""

from tones import one_thread, padded_examples, pretrained, to_wav, tone, tones  # noqa: F401
