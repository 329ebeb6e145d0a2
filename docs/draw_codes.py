"""Draws docs/codes.svg, the codes of a sound over its spectrogram, for light and dark pages.

python docs/draw_codes.py RUN FILE      # of a run of audio/demo: runs/demo, runs/demo/synthetic/train/NAME.flac
"""

import sys
from pathlib import Path

import matplotlib
import soundfile

import bridle_hf
from bridle_hf.evaluation.features import patch_validity
from bridle_hf.evaluation.plots import STYLE, codes_over_picture, to_svg

COLOURS = """
  svg { --ink: #1f2328; --grid: #d0d7de; --faint: #eceef1; font-family: system-ui, sans-serif }
  @media (prefers-color-scheme: dark) { svg { --ink: #e6edf3; --grid: #3a3f46; --faint: #22262b } }
"""


def draw(run: str, file: str) -> str:
    """The picture as SVG: as much of the sound as the model's input holds."""
    model = bridle_hf.load(run)
    sound, rate = soundfile.read(file)
    inputs = model.processor(sound, sampling_rate=rate, return_tensors="pt")
    codes = model.tokenizer.encode(inputs["input_values"])[0]  # (N, M)
    grid = model.tokenizer.config.grid
    valid = patch_validity(model.encoder, inputs["input_values"], inputs["attention_mask"])[0]
    values = inputs["input_values"][0].numpy()
    with matplotlib.rc_context(STYLE):
        figure = codes_over_picture(values, codes.numpy(), valid.numpy(), grid)
    svg = to_svg(figure, "codes", "A spectrogram with the code of each patch, and maps of the codes of each codebook")
    return str(svg).replace(">", f"><style>{COLOURS}</style>", 1)


if __name__ == "__main__":
    Path(__file__).with_name("codes.svg").write_text(draw(*sys.argv[1:]))
