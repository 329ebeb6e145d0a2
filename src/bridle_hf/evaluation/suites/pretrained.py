"""A pretrained encoder with its processor: media in, vectors of clips and of frames out."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ...clip_features_bridle import BANDS, STD, check_layers, check_poolings
from ...data.modalities import MODALITIES, load_processor
from ...modeling_bridle import BridleModel
from ...outputs_bridle import BridleFeaturesOutput

MODEL, POOLING, LAYER = "BRIDLE_MODEL", "BRIDLE_POOLING", "BRIDLE_LAYER"  # environment variables
WINDOWS_AT_ONCE = 16  # memory of long sounds and of large batches stays that of so many windows


def vector_size(config, pooling: str) -> int:
    """Numbers in a vector that `BridleModel.extract_features` gives with a pooling."""
    bands = config.grid[-1] if pooling in BANDS else 1
    return config.hidden_size * bands * (2 if pooling in STD else 1)


def chosen_pooling(given: str | None) -> str:
    """The pooling that is given, that of BRIDLE_POOLING, or the mean."""
    return given or os.environ.get(POOLING) or "mean"


class Pretrained(nn.Module):
    """A pretrained encoder, frozen or not, and the processor saved beside it.

    Args:
        source: folder or Hub id of the model; by default what the environment variable BRIDLE_MODEL names.
        pooling (`str`): of a clip, one of `POOLINGS`; BRIDLE_POOLING, and "mean" without it. With one by bands the
            vectors of frames keep the frequency patches side by side as well.
        layer (`int`): 1 to depth, 0 for the patch embeddings; BRIDLE_LAYER, and the encoder's output without it.

    Sounds shorter than a patch are padded, and long ones go through the model in windows, `WINDOWS_AT_ONCE` at a time.
    Of videos the frames come as the model takes them: the suite has chosen them.

    Raises:
        ValueError: no model is named; it has no such pooling or layer; the folder holds no encoder.
    """

    def __init__(self, source: str | None = None, pooling: str | None = None, layer: int | str | None = None):
        super().__init__()
        source = source or os.environ.get(MODEL)
        if not source:
            raise ValueError(f"no model is named: give its folder or Hub id, or set the environment variable {MODEL}.")
        self.model, report = BridleModel.from_pretrained(source, output_loading_info=True)
        if report["missing_keys"]:  # transformers draws them at random and goes on
            missing = ", ".join(sorted(report["missing_keys"]))
            raise ValueError(f"{source!r} holds no encoder; these weights are missing: {missing}.")
        config = self.model.eval().config
        self.modality = MODALITIES[config.modality]
        self.is_sound = self.modality.waveform is not None
        self.processor = load_processor(source, **({"pad_short": True} if self.is_sound else {}))
        self.pooling = chosen_pooling(pooling)
        layer = os.environ.get(LAYER) or None if layer is None else layer
        self.layer = None if layer is None else int(layer)
        check_poolings(config, [self.pooling])
        check_layers(config, [self.layer])
        self.clip_size = vector_size(config, self.pooling)

    def clips(self, media) -> torch.Tensor:
        """One vector per clip, float32 (B, clip_size)."""
        return self._features(media, self.pooling, self.layer).features

    def _features(self, media, pooling: str, layers, **options) -> BridleFeaturesOutput:
        inputs = self._inputs(media).to(self.model.device, self.model.dtype)
        return self.model.extract_features(
            **inputs, pooling=pooling, layers=layers, batch_size=WINDOWS_AT_ONCE, **options
        )

    def _inputs(self, media):
        if not self.is_sound:
            as_given = {"do_sample_frames": False} if self.modality.has_time else {}
            return self.processor(media, return_tensors="pt", **as_given)
        clips, rate = waveforms(media), self.processor.sampling_rate
        # A suite that trains under autocast would have the filter bank in bfloat16.
        with torch.autocast(self.model.device.type, enabled=False):
            return self.processor(clips, sampling_rate=rate, truncation=False, padding="longest", return_tensors="pt")


class PretrainedSounds(Pretrained):
    """As `Pretrained`, for sounds: frames with times, too.

    Attributes:
        sampling_rate: of the waveforms, in Hz; nothing is resampled.
        frame_size: numbers in the vector of a frame, which is a patch in time.
        frame_seconds, frame_samples: from a frame to the next.
        half_frame_seconds: from the beginning of what a frame sees to its middle.

    Raises:
        ValueError: the model is one of images or videos.
    """

    def __init__(self, source: str | None = None, pooling: str | None = None, layer: int | str | None = None):
        super().__init__(source, pooling, layer)
        config = self.model.config
        if not self.is_sound:
            raise ValueError(f"the model takes {config.modality} data; this suite has sounds.")
        self.frame_pooling = "frame_bands" if self.pooling in BANDS else "frames"
        self.frame_size = vector_size(config, self.frame_pooling)
        self.sampling_rate, unit = self.processor.sampling_rate, config.patch_size[0]
        self.hop_seconds = self.processor.hop_seconds
        self.frame_seconds = unit * self.hop_seconds
        self.frame_samples = round(self.frame_seconds * self.sampling_rate)
        self.half_frame_seconds = self.processor.seconds(unit) / 2

    def frames(self, sounds) -> BridleFeaturesOutput:
        """Vectors of frames (B, T, frame_size), zero where a clip is padded, their mask and the times they begin at."""
        return self._features(sounds, self.frame_pooling, self.layer, hop_seconds=self.hop_seconds)

    def layer_frames(self, sounds) -> tuple[torch.Tensor, ...]:
        """As `frames`, (B, T, frame_size) for each layer: the patch embeddings and layers 1 to depth."""
        found = self._features(sounds, self.frame_pooling, "all", hop_seconds=self.hop_seconds)
        return found.features.unbind(dim=1)


def waveforms(sounds) -> Sequence:
    """Clips (B, samples), (B, 1, samples) or a clip (samples,) as a list of clips; a list stays as it is.

    Raises:
        ValueError: another shape, such as one with two channels.
    """
    if not isinstance(sounds, torch.Tensor | np.ndarray):
        return sounds
    if sounds.ndim == 3 and sounds.shape[1] == 1:
        sounds = sounds[:, 0]
    if sounds.ndim not in (1, 2):
        raise ValueError(f"sounds has shape {tuple(sounds.shape)}; it takes (samples,), (B, samples), (B, 1, samples).")
    return list(sounds) if sounds.ndim == 2 else [sounds]
