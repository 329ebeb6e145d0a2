"""Discrete autoencoding with every quantizer of a recipe: one autoencoder each, and one table of codes and errors.

    python examples/discrete_autoencoding.py --recipe examples/recipes/autoencoding/cifar10_small.yaml
    accelerate launch examples/discrete_autoencoding.py --recipe examples/recipes/autoencoding/imagenet_64x64x3.yaml \
        --method softmax-knn_ce --method euclidean-ste

A method that has its results already is not run again, and one that was interrupted goes on from its last checkpoint.
`output_dir` receives results.json, model.safetensors and reconstructions.png a method; results.md, the table that is
printed at the end, and popularity.svg, how unevenly the codes of each method are used.
"""

from bridle_hf.cli.table import main
from bridle_hf.quantizer_experiments.autoencoding import AutoencodingRecipe

if __name__ == "__main__":
    main(AutoencodingRecipe, __doc__)
