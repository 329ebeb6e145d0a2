r"""wav2vec 2.0 pretraining with every quantizer of a recipe, and one table of how they use their codes.

    bridle wav2vec2 wav2vec2/esc10_1x1024
    accelerate launch -m bridle_hf.cli wav2vec2 wav2vec2/librispeech_2x320 --method softmax-knn_ce-1
    bridle wav2vec2 wav2vec2/esc10_1x1024 --split 'train[:80%]'

A method that has its results already is not run again, and one that was interrupted goes on from its last checkpoint.
`output_dir` receives results.json and model.safetensors per method, and results.md, the table that is printed at the
end. `--split` trains nothing: it evaluates the trained methods on another split of the data, into NAME/splits/ and
results-SPLIT.md.
"""

from ..quantizer_experiments.wav2vec2 import Wav2Vec2Recipe
from .table import run_table


def main(arguments=None, prog=None):
    run_table(Wav2Vec2Recipe, __doc__, arguments, prog)
