"""Pipelines for features of sounds and videos and for classes of long sounds; for images transformers has its own."""

import os
from collections.abc import Mapping
from io import BytesIO
from numbers import Real
from urllib.request import urlopen

import torch
from transformers import AudioClassificationPipeline, Pipeline
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.pipelines.audio_utils import ffmpeg_read

from .clip_features_bridle import clip_logits, clip_tokens
from .feature_extraction_bridle import can_resample
from .losses_bridle import masked_mean

try:  # of all imports of a model's code the Hub lets only guarded ones be missing
    import soxr
except ImportError:
    soxr = None
try:
    import soundfile
except (ImportError, OSError):  # its library is missing
    soundfile = None


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
        values, mask = model_inputs[self.model.main_input_name], model_inputs.get("attention_mask")
        config = self.model.config
        window = config.input_size[0] if config.modality == "audio" else None
        tokens, valid, _ = clip_tokens(self.model, values, mask, window=window, batch_size=len(values))
        hidden, prefix = tokens[:, 0], int(config.use_cls_token)
        pooled = hidden[:, 0] if config.pooling == "cls" else masked_mean(hidden[:, prefix:], valid)
        real = torch.ones(hidden.shape[:2], dtype=torch.bool, device=values.device)
        if valid is not None:
            real[:, prefix:] = valid
        return {"hidden": hidden, "real": real, "pooled": pooled}

    def postprocess(self, model_outputs, pool=False, return_tensors=False):
        features = model_outputs["pooled"]
        if not pool:
            features = model_outputs["hidden"][model_outputs["real"]][None]
        return features if return_tensors else features.tolist()


class BridleAudioInputs:
    """What our pipelines for sounds take: one clip, or a list of clips, each of them one of

    - samples at the extractor's rate: an array or tensor (samples,), or with channels before or after the samples;
    - `{"raw" or "array", "sampling_rate"}`, or `{"bytes"}` or `{"path"}` of a file, as `datasets` gives them;
    - an `AudioDecoder` of torchcodec, or another object with its `get_all_samples()`;
    - a path or URL, or the bytes of a file, read by the program `ffmpeg` as in transformers' audio pipelines.

    Channels are averaged, or kept or chosen as the extractor's `num_channels` and `channel` say. Samples of another
    rate are resampled by soxr, and refused where that is not installed. A clip that is longer than the model's input
    goes through it in windows; with `windows="first"` the rest is left out.

    Raises:
        ValueError: the feature extractor has another number of mel bins than the model; a dict without samples and rate
            or a file, a list of numbers, or what the extractor refuses; `windows` is neither "all" nor "first".
    """

    _load_feature_extractor = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        channels, taken = self.feature_extractor.num_channels, self.model.config.num_channels
        if channels != taken:
            raise ValueError(f"num_channels of the feature extractor is {channels}; the model takes {taken}.")
        bins, taken = self.feature_extractor.num_mel_bins, self.model.config.input_size[-1]
        if bins != taken:  # the model would run: patches of other frequencies look like any others
            raise ValueError(
                f"num_mel_bins of the feature extractor is {bins}; the model takes {taken}, the last number of its "
                "input_size."
            )

    def _sanitize_parameters(self, windows=None, **kwargs):
        if windows not in (None, "all", "first"):
            raise ValueError(f"windows is {windows!r}; it takes 'all' or 'first'.")
        before, run, after = super()._sanitize_parameters(**kwargs)
        return before | ({"windows": windows} if windows else {}), run, after

    def preprocess(self, inputs, windows="all"):
        (samples, rate), extractor = self.samples_of(inputs), self.feature_extractor
        samples, wanted = extractor.waveform(samples, "inputs", mix=True), extractor.sampling_rate
        if soxr is not None and rate != wanted and can_resample(samples.shape[-1], rate, wanted):
            samples, rate = soxr.resample(samples.detach().cpu().numpy().T, rate, wanted).T, wanted
        # the extractor refuses another rate
        settings = {"sampling_rate": rate, "return_tensors": "pt"}
        if windows == "all" and extractor.frame_count(samples.shape[-1]) > extractor.max_length:
            settings |= {"padding": "longest", "truncation": False}
        return extractor(samples, **settings).to(self.dtype)

    def samples_of(self, inputs):
        """Samples, with or without channels, and their rate."""
        rate = self.feature_extractor.sampling_rate
        if hasattr(inputs, "get_all_samples"):
            decoded = inputs.get_all_samples()
            return decoded.data, decoded.sample_rate
        if isinstance(inputs, Mapping):
            found = [inputs[key] for key in ("raw", "array") if inputs.get(key) is not None]
            if found and inputs.get("sampling_rate") is not None:
                return found[0], inputs["sampling_rate"]
            files = [inputs[key] for key in ("bytes", "path") if inputs.get(key) is not None]
            if found or not files:
                raise ValueError(
                    f"inputs has the keys {list(inputs)}; a dict takes 'raw' or 'array', and 'sampling_rate', or the "
                    "'bytes' or the 'path' of a file."
                )
            inputs = files[0]
        if isinstance(inputs, Real):
            raise ValueError("inputs is a list of numbers; a list holds clips here: give one clip as an array.")
        if isinstance(inputs, str | os.PathLike):
            path = os.fspath(inputs)
            with urlopen(path) if path.startswith(("http://", "https://")) else open(path, "rb") as file:
                inputs = file.read()
        if isinstance(inputs, bytes | bytearray):
            if self.feature_extractor.num_channels > 1 or self.feature_extractor.channel is not None:
                return _read_channels(inputs)
            inputs = ffmpeg_read(bytes(inputs), rate)
        return inputs, rate


def _read_channels(content):
    """Samples (n, channels) of a file and their rate; `ffmpeg_read` of transformers makes one channel of all."""
    if soundfile is None:
        raise ValueError("inputs is a file, of whose channels some are asked for; that takes `pip install soundfile`.")
    try:
        return soundfile.read(BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"inputs is a file that soundfile cannot read: {error}") from error


class BridleAudioFeatureExtractionPipeline(BridleAudioInputs, BridleFeatureExtractionPipeline):
    __doc__ = f"{BridleFeatureExtractionPipeline.__doc__}\n    {BridleAudioInputs.__doc__}"


class BridleAudioClassificationPipeline(BridleAudioInputs, AudioClassificationPipeline):
    __doc__ = f"""The labels of one clip or a list of them, as transformers' pipeline `audio-classification` gives them.

    Of a long clip, the logits of its windows are averaged, each weighted by its patches in time; transformers' own
    looks at the first window alone. {BridleAudioInputs.__doc__}"""

    def _forward(self, model_inputs):
        values, mask = model_inputs["input_values"], model_inputs.get("attention_mask")
        window, unit = self.model.config.input_size[0], self.model.config.patch_size[0]

        def classify(values, mask):
            return self.model(values, attention_mask=mask).logits

        return SequenceClassifierOutput(logits=clip_logits(classify, values, mask, window, unit, len(values)))


class BridleVideoFeatureExtractionPipeline(BridleFeatureExtractionPipeline):
    """Takes the path or URL of a video, to sample frames from, or frames (T, H, W, 3) or (T, 3, H, W) as they are."""

    _load_video_processor = True

    def preprocess(self, inputs):
        sampled = isinstance(inputs, str)
        frames = {"num_frames": self.model.config.num_frames} if sampled else {}
        return self.video_processor(inputs, do_sample_frames=sampled, return_tensors="pt", **frames).to(self.dtype)


__all__ = [
    "BridleAudioClassificationPipeline",
    "BridleAudioFeatureExtractionPipeline",
    "BridleFeatureExtractionPipeline",
    "BridleVideoFeatureExtractionPipeline",
]
