"""Models as ONNX files, for programs without PyTorch, and the constants of the audio front-end for them."""

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from ..feature_extraction_bridle import BridleFeatureExtractor, front_end
from ..files import whole_file
from ..modeling_bridle import BridleForClassification, BridleModel, BridleTokenizer

# What a model answers -> the fields of its output, with the names that they get.
ANSWERS = {
    BridleModel: {"last_hidden_state": "last_hidden_state", "pooler_output": "pooler_output"},
    BridleTokenizer: {"codes": "codes"},
    BridleForClassification: {"logits": "logits"},
}


class _Answers(nn.Module):
    """A model with positional inputs and a tuple of outputs."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.fields = next((fields for cls, fields in ANSWERS.items() if isinstance(model, cls)), None)
        if self.fields is None:
            raise ValueError(
                f"model is a {type(model).__name__}; it takes an encoder (model.bridle), a tokenizer (model.tokenizer) "
                "or a classifier."
            )

    def forward(self, values, attention_mask=None):
        if isinstance(self.model, BridleTokenizer):  # its `forward` also computes losses, over a known number of rows
            return (self.model.quantizer.assign(self.model.project(values, attention_mask)),)
        given = {self.model.main_input_name: values}
        if attention_mask is not None:
            given["attention_mask"] = attention_mask
        output = self.model(**given)
        return tuple(getattr(output, field) for field in self.fields)


def export_onnx(model: nn.Module, path: str | Path, processor=None) -> list[Path]:
    """Write an encoder, a tokenizer or a classifier as an ONNX file.

    Inputs are `input_values` (B, T, mel bins), of several channels (B, T, channels, mel bins), and `attention_mask`
    (B, T) int64 for sounds, any B, and any T of whole patches; `pixel_values` for images and videos, any B. Outputs are
    those of the model's `forward` by name: `last_hidden_state` and `pooler_output`, `codes`, or `logits`.

    Args:
        model: `BridleModel`, `BridleTokenizer` or one of the classifiers.
        path: of the file.
        processor: of a model of sounds: its constants go into an .npz beside the file, see `front_end`.

    Returns:
        The files written.

    Raises:
        ValueError: another model.
        ModuleNotFoundError: onnx or onnxscript is not installed.
    """
    import onnxscript  # noqa: F401, at once and not after minutes

    path, config = Path(path), model.config
    answers, device = _Answers(model.eval()), next(model.parameters()).device
    names, shapes = [model.main_input_name], [{0: Dim("batch", min=1)}]
    if _has_length(model):
        # A length that is no window's, or torch takes the window's for the only one.
        patch, window = config.patch_size[0], config.input_size[0]
        frames = max(2 * patch, window - patch)
        values = torch.zeros(2, frames, *_of_a_frame(config), device=device)
        inputs = (values, torch.ones(2, frames, dtype=torch.long, device=device))
        names, shapes = [*names, "attention_mask"], 2 * [shapes[0] | {1: patch * Dim("patches", min=1)}]
    else:
        *length, height, width = config.input_size
        inputs = (torch.zeros(2, *length, config.num_channels, height, width, device=device),)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names of axes that stand for one another
        program = torch.onnx.export(
            answers,
            inputs,
            dynamo=True,
            input_names=names,
            output_names=list(answers.fields.values()),
            dynamic_shapes=tuple(shapes),
            verbose=False,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
        program.save(Path(beside, path.name))
        # Of more than 1.5 GB the weights are in a second file, which the first one names; it is there before that.
        for made in sorted(Path(beside).iterdir(), reverse=True):
            written.insert(0, path.with_name(made.name))
            with whole_file(written[0]) as partial:
                made.rename(partial)
    if isinstance(processor, BridleFeatureExtractor):
        written.append(path.with_suffix(".npz"))
        with whole_file(written[-1]) as partial, partial.open("wb") as file:
            np.savez(file, **front_end(processor))
    return written


def _has_length(model: nn.Module) -> bool:
    """Whether inputs are of any length and padded, as sounds are."""
    return model.main_input_name == "input_values"


def _of_a_frame(config) -> tuple[int, ...]:
    """The axes of a frame of sound: mel bins, or channels and mel bins."""
    bins = config.input_size[-1]
    return (bins,) if config.num_channels == 1 else (config.num_channels, bins)


def largest_difference(model: nn.Module, path: str | Path) -> float:
    """The largest absolute difference between a model's outputs and those of its ONNX file, over three random inputs of
    several batch sizes and, for sounds, lengths; of codes the share that differs, since rounding decides near ties.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
    """
    import onnxruntime

    session, config = onnxruntime.InferenceSession(str(path)), model.config
    answers, largest, draws = _Answers(model.eval()), 0.0, torch.Generator().manual_seed(0)
    for batch, share in ((1, 1.0), (2, 0.5), (3, 1.5)):
        if _has_length(model):
            patch, window = config.patch_size[0], config.input_size[0]
            longest = window if config.position_layout == "table" else int(share * window)
            frames = max(1, longest // patch) * patch
            lengths = torch.arange(batch) * frames // (2 * batch)
            mask = (torch.arange(frames) < (frames - lengths)[:, None]).long()
            inputs = [torch.randn(batch, frames, *_of_a_frame(config), generator=draws), mask]
        else:
            *length, height, width = config.input_size
            inputs = [torch.randn(batch, *length, config.num_channels, height, width, generator=draws)]
        given = {each.name: value.numpy() for each, value in zip(session.get_inputs(), inputs, strict=True)}
        with torch.no_grad():
            expected = answers(*(value.to(model.device) for value in inputs))
        for mine, theirs in zip(expected, session.run(None, given), strict=True):
            mine = mine.cpu().numpy()
            apart = (
                np.abs(mine.astype(np.float64) - theirs).max() if mine.dtype.kind == "f" else (mine != theirs).mean()
            )
            largest = max(largest, float(apart))
    return largest
