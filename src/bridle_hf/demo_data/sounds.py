"""A set of synthesized sounds as real audio files, for demos and tests that must not download anything.

Twelve classes that a listener tells apart. Most share their frequency range with others and differ in how the sound
moves in time; every clip has its own pitch, tempo, level, room, microphone and background noise, so that the average
spectrum alone does not name the class.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from tqdm.auto import tqdm

from .folder import FOLDS, write_set

RATE = 16000  # Hz
SECONDS = (2.0, 5.0)  # length of a clip
SNR_DB = (10.0, 40.0)  # sound over background noise; lower is harder
PEAK_DB = (-20.0, -3.0)
MICROPHONE_DB = 2.0  # ripples of each clip's frequency response; larger is harder
ECHO_SECONDS = (0.05, 0.4)

Rng = np.random.Generator
Event = Callable[[int], np.ndarray]  # samples -> waveform


def chirp_up(rng: Rng, n: int) -> np.ndarray:
    """Rising sweeps."""
    glide = _glide(rng)
    return _repeat(rng, n, lambda m: glide(np.linspace(0, 1, m)), (0.2, 0.6), (0.05, 0.4))


def chirp_down(rng: Rng, n: int) -> np.ndarray:
    """Falling sweeps over the same range as the rising ones."""
    glide = _glide(rng)
    return _repeat(rng, n, lambda m: glide(np.linspace(1, 0, m)), (0.2, 0.6), (0.05, 0.4))


def siren(rng: Rng, n: int) -> np.ndarray:
    """One tone that swings up and down without a pause."""
    turns = rng.uniform(0.5, 2) * np.arange(n) / RATE + rng.uniform()
    return _glide(rng)(0.5 - 0.5 * np.cos(2 * np.pi * turns))


def beeps(rng: Rng, n: int) -> np.ndarray:
    """Short steady tones, each at a pitch of its own."""
    glide = _glide(rng)
    return _repeat(rng, n, lambda m: glide(np.full(m, rng.uniform())), (0.08, 0.3), (0.05, 0.3))


def telephone(rng: Rng, n: int) -> np.ndarray:
    """Rings that warble between two pitches, with silence between them."""
    warble, low = rng.uniform(12, 22), _log_uniform(rng, 500, 1200)
    high = low * rng.uniform(1.2, 1.4)

    def ring(m: int) -> np.ndarray:
        return _tone(rng, np.where(np.sin(2 * np.pi * warble * np.arange(m) / RATE) > 0, high, low), harmonics=3)

    return _repeat(rng, n, ring, (0.4, 1.0), (0.2, 0.7))


def bell(rng: Rng, n: int) -> np.ndarray:
    """Strokes on metal: inharmonic partials that die away, the high ones first."""
    ratios = np.array([0.5, 1.0, 1.19, 1.56, 2.0, 2.51, 2.66, 3.01, 4.1]) * rng.uniform(0.98, 1.02, 9)
    pitches, gains = _log_uniform(rng, 300, 1200) * ratios, rng.uniform(0.3, 1.0, 9)
    decays = rng.uniform(0.2, 0.6) / ratios

    def stroke(m: int) -> np.ndarray:
        time = np.arange(m) / RATE
        partials = zip(pitches, gains, decays, strict=True)
        return sum(gain * np.exp(-time / decay) * np.sin(2 * np.pi * hz * time) for hz, gain, decay in partials)

    return _repeat(rng, n, stroke, (0.5, 1.5), (0.0, 0.1))


def bird(rng: Rng, n: int) -> np.ndarray:
    """Trills: short whistles that flutter fast around their pitch."""
    flutter, depth, pitch = rng.uniform(15, 35), rng.uniform(0.1, 0.3), _log_uniform(rng, 1800, 4000)

    def trill(m: int) -> np.ndarray:
        swing = 1 + depth * np.sin(2 * np.pi * flutter * np.arange(m) / RATE)
        return _tone(rng, rng.uniform(0.85, 1.15) * pitch * swing, harmonics=2)

    return _repeat(rng, n, trill, (0.15, 0.6), (0.05, 0.4))


def bark(rng: Rng, n: int) -> np.ndarray:
    """Bursts of a hoarse falling voice, through two formants."""
    pitch, formants = rng.uniform(250, 600), (rng.uniform(600, 1200), rng.uniform(1500, 3000))

    def burst(m: int) -> np.ndarray:
        voice = _tone(rng, pitch * np.linspace(1.3, 0.7, m), harmonics=10) + 0.3 * rng.standard_normal(m)
        hz = np.fft.rfftfreq(m, 1 / RATE)
        mouth = 0.05 + sum(np.exp(-0.5 * ((hz - formant) / (0.2 * formant)) ** 2) for formant in formants)
        return np.fft.irfft(np.fft.rfft(voice) * mouth, m)

    return _repeat(rng, n, burst, (0.12, 0.25), (0.08, 0.5))


def engine(rng: Rng, n: int) -> np.ndarray:
    """A motor: strokes at an unsteady rate."""
    speed = rng.uniform(20, 50) * _wander(rng, n, 0.4, 0.8, 1.25)
    strokes = np.diff(np.floor(np.cumsum(speed) / RATE), prepend=0) * rng.uniform(0.5, 1, n)
    return _convolve(strokes, _thud(rng, _log_uniform(rng, 100, 500)))


def rain(rng: Rng, n: int) -> np.ndarray:
    """Drops at random moments."""
    drops = (rng.uniform(size=n) < rng.uniform(15, 50) / RATE) * rng.exponential(size=n)
    return _convolve(drops, _thud(rng, _log_uniform(rng, 500, 2000)))


def wind(rng: Rng, n: int) -> np.ndarray:
    """Noise that swells and fades slowly."""
    return _wander(rng, n, 0.4, 0.0, 1.0) ** 2 * _noise(rng, n)


def metronome(rng: Rng, n: int) -> np.ndarray:
    """Clicks in a strict beat."""
    beat = int(RATE / rng.uniform(2, 6))
    clicks = np.zeros(n)
    clicks[int(rng.integers(beat)) :: beat] = 1
    return _convolve(clicks, _thud(rng, _log_uniform(rng, 800, 3000)))


CLASSES: tuple[Callable[[Rng, int], np.ndarray], ...] = (
    bark, beeps, bell, bird, chirp_down, chirp_up, engine, metronome, rain, siren, telephone, wind
)  # fmt: skip


def synthesize(make: Callable[[Rng, int], np.ndarray], rng: Rng) -> np.ndarray:
    """One clip of a class, (samples,) float32 at 16 kHz: the sound in a room with background noise, at some level."""
    n = int(rng.uniform(*SECONDS) * RATE)
    sound, noise = _convolve(make(rng, n), _room(rng)), _noise(rng, n)
    clip = sound / sound.std() + noise / noise.std() * 10 ** (-rng.uniform(*SNR_DB) / 20)
    size = 2 ** int(np.ceil(np.log2(n)))
    octaves = np.log2(np.fft.rfftfreq(size, 1 / RATE) / 50 + 1)
    ripples = sum(np.sin(octaves * rng.uniform(0.3, 2.5) + rng.uniform(0, 2 * np.pi)) for _ in range(3))
    clip = np.fft.irfft(np.fft.rfft(clip, size) * 10 ** (MICROPHONE_DB / 20 * ripples), size)[:n]
    return (clip / np.abs(clip).max() * 10 ** (rng.uniform(*PEAK_DB) / 20)).astype(np.float32)


def write_sound_set(folder: str | os.PathLike, seed: int = 0, clips_per_class: int = 40) -> Path:
    """Write the sound set as an audio dataset folder, or leave the folder alone where that set is already there.

    `folder/train` holds FLAC files (16 kHz mono, 2 to 5 s) and `metadata.jsonl` with the columns `label` (integer),
    `label_name` and `fold` (1 to 5, each with the same number of clips of every class, give or take one).
    `load_dataset(folder)` reads it like any other audio folder. The same seed gives the same files.

    Args:
        folder: new folder, or one that this function wrote; a set of another seed or size is replaced.
        seed: of everything random.
        clips_per_class: clips of each of the twelve classes.

    Raises:
        FileExistsError: where `folder` holds anything else.
    """
    receipt = {"set": "sounds", "seed": seed, "clips_per_class": clips_per_class}
    return write_set(folder, receipt, partial(_write_clips, seed=seed, clips_per_class=clips_per_class))


def _write_clips(folder: Path, seed: int, clips_per_class: int) -> Iterator[dict]:
    order = np.random.default_rng(seed).permutation(len(CLASSES) * clips_per_class)
    for number, place in enumerate(tqdm(order, desc="synthesizing", unit=" clips")):
        take, label = divmod(int(place), len(CLASSES))
        clip = synthesize(CLASSES[label], np.random.default_rng([seed, label, take]))
        name = f"{number:05d}.flac"
        soundfile.write(folder / name, clip, RATE, subtype="PCM_16")
        yield {"file_name": name, "label": label, "label_name": CLASSES[label].__name__, "fold": take % FOLDS + 1}


def _log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _tone(rng: Rng, hertz: np.ndarray, harmonics: int) -> np.ndarray:
    """A tone along a course of pitches (samples,), with harmonics of falling random strength below 7.5 kHz."""
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    gains = [1.0, *(rng.uniform(0.2, 1) / k for k in range(2, harmonics + 1))]
    return sum(g * (k * hertz < 7500) * np.sin(k * phase) for k, g in enumerate(gains, 1))


def _glide(rng: Rng) -> Callable[[np.ndarray], np.ndarray]:
    """An instrument with a pitch range of its own: a course between 0 and 1 to a tone between its ends."""
    low, span = _log_uniform(rng, 400, 1200), rng.uniform(1, 2)  # Hz, octaves
    harmonics = int(rng.integers(2, 4))
    return lambda course: _tone(rng, low * 2 ** (span * course), harmonics)


def _repeat(rng: Rng, n: int, event: Event, seconds: tuple, pause: tuple) -> np.ndarray:
    """An event again and again: its length and the pauses keep a tempo of the clip, give or take a fifth."""
    length, gap = rng.uniform(*seconds) * RATE, rng.uniform(*pause) * RATE
    out, start = np.zeros(n), int(rng.uniform(0, 0.5) * (length + gap))
    while start < n:
        m = int(length * rng.uniform(0.8, 1.2))
        fade = min(m // 4, int(0.01 * RATE))
        waveform = event(m)
        waveform[:fade] *= np.linspace(0, 1, fade)
        waveform[-fade:] *= np.linspace(1, 0, fade)
        out[start : start + m] = rng.uniform(0.5, 1) * waveform[: n - start]
        start += m + int(gap * rng.uniform(0.8, 1.2))
    return out


def _thud(rng: Rng, hertz: float) -> np.ndarray:
    """A short knock: noise and a resonance that die away within 40 ms."""
    time = np.arange(int(0.04 * RATE)) / RATE
    body = np.sin(2 * np.pi * hertz * time) + 0.5 * rng.standard_normal(len(time))
    return body * np.exp(-time / rng.uniform(0.003, 0.01))


def _room(rng: Rng) -> np.ndarray:
    """Impulse response of a room: the direct sound and a tail of echoes that die away."""
    m = int(rng.uniform(*ECHO_SECONDS) * RATE)
    tail = rng.uniform(0, 0.3) * rng.standard_normal(m) * np.exp(-6 * np.arange(m) / m) * np.sqrt(12 / m)
    return np.concatenate([[1.0], tail])


def _wander(rng: Rng, n: int, seconds: float, low: float, high: float) -> np.ndarray:
    """A slow random course (samples,) with a new target between `low` and `high` every `seconds`."""
    targets = rng.uniform(low, high, int(n / RATE / seconds) + 2)
    return np.interp(np.arange(n) / (seconds * RATE), np.arange(len(targets)), targets)


def _noise(rng: Rng, n: int) -> np.ndarray:
    """Noise between white and brown."""
    size = 2 ** int(np.ceil(np.log2(n)))
    spectrum = np.fft.rfft(rng.standard_normal(size, dtype=np.float32))
    return np.fft.irfft(spectrum / (np.fft.rfftfreq(size, 1 / RATE) + 100) ** rng.uniform(0, 1), size)[:n]


def _convolve(signal: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The signal (samples,) through an impulse response, at the signal's length."""
    size = 2 ** int(np.ceil(np.log2(len(signal) + len(response))))
    return np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(response, size), size)[: len(signal)]
