"""The description of a modality: all that the package has to know about it outside the model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..configuration_bridle import BridleConfig
from .arguments import DataArguments


def no_settings(data: DataArguments, processor) -> dict:
    """`Modality.cache_key` of samples whose decoding depends on no setting."""
    return {}


def no_window(data: DataArguments, processor) -> None:
    """`Modality.window` of samples that are taken as a whole."""
    return None


@dataclass(frozen=True)
class Modality:
    """One kind of input. Classes of models are given by name, so that reading data imports no model.

    Attributes:
        name: of the modality in `BridleConfig`.

        column_type, column_names: type of a dataset's column that holds it, and usual names where it has no type.
        extensions: gives those of the files that can be decoded, such as `.wav`.
        decode: `decode(raw, data, processor, rng=None)` turns the raw value of a column into the array that the
            collator takes. With `rng`, only a random window of long media is decoded; where `has_views`, with
            `views=(clips, crops)` only the clips of a test. Raises `BadClipError` for a sample that cannot be used.
        stream: `stream(raw, data, processor)`, as `decode`, but of a long recording something to iterate over, which
            gives its array in parts and raises `BadClipError` where it cannot go on; None where there is no such.
        facts: `facts(raw, data, processor, decoded)` gives numbers about a sample for `survey`, of what there is: its
            `seconds`, `rate` (samples or frames per second), `channels`, `height`, `width`, and its `frames` where
            `window` cuts windows of them, or how many `windows` side by side it holds. `decoded` is what `decode` gave
            with `rng`.
        cache_key: `cache_key(data, processor)` gives the settings that a sample decoded as a whole depends on.
        window: `window(data, processor)` gives the frames of the window that is cut from a long sample; None where a
            sample is always taken as a whole.
        collator: class of batches, `collator(data, processor)`. Called with arrays and a generator it makes a training
            batch; its method `plain` makes one without augmentation.
        waveform: `waveform(raw, processor)` gives the samples that a report plays; None for what makes no sound.
        write_demo_set: writes the synthesized dataset that a recipe calls `synthetic`.

        axes: of the grid of patches.
        hop_seconds: `hop_seconds(processor)` gives the seconds per step along the first axis; None where there is no
            fixed number.
        measure: `measure(clips, processor)` gives mean and deviation of decoded clips, settings of the processor that
            made them; it is to have the settings `unnormalised` then, in the place of these two.
        picture: `picture(values, codes, valid, grid)` brings a model's input, the codes (N, M) and validity (N,) of its
            patches and their grid into the axes of a spectrogram, for a report: left to right, bottom to top.
        has_boxes: whether a box of one sample can stand in another (CutMix).
        has_views: whether a test can average several views of a sample.
        processor, auto_processor: class of the preprocessor, and name of its Auto class in transformers.
        sizes: arguments of the processor that follow from a model's config.
        classifier, auto_classifier: names of the model class with a classification head and of its Auto class.
        feature_pipeline: name of our pipeline for features; None where transformers has one.
        task: pipeline tag of a classifier on the Hub.
        baselines: name -> function that describes one input of a model without any encoder, as a vector.
    """

    name: str

    column_type: type
    column_names: tuple[str, ...]
    extensions: Callable[[], frozenset[str]]
    decode: Callable[..., np.ndarray]
    collator: type
    facts: Callable[..., dict[str, float]]
    write_demo_set: Callable[[Path], Path]

    axes: tuple[str, ...]
    processor: type
    auto_processor: str
    sizes: Callable[[BridleConfig], dict]
    measure: Callable[..., dict]
    unnormalised: dict
    picture: Callable[..., tuple]
    classifier: str
    auto_classifier: str
    task: str

    stream: Callable | None = None
    cache_key: Callable[[DataArguments, object], dict] = no_settings
    window: Callable[[DataArguments, object], int | None] = no_window
    waveform: Callable[..., np.ndarray] | None = None
    hop_seconds: Callable[[object], float] | None = None
    has_boxes: bool = False
    has_views: bool = False
    feature_pipeline: str | None = None
    baselines: dict[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)

    @property
    def has_time(self) -> bool:
        """Whether the first axis of the grid is time."""
        return self.axes[0] == "time"

    def seconds_per_patch(self, config: BridleConfig, processor) -> float | None:
        """Length of a patch along the first axis; None where frames have no fixed distance in seconds."""
        return None if self.hop_seconds is None else config.patch_size[0] * self.hop_seconds(processor)
