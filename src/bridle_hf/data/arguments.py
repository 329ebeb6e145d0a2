"""`DataArguments`, the `data` section of a recipe: what to read and how."""

import os
from dataclasses import dataclass, field
from glob import escape
from typing import Literal

from ..files import at_home

AUTO = "auto"  # for what a run finds out itself
MOST_WORKERS = 512  # processes: a slip of the finger takes the machine down


@dataclass
class DataArguments:
    """Where the samples come from, how they are read and how they are augmented.

    Args:
        dataset: folder or Hub id of a dataset with a column of audio, images or videos, or one file, such as a table.
            Empty where the caller hands over a dataset of their own.
        name: configuration of the dataset, where it has several.
        files: one pattern of the files to read, such as `**/*.flac`, all as split `train`; by default every file,
            in the split that its name speaks of (`test/1.wav`, `dev-1.wav`).
        split: split to read.
        test_split: split to test on; probes and fine-tuning then train on `split` and draw no folds.
        input_column: column to decode; by default the first of the model's modality, or else one of paths that is
            called `file_name`, `filename`, `file`, `filepath` or `path`.
        label_column: column of the class (integer or string), for probing and fine-tuning; or, for fine-tuning, of a
            list of classes per sample, or of one flag (0 or 1) a class. `json.label` is a field of column `json`.
            Samples without a label (None, or -1 among integers) are left out.
        fold_column: column of the cross-validation fold.
        exclude: column -> values; examples that hold one of them are left out, such as `{"fold": [1]}`; None stands
            for no value.
        shuffle_buffer: examples read and shuffled together; 1 keeps their order within a shard. More single files,
            cached samples or rows of a `datasets.Dataset` than this are shuffled as a whole instead.
        num_workers: processes that read and decode; 0 reads in the training process, "auto" is `workers`.
        cache: decode every sample once, keep it on disk and stream from there: log-mel features or pixels.
        cache_dtype: of cached features: "float16", or "int8", 256 steps between the least and the largest value of a
            clip in half the space, 0.13 MB for 10 s of 128 mel bins. Pixels are kept as they are.
        in_memory: hold all decoded samples of a probe or of fine-tuning in memory; otherwise decode each when needed.
        cache_dir: folder of the caches; by default `bridle` in the datasets cache of HuggingFace.
        max_bad_share: share of the samples that may be undecodable before the run stops.

    Audio:
        min_seconds: shorter clips are left out, and named; they do not count as bad.
        max_frames: frames a clip is padded or cropped to, and of a window of a longer one; by default the feature
            extractor's `max_length`.
        test_windows: "all" windows of a longer clip count in probes and tests, the mean of their frames and of their
            logits; or the "first" alone.
        roll: roll each training clip in time by a random number of frames.
        gain: scale each training clip's waveform by 0.5 + Beta(10, 10).
        frequency_mask: widest SpecAugment frequency mask, as a share of the mel bins (0 turns it off).
        time_mask: widest SpecAugment time mask, as a share of the clip's frames (0 turns it off).

    Images and videos:
        crop: "resized", a random part of random size and of about the window's proportions; "multi_scale", one of a few
            sizes at random places.
        crop_scale: smallest and largest part of the area that a resized crop takes; for multi-scale crops, of the sides
            of the largest crop with the window's proportions.
        flip: mirror half of the training clips.
        flip_time: videos: play half of the training clips backwards.
        rand_augment: magnitude of torchvision's RandAugment, two operations a clip (0 turns it off).
        erase: share of the training clips of which a random box is erased.
        test_views: clips along time and crops along the longer side of a video, whose predictions are averaged in the
            tests of fine-tuning.

    Raises:
        ValueError: for a value outside its range.
    """

    dataset: str = ""
    name: str | None = None
    files: str | None = None
    split: str = "train"
    test_split: str | None = None
    input_column: str | None = None
    label_column: str | None = None
    fold_column: str | None = None
    exclude: dict[str, list] = field(default_factory=dict)
    shuffle_buffer: int = 1000
    num_workers: int | Literal["auto"] = 0
    cache: bool = False
    cache_dtype: Literal["float16", "int8"] = "float16"
    in_memory: bool = True
    cache_dir: str | None = None
    max_bad_share: float = 0.05
    min_seconds: float = 0.2
    max_frames: int | None = None
    test_windows: Literal["all", "first"] = "all"
    roll: bool = True
    gain: bool = True
    frequency_mask: float = 0.0
    time_mask: float = 0.0
    crop: Literal["resized", "multi_scale"] = "resized"
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: bool = True
    flip_time: bool = False
    rand_augment: int = 0
    erase: float = 0.0
    test_views: tuple[int, int] = (1, 1)

    def __post_init__(self):
        if not isinstance(self.files, str | None):
            raise ValueError(f"data.files is {self.files!r}; it takes one pattern, such as '**/*.flac'.")
        if self.dataset and self.files is None and os.path.isfile(at_home(self.dataset)):  # alone in its folder
            folder, name = os.path.split(self.dataset)
            self.dataset, self.files = folder or ".", escape(name)
        for key, least in (("shuffle_buffer", 1), ("max_frames", 1), ("min_seconds", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"data.{key} must be at least {least}, got {value}.")
        if self.num_workers != AUTO and not 0 <= self.num_workers <= MOST_WORKERS:
            raise ValueError(f"data.num_workers must be auto, or from 0 to {MOST_WORKERS}, got {self.num_workers}.")
        for key in ("max_bad_share", "frequency_mask", "time_mask", "erase"):
            value = getattr(self, key)
            if not 0 <= value <= 1:
                raise ValueError(f"data.{key} must be between 0 and 1, got {value}.")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"data.crop_scale must be two ascending shares above 0, got {self.crop_scale}.")
        if not 0 <= self.rand_augment <= 30:
            raise ValueError(f"data.rand_augment must be between 0 and 30, got {self.rand_augment}.")
        if min(self.test_views) < 1:
            raise ValueError(f"data.test_views must be two numbers of at least 1, got {self.test_views}.")
        if self.test_split and self.fold_column:
            raise ValueError("data.test_split and data.fold_column are both given; tests take one of them.")
        self.exclude = {str(column): values for column, values in self.exclude.items()}
        for column, values in self.exclude.items():
            if not isinstance(values, (list, tuple)):
                raise ValueError(f"data.exclude.{column} must be a list of values to leave out, got {values!r}.")

    @property
    def workers(self) -> int:
        """`num_workers`; for "auto" the cores of this process's share but one, and 8 at most."""
        if self.num_workers != AUTO:
            return self.num_workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(0, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))
