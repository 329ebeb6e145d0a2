"""wav2vec 2.0 pretraining with every quantizer of a recipe, and one table of how they use their codes.

    python examples/wav2vec2_pretraining.py --recipe examples/recipes/wav2vec2/esc10_small.yaml
    accelerate launch examples/wav2vec2_pretraining.py --recipe examples/recipes/wav2vec2/librispeech.yaml \
        --method 2x320-softmax-knn_ce

A method that has its results already is not run again, and one that was interrupted goes on from its last checkpoint.
`output_dir` receives results.json and model.safetensors a method, and results.md, the table that is printed at the end.
"""

from bridle_hf.cli.table import main
from bridle_hf.quantizer_experiments.wav2vec2 import Wav2Vec2Recipe

if __name__ == "__main__":
    main(Wav2Vec2Recipe, __doc__)
