"""Load a saved folder through transformers' Auto classes alone, run it, and keep what comes out.

    python -I reload.py FOLDER OUTPUT.safetensors

As a program it forbids what a user of the Hub may not have; imported, it computes the same with this package. Equal
outputs mean that the folder is whole. It must not import anything of the package itself.
"""

import sys

FORBIDDEN = ("bridle_hf", "soxr", "torchaudio", "datasets", "accelerate")


def forbid():
    """Make every later import of a package in `FORBIDDEN` fail in this process."""
    sys.modules.update(dict.fromkeys(FORBIDDEN))


def outputs(source, **options):
    """Outputs of every Auto class that finds all its weights, for one fixed input.

    Args:
        source: folder or Hub id, with its code and its processor.
        options: of `from_pretrained`, such as `revision`.

    Returns:
        dict of tensors: `processor.NAME` for the model's inputs, `AUTO_CLASS.FIELD` for the outputs.

    Raises:
        ValueError: no Auto class finds all of its weights.
    """
    import torch
    import transformers

    options |= {"trust_remote_code": True}
    config = transformers.AutoConfig.from_pretrained(source, **options)
    auto_processor, auto_classifier, fixed_input = MODALITIES[config.modality]
    processor = getattr(transformers, auto_processor).from_pretrained(source, **options)
    inputs = dict(fixed_input(config, processor))
    kept = {f"processor.{name}": value for name, value in inputs.items()}
    auto_classes = ("AutoModel", "AutoModelForPreTraining", "AutoModelForAudioTokenization", auto_classifier)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # that weights are missing is what is looked for here
    for auto_class in auto_classes:
        found = getattr(transformers, auto_class).from_pretrained(source, output_loading_info=True, **options)
        model, loading = found
        if loading["missing_keys"]:
            continue
        with torch.no_grad():
            result = model.eval()(**inputs)
        kept |= {f"{auto_class}.{name}": value for name, value in result.items() if torch.is_tensor(value)}
    transformers.logging.set_verbosity(verbosity)
    if len(kept) == len(inputs):
        raise ValueError(f"{source}: no Auto class finds all of its weights.")
    return {name: value.contiguous() for name, value in kept.items()}


def fixed_waveform(config, processor):
    """Noise half as long as the model takes, through the processor."""
    import numpy as np

    rng = np.random.default_rng(0)
    frames = max(processor.max_length // 2, processor.pad_to_multiple_of)
    samples = processor.window + (frames + 1) * processor.hop
    channels = () if processor.num_channels == 1 else (processor.num_channels,)
    waveform = rng.normal(size=(*channels, samples)).astype(np.float32) / 10
    return processor(waveform, sampling_rate=processor.sampling_rate, return_tensors="pt")


def fixed_pixels(config, processor):
    """Noise a little larger than the model takes, through the processor."""
    import numpy as np

    rng = np.random.default_rng(0)
    *frames, height, width = config.input_size
    pixels = rng.integers(256, size=(*frames, 3, height + 8, width + 8), dtype=np.uint8)
    sampled = {"do_sample_frames": False} if frames else {}
    return processor(pixels, return_tensors="pt", **sampled)


# Auto classes of the processor and of the classifier, and the input. The names are those of `data.modalities`, which
# cannot be imported here; a test compares them.
MODALITIES = {
    "audio": ("AutoFeatureExtractor", "AutoModelForAudioClassification", fixed_waveform),
    "image": ("AutoImageProcessor", "AutoModelForImageClassification", fixed_pixels),
    "video": ("AutoVideoProcessor", "AutoModelForVideoClassification", fixed_pixels),
}


if __name__ == "__main__":
    forbid()
    from safetensors.torch import save_file

    save_file(outputs(sys.argv[1]), sys.argv[2])
