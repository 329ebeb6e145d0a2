"""`bridle_hf.load`: a trained model with its processor, for files and arrays."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from . import modeling_bridle
from .clip_features_bridle import FRAME_POOLINGS, check_poolings, choose_layers, window_starts
from .configuration_bridle import BridleConfig
from .data.arguments import DataArguments
from .data.bad_share import BadShareError
from .data.in_hand import TAKES, as_array
from .data.modalities import MODALITIES, load_processor
from .evaluation.classifying import classified
from .evaluation.features import STREAMED_POOLINGS, feature_rows
from .evaluation.tokens import code_rows
from .files import at_home
from .modeling_bridle import BridleForClassification, BridleForPreTraining, BridleModel, BridleTokenizer
from .saved_models import PRETRAINED, check_model, without_load_reports
from .training.parameters import check_finite

CLASSIFIER = "a fine-tuned one such as runs/mine_classes/fold-1"
WINDOWS = ("all", "first")
MOST_CHANNELS = 2  # of a bare array; with more it may be a batch
DATASETS = (datasets.Dataset, datasets.IterableDataset, datasets.DatasetDict, datasets.IterableDatasetDict)


def load(source: str | Path, device: torch.device | str | None = None, **settings) -> "LoadedModel":
    """Load a trained model with its processor.

    ```python
    model = bridle_hf.load("runs/mine")
    features = model.embed(["a.wav", "b.mp3"])  # (2, D)
    ```

    Args:
        source: a folder that a run wrote, its `final/` or one of its `fold-K`; or the id of a model on the Hub.
        device: by default the GPU where there is one.
        settings: what is to change in the processor, such as `pad_short=True`.

    Raises:
        TypeError: `source` is neither text nor a path.
        ValueError: there is no such model, it is damaged or has parts without weights; or several are there.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"source is {source!r}; it takes a folder or the id of a model on the Hub.")
    source = str(model_folder(source))
    model = open_model(saved_class(source, "source"), source, "source")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        processor = load_processor(source, **settings)
    except OSError as error:
        raise ValueError(f"source is {source!r}, whose processor cannot be read: {error}") from error
    return LoadedModel(model.eval().to(device), processor, source)


def model_folder(source: str | Path, argument: str = "source") -> str | Path:
    """The folder of the model in the folder of a run: `final/`, unless it is one itself; a Hub id as it is.

    Raises:
        ValueError: there is none, or there are several.
    """
    folder = Path(at_home(source))
    if not folder.is_dir():
        return source
    for each in (folder, folder / "final"):
        if (each / "config.json").is_file():
            return each
    inside = sorted(each.parent.relative_to(folder).as_posix() for each in folder.glob("[!.]*/config.json"))
    inside += sorted(each.parents[1].relative_to(folder).as_posix() for each in folder.glob("[!.]*/final/config.json"))
    there = f"it holds {', '.join(inside)}: take one of them" if inside else f"it takes {PRETRAINED}"
    raise ValueError(f"{argument} is {str(source)!r}, a folder with neither a config.json nor a final/; {there}.")


class LoadedModel:
    """A trained model, and what it is for.

    Its methods take one clip or a list of clips, each of them a file (path, URL or bytes, of any format, rate and
    length that training reads), an array, a PIL image, a dict `{"array", "sampling_rate"}`, or an `AudioDecoder` of
    torchcodec; or a folder of files, all of which are read in the order of their names; or a dataset in hand, as
    `bridle_hf.pretrain` takes it. Arrays of sounds take `sampling_rate`, in Hz. A sound that is longer than the model's
    input goes through it in windows.

    Raises (all methods):
        ValueError: a clip that cannot be used, which is named, with the reason. `bridle features`, `bridle tokens` and
            `bridle classify` leave such clips out, and say so.

    Attributes:
        model: `BridleForPreTraining`, `BridleModel`, or a classifier, in evaluation mode.
        processor: feature extractor, image or video processor.
        source: folder or Hub id of the model.
    """

    def __init__(self, model: PreTrainedModel, processor, source: str):
        self.model, self.processor, self.source = model, processor, source

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, {self.source!r})"

    @cached_property
    def encoder(self) -> BridleModel:
        """The encoder alone; that of a classifier with the classifier's norm as its last, a second copy."""
        if isinstance(self.model, BridleModel):
            return self.model
        if isinstance(self.model, BridleForPreTraining):
            return self.model.bridle
        return open_model(BridleModel, self.source, "source").eval().to(self.model.device)

    @property
    def tokenizer(self) -> BridleTokenizer:
        """The tokenizer of a pretraining model.

        Raises:
            ValueError: the model has none.
        """
        found = self.model if isinstance(self.model, BridleTokenizer) else getattr(self.model, "tokenizer", None)
        if found is None:
            raise ValueError(f"{self!r} holds no tokenizer; codes take {PRETRAINED}.")
        return found

    def embed(
        self,
        clips: Any,
        pooling: str = "mean",
        layers: int | Sequence[int] | str | None = None,
        *,
        sampling_rate: int | None = None,
        windows: str = "all",
        overlap: float = 0.5,
        batch_size: int = 32,
        num_workers: int = 2,
    ) -> np.ndarray | list[np.ndarray]:
        """Features of n clips, as `bridle features` writes them.

        Args:
            clips: see the class.
            pooling, layers: as of `BridleModel.extract_features`.
            sampling_rate: of arrays of sounds, Hz.
            windows: "all" of a long sound, or the "first" alone.
            overlap: share of a window that the next one sees again.
            batch_size: windows at a time.
            num_workers: threads that decode.

        Returns:
            float32 (n, D), or (n, L, D) of several layers; D is wider for some poolings. With "frames" and
            "frame_bands", a list of n arrays (T, D), or (L, T, D), since clips differ in their length.
        """
        config = self.encoder.config
        chosen, several = choose_layers(config, layers), layers is not None and not isinstance(layers, int)
        check_poolings(config, [pooling], STREAMED_POOLINGS)
        data, dataset = self._data(clips, sampling_rate, windows, num_workers)
        names = ["last" if layer is None else f"layer_{layer}" for layer in chosen]
        rows = feature_rows(self.encoder, data, self.processor, chosen, pooling, overlap, batch_size, dataset)
        found = [[row[name] for name in names] for row in _without_bad(rows)]
        found = [np.stack(each) if several else each[0] for each in found]
        return found if pooling in FRAME_POOLINGS else np.stack(found)

    def tokens(
        self,
        clips: Any,
        *,
        sampling_rate: int | None = None,
        windows: str = "all",
        batch_size: int = 32,
        num_workers: int = 2,
    ) -> list[np.ndarray]:
        """Codes of n clips, as `bridle tokens` writes them: a list of n arrays (*grid, M) int32 of the real patches,
        of sounds (time, frequency, codebook). Arguments as of `embed`.

        Raises:
            ValueError: the model has no tokenizer.
        """
        tokenizer = self.tokenizer
        data, dataset = self._data(clips, sampling_rate, windows, num_workers)
        rows = code_rows(tokenizer, data, self.processor, batch_size, dataset)
        return [row["codes"] for row in _without_bad(rows)]

    def decode(self, codes: Any) -> np.ndarray | list[np.ndarray]:
        """What codes stand for: an estimate of the encoder's features, and no sound or picture.

        Args:
            codes: of a clip, (*grid, M) as `tokens` gives them, an array or tensor; or a list of them. The first
                codebooks alone will do, `codes[..., :2]`. Those of a long sound are decoded window by window.

        Returns:
            float32 (*grid, D), or a list of them. In the cold start D counts patch embeddings.

        Raises:
            ValueError: the model has no tokenizer, or codes that are none of its grid.
        """
        tokenizer = self.tokenizer
        dims, (size, *bands) = len(tokenizer.config.grid) + 1, tokenizer.config.grid
        has_length, array = MODALITIES[tokenizer.config.modality].waveform is not None, as_array(codes)
        if isinstance(codes, list) and array.ndim != dims:
            return [self.decode(each) for each in codes]
        if array.dtype.kind not in "iu":
            raise ValueError(f"codes is an array of {array.dtype}; it takes integers, as `tokens` gives them.")
        if array.ndim != dims or 0 in array.shape or has_length and array.shape[1:-1] != tuple(bands):
            raise ValueError(
                f"codes is {array.shape}; the model takes (*grid, codebooks), its grid being {tokenizer.config.grid}."
            )
        codes = torch.as_tensor(array.astype(np.int64), device=self.model.device)
        # the windows of `tokens`; what two of them have is taken from the first
        starts = window_starts(len(codes), size, overlap=0.0, unit=1) if has_length else [0]
        found, done = [], 0
        with torch.no_grad():
            for start in starts:
                window = codes[start : start + size] if has_length else codes
                *grid, books = window.shape
                features = tokenizer.decode(window.reshape(1, -1, books), tuple(grid))  # (1, N, D)
                found.append(features.float().cpu().numpy().reshape(*grid, -1)[done - start :])
                done = start + len(window)
        return np.concatenate(found)

    def classify(
        self,
        clips: Any,
        threshold: float | None = None,
        *,
        sampling_rate: int | None = None,
        windows: str = "all",
        batch_size: int = 32,
        num_workers: int = 2,
    ) -> list[dict]:
        """Labels of n clips, as `bridle classify` writes them: n dicts with the `name` of the clip, its `labels` and
        the `scores` of all labels, the likeliest first. Of a model for one label per clip, that is the likeliest.

        Args:
            threshold: labels are given that are likelier than this: by default one half where a clip can have several
                labels, and no bound where it has one. Other arguments as of `embed`.

        Raises:
            ValueError: the model is no classifier.
        """
        if not isinstance(self.model, BridleForClassification):
            raise ValueError(f"{self!r} is no classifier; labels take {CLASSIFIER}.")
        data, dataset = self._data(clips, sampling_rate, windows, num_workers)
        rows = classified(self.model, data, self.processor, threshold, batch_size, dataset)
        return list(_without_bad(rows))

    def _data(self, clips: Any, sampling_rate: int | None, windows: str, num_workers: int) -> tuple[DataArguments, Any]:
        """What to read of `clips`, and the dataset in hand of them, if they are none with a name."""
        if windows not in WINDOWS:
            raise ValueError(f"windows is {windows!r}; it takes 'all' or 'first'.")
        settings = {"num_workers": num_workers, "test_windows": windows, "max_bad_share": 0.0, "min_seconds": 0.0}
        if isinstance(clips, str | os.PathLike) and Path(at_home(clips)).is_dir():
            return DataArguments(dataset=os.fspath(clips), files="**/*", **settings), None
        if isinstance(clips, DATASETS):
            return DataArguments(**settings), clips
        kinds = str | os.PathLike | bytes | dict | np.ndarray | torch.Tensor | Image.Image
        if isinstance(clips, kinds) or hasattr(clips, "get_all_samples"):
            clips = [clips]
        if isinstance(clips, Sequence):
            has_rate = MODALITIES[self.model.config.modality].waveform is not None
            clips = [_with_rate(each, sampling_rate if has_rate else None, has_rate) for each in clips]
            if not clips:
                raise ValueError("clips is an empty list; it takes at least one file or array.")
            return DataArguments(**settings), clips
        raise TypeError(f"clips is a {type(clips).__name__}; it takes a file, an array, {TAKES}.")


def _with_rate(clip: Any, sampling_rate: int | None, has_rate: bool) -> Any:
    """An array of a sound with its rate; anything else as it is."""
    if not has_rate or not isinstance(clip, np.ndarray | torch.Tensor | list):
        if has_rate and isinstance(clip, float | int):
            raise ValueError("clips is a list of numbers; one sound is an array of them, as numpy.asarray makes it.")
        return clip
    if sampling_rate is None:
        raise ValueError("sampling_rate is missing; arrays of sounds take it, in Hz.")
    array = as_array(clip)
    if array.ndim == 2 and min(array.shape) > MOST_CHANNELS:
        raise ValueError(
            f"clips has an array {array.shape}: several sounds are a list of arrays; one sound of {min(array.shape)} "
            "channels is {'array': ..., 'sampling_rate': ...}."
        )
    return {"array": array, "sampling_rate": sampling_rate}


def _without_bad(rows: Iterator[dict]) -> Iterator[dict]:
    """The rows, of which none may be left out."""
    try:
        yield from rows
    except BadShareError as error:
        reason = str(error.reason).rstrip(".")
        raise ValueError(f"{error.name} cannot be used: {reason}. Leave it out.") from None  # it names settings


def open_model(cls: type[PreTrainedModel], source: str, argument: str = "--model") -> PreTrainedModel:
    """Loads a model whose weights are all there and finite; transformers draws missing ones at random and goes on.

    Raises:
        ValueError: there is no such model, or it is damaged, or a part of it has no weights.
    """
    check_model(source, argument)
    try:
        with without_load_reports():
            model, report = cls.from_pretrained(source, output_loading_info=True)
    except (RuntimeError, OSError) as error:
        reason = "some have other sizes" if "mismatched_sizes" in str(error) else error
        raise ValueError(f"{argument} is {str(source)!r}; its weights are not those of its config: {reason}") from error
    if missing := report["missing_keys"]:
        part, takes = _part(cls, missing)
        raise ValueError(f"{argument} is {str(source)!r}, which holds no {part}; it takes {takes}.")
    check_finite(model, f"{argument} is {str(source)!r}")
    return model


def saved_class(source: str | Path, argument: str = "--model") -> type[PreTrainedModel]:
    """The class of a saved model, as its config names it.

    Raises:
        ValueError: there is no such model, or it is none of ours.
    """
    check_model(source, argument)
    architecture = (BridleConfig.from_pretrained(source).architectures or [None])[0]
    if architecture not in modeling_bridle.__all__:
        known = ", ".join(modeling_bridle.__all__)
        raise ValueError(f"{argument} is {str(source)!r}, which holds a {architecture}; it takes one of {known}.")
    return getattr(modeling_bridle, architecture)


def _part(cls: type, missing: list[str]) -> tuple[str, str]:
    """What a model without these weights lacks, and what to give instead."""
    if issubclass(cls, BridleForClassification):
        return "classifier", CLASSIFIER
    no_encoder = cls is BridleModel or any(key.startswith("bridle.") for key in missing)
    return "encoder" if no_encoder else "tokenizer", PRETRAINED
