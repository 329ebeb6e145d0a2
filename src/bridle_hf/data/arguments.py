"""What to read and how: the `data` section of a recipe."""

from dataclasses import dataclass, field


@dataclass
class DataArguments:
    """Where the clips come from, how they are read and how they are augmented.

    Args:
        dataset: folder or Hub id of a dataset with an audio column.
        name: configuration of the dataset, where it has several.
        split: split to read.
        audio_column: column that holds the audio.
        label_column: column of the class (integer or string), for probing and fine-tuning.
        fold_column: column of the cross-validation fold.
        exclude: column -> values; examples that hold one of them are left out, such as `{"fold": [1]}`.
        shuffle_buffer: examples read and shuffled together; 1 keeps their order within a shard.
        num_workers: processes that read and decode; 0 reads in the training process.
        cache: decode every clip once, keep its features on disk and stream from there.
        cache_dir: folder of the feature caches; by default `bridle` in the datasets cache of HuggingFace.
        max_bad_share: share of clips that may be undecodable before the run stops.
        min_seconds: a shorter clip counts as undecodable: a truncated wav file decodes without any error.
        max_frames: frames a clip is padded or cropped to; by default the feature extractor's `max_length`.
        roll: roll each training clip in time by a random number of frames.
        gain: scale each training clip's waveform by 0.5 + Beta(10, 10).
        frequency_mask: widest SpecAugment frequency mask, as a share of the mel bins (0 turns it off).
        time_mask: widest SpecAugment time mask, as a share of the clip's frames (0 turns it off).

    Raises:
        ValueError: for a value outside its range.
    """

    dataset: str = ""
    name: str | None = None
    split: str = "train"
    audio_column: str = "audio"
    label_column: str | None = None
    fold_column: str | None = None
    exclude: dict[str, list] = field(default_factory=dict)
    shuffle_buffer: int = 1000
    num_workers: int = 0
    cache: bool = False
    cache_dir: str | None = None
    max_bad_share: float = 0.05
    min_seconds: float = 0.2
    max_frames: int | None = None
    roll: bool = True
    gain: bool = True
    frequency_mask: float = 0.0
    time_mask: float = 0.0

    def __post_init__(self):
        for key, least in (("shuffle_buffer", 1), ("num_workers", 0), ("max_frames", 1), ("min_seconds", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"data.{key} must be at least {least}, got {value}.")
        for key in ("max_bad_share", "frequency_mask", "time_mask"):
            value = getattr(self, key)
            if not 0 <= value <= 1:
                raise ValueError(f"data.{key} must be between 0 and 1, got {value}.")
        for column, values in self.exclude.items():
            if not isinstance(values, (list, tuple)):
                raise ValueError(f"data.exclude.{column} must be a list of values to leave out, got {values!r}.")
