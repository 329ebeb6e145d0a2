"""Feature-extraction pipelines for sounds and videos; for images transformers has one of its own."""

import torch
from transformers import Pipeline
from transformers.pipelines.audio_utils import ffmpeg_read

from .feature_extraction_bridle import MAX_RATE_RATIO, as_waveform

try:  # of all imports of a model's code the Hub lets only guarded ones be missing
    import soxr
except ImportError:
    soxr = None


class BridleFeatureExtractionPipeline(Pipeline):
    """The encoder's output for one input or a list of them, as nested lists.

    Called with `pool=True` it gives the `pooler_output`, (1, D); otherwise the last hidden state of the real patches
    behind the CLS token, (1, 1 + n, D). `return_tensors=True` keeps tensors.
    """

    _load_tokenizer = False
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def _sanitize_parameters(self, pool=None, return_tensors=None, **kwargs):
        given = {"pool": pool, "return_tensors": return_tensors}
        return {}, {}, {name: value for name, value in given.items() if value is not None}

    def _forward(self, model_inputs):
        mask = model_inputs.get("attention_mask")
        values = model_inputs[self.model.main_input_name]
        output = self.model(**model_inputs)
        prefix = int(self.model.config.use_cls_token)
        real = torch.ones(output.last_hidden_state.shape[:2], dtype=torch.bool, device=values.device)
        valid = self.model.patch_layer.real_patches(values, mask)
        if valid is not None:
            real[:, prefix:] = valid
        return {"hidden": output.last_hidden_state, "real": real, "pooled": output.pooler_output}

    def postprocess(self, model_outputs, pool=False, return_tensors=False):
        features = model_outputs["pooled"]
        if not pool:
            features = model_outputs["hidden"][model_outputs["real"]][None]
        return features if return_tensors else features.tolist()


class BridleAudioFeatureExtractionPipeline(BridleFeatureExtractionPipeline):
    """Takes samples (array at the extractor's rate), `{"raw" or "array", "sampling_rate"}`, or a path or the bytes of a
    file.

    Files are read by the program `ffmpeg`, as transformers' audio pipelines do. Samples of another rate are resampled
    by soxr, and refused where that is not installed.

    Raises:
        ValueError: a dict without samples or rate, or what the extractor refuses.
    """

    _load_feature_extractor = True

    def preprocess(self, inputs):
        rate = self.feature_extractor.sampling_rate
        if isinstance(inputs, str):
            with open(inputs, "rb") as file:
                inputs = file.read()
        if isinstance(inputs, bytes):
            inputs = ffmpeg_read(inputs, rate)
        if isinstance(inputs, dict):
            inputs, rate = self.samples_of(inputs)
        return self.feature_extractor(inputs, sampling_rate=rate, return_tensors="pt").to(self.dtype)

    def samples_of(self, inputs):
        """Samples and their rate, the extractor's where soxr is installed."""
        samples, rate = inputs.get("raw", inputs.get("array")), inputs.get("sampling_rate")
        wanted = self.feature_extractor.sampling_rate
        if samples is None or rate is None:
            raise ValueError(f"inputs has the keys {list(inputs)}; a dict takes 'raw' or 'array', and 'sampling_rate'.")
        if soxr is None or rate == wanted or not wanted / MAX_RATE_RATIO <= rate <= wanted * MAX_RATE_RATIO:
            return samples, rate  # the extractor refuses another rate
        return soxr.resample(as_waveform(samples, "inputs").detach().cpu().numpy(), rate, wanted), wanted


class BridleVideoFeatureExtractionPipeline(BridleFeatureExtractionPipeline):
    """Takes the path or URL of a video, to sample frames from, or frames (T, H, W, 3) or (T, 3, H, W) as they are."""

    _load_video_processor = True

    def preprocess(self, inputs):
        sampled = isinstance(inputs, str)
        frames = {"num_frames": self.model.config.num_frames} if sampled else {}
        return self.video_processor(inputs, do_sample_frames=sampled, return_tensors="pt", **frames).to(self.dtype)


__all__ = [
    "BridleAudioFeatureExtractionPipeline",
    "BridleFeatureExtractionPipeline",
    "BridleVideoFeatureExtractionPipeline",
]
