"""The audio front-end beside torchaudio, transformers' AST extractor, kaldi-native-fbank, and FFT + mel product."""

from collections.abc import Iterator
from functools import partial

import kaldi_native_fbank
import torch
from measuring import Row, random
from transformers import ASTFeatureExtractor

from bridle_hf import BridleFeatureExtractor
from bridle_hf.feature_extraction_bridle import frame_count, kaldi_fbank

try:
    import torchaudio
except ModuleNotFoundError:
    torchaudio = None

RATE, MEL = 16_000, 128


def fbank_rows(clips: int = 8, seconds: float = 10.0) -> Iterator[Row]:
    """Log-mel features of clips: ours in one call of the extractor, or clip by clip as torchaudio does it."""
    waveforms = random(clips, int(seconds * RATE)) / 10
    arrays = list(waveforms.numpy())
    frames, filters = random(frame_count(waveforms.shape[1]), 512), random(257, MEL)
    ast = ASTFeatureExtractor()
    extractor = BridleFeatureExtractor(max_length=frame_count(waveforms.shape[1]) // 16 * 16)
    native = kaldi_native_fbank.FbankOptions()
    native.frame_opts.dither, native.frame_opts.window_type, native.mel_opts.num_bins = 0.0, "hanning", MEL

    def kaldi_native(array) -> list:
        fbank = kaldi_native_fbank.OnlineFbank(native)
        fbank.accept_waveform(RATE, array.tolist())
        fbank.input_finished()
        return [fbank.get_frame(i) for i in range(fbank.num_frames_ready)]

    peers = {}
    if torchaudio is not None:
        options = {"htk_compat": True, "use_energy": False, "window_type": "hanning", "num_mel_bins": MEL}
        kaldi = partial(torchaudio.compliance.kaldi.fbank, sample_frequency=RATE, dither=0.0, **options)
        peers["torchaudio"] = lambda: [kaldi(waveform[None]) for waveform in waveforms]
    yield Row(
        f"fbank, {clips} clips of {seconds:g} s",
        lambda: [kaldi_fbank(waveform) for waveform in waveforms],
        peers
        | {
            "kaldi-native-fbank": lambda: [kaldi_native(array) for array in arrays],
            "floor: FFT + mel product": lambda: [torch.fft.rfft(frames).real @ filters for _ in range(clips)],
        },
        clips,
        "clip",
    )
    yield Row(
        f"feature extractor, {clips} clips of {seconds:g} s",
        lambda: extractor(arrays, RATE, return_tensors="pt"),
        {"transformers AST": lambda: ast(arrays, sampling_rate=RATE, return_tensors="pt")},
        clips,
        "clip",
    )
