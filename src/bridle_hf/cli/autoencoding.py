r"""Discrete autoencoding with every quantizer of a recipe: one autoencoder each, and one table of codes and errors.

    bridle autoencoding autoencoding/cifar10_small
    accelerate launch -m bridle_hf.cli autoencoding autoencoding/imagenet_64x64x3 \
        --method softmax-knn_ce --method euclidean-ste
    bridle autoencoding autoencoding/cifar10_small --split 'train[:2000]'

A method that has its results already is not run again, and one that was interrupted goes on from its last checkpoint.
`output_dir` receives results.json, model.safetensors and reconstructions.png per method; results.md, the table that is
printed at the end, and code_histograms.svg, how each method uses its codes. `--split` trains nothing: it evaluates the
trained methods on another split of the data, into NAME/splits/ and results-SPLIT.md.
"""

from ..quantizer_experiments.autoencoding import AutoencodingRecipe
from .table import run_table


def main(arguments=None, prog=None):
    run_table(AutoencodingRecipe, __doc__, arguments, prog)
