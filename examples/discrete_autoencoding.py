"""Discrete autoencoding with every quantizer of a recipe: one autoencoder each, and one table of codes and errors.

    python examples/discrete_autoencoding.py --recipe examples/recipes/autoencoding/cifar10_small.yaml
    accelerate launch examples/discrete_autoencoding.py --recipe examples/recipes/autoencoding/imagenet_64x64x3.yaml \
        --method softmax-knn_ce --method euclidean-ste

A method that has its results already is not run again: an interrupted table goes on with the next method. `output_dir`
receives results.json and model.safetensors a method, and results.md, the table that is printed at the end.
"""

from bridle_hf.experiments.autoencoding import AutoencodingRecipe, summary_row
from bridle_hf.experiments.methods import main

if __name__ == "__main__":
    main(AutoencodingRecipe, summary_row, __doc__)
