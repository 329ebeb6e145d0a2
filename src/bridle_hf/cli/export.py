"""Write a model as an ONNX file, for programs without PyTorch.

    bridle export runs/mine/final encoder.onnx
    bridle export runs/mine/final tokenizer.onnx --part tokenizer
    bridle export runs/mine_classes/final classifier.onnx --part classifier

The file is run by onnxruntime on three inputs and compared with the model before the command ends. For sounds the
constants of the front-end go into an .npz beside it: docs/guide.md has the lines that compute log-mel frames with them.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from .. import modeling_bridle
from ..configuration_bridle import BridleConfig
from ..data.modalities import MODALITIES, load_processor
from ..files import final_of
from ..hub.onnx_export import export_onnx, largest_difference
from ..loading import open_model
from ..saved_models import check_model
from .checks import check_output, setting_up

TOLERANCE = 1e-3  # of outputs whose values are about 1


def main(arguments=None, prog=None):
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=final_of, help="run, folder or Hub id of a pretrained or fine-tuned model")
    parser.add_argument("output", help="the file to write, such as encoder.onnx")
    parser.add_argument("--part", choices=("encoder", "tokenizer", "classifier"), default="encoder")
    given = parser.parse_args(arguments)
    with setting_up(parser):
        if Path(given.output).suffix != ".onnx":
            raise ValueError(f"output is {given.output!r}; it takes the name of a file that ends in .onnx.")
        check_output(given.output)
        check_model(given.model, "model")
        modality = MODALITIES[BridleConfig.from_pretrained(given.model).modality]
        if modality.waveform is not None:
            check_output(str(Path(given.output).with_suffix(".npz")))
        cls = {"encoder": "BridleModel", "tokenizer": "BridleTokenizer", "classifier": modality.classifier}[given.part]
        model = open_model(getattr(modeling_bridle, cls), given.model, "model").float()
        processor = load_processor(given.model)
    import onnxruntime  # noqa: F401, missing it is said before the export

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    written = export_onnx(model, given.output, processor)
    difference = largest_difference(model, given.output)
    summary = {"written": [str(path) for path in written], "largest_difference": difference}
    sys.stdout.write(json.dumps(summary) + "\n")
    if difference > TOLERANCE:
        parser.exit(1, f"{parser.prog}: the file computes something else than the model, by {difference:.2g}\n")
