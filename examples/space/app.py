"""A page to drop a sound on: its spectrogram, its codes, the top classes and the nearest clips of a folder.

    pip install -e ".[space]"
    python examples/space/app.py --model runs/demo/seed-0/final --classifier runs/demo/finetune-seed-0/fold-1 \
        --clips FOLDER

On a Space the variables BRIDLE_MODEL, BRIDLE_CLASSIFIER and BRIDLE_CLIPS stand for the options.
"""

import argparse
import logging
import os
from pathlib import Path

import numpy as np
import torch
from transformers import AutoFeatureExtractor

from bridle_hf import BridleForAudioClassification, BridleForPreTraining
from bridle_hf.cli.checks import setting_up
from bridle_hf.data import MODALITIES, BadClipError, decode_audio
from bridle_hf.data.audio import channels_of
from bridle_hf.data.extensions import sound_extensions
from bridle_hf.data.listing import list_folder
from bridle_hf.evaluation import plots
from bridle_hf.evaluation.features import patch_validity
from bridle_hf.loading import open_model

try:
    import gradio
except ModuleNotFoundError:  # --help works without
    gradio = None

NEIGHBOURS = 3
MARGIN = 0.1  # seconds behind the window that are decoded to know whether there are any
# the figure's colours are those of the page, light or dark
STYLE = "--ink: var(--body-text-color); --grid: var(--border-color-primary); --faint: var(--background-fill-secondary)"


logger = logging.getLogger(__name__)


def open_for_sounds(cls, source, argument):
    """A model and its feature extractor.

    Raises:
        ValueError: there is none, or it is one of another modality.
    """
    model = open_model(cls, source, argument).float().eval()  # numpy has no bfloat16
    if MODALITIES[model.config.modality].waveform is None:
        raise ValueError(
            f"{argument} is {str(source)!r}, a model of {model.config.modality} data; it takes one of sounds."
        )
    return model, AutoFeatureExtractor.from_pretrained(source)


def find_sounds(folder):
    """Sound files in a folder and its subfolders, sorted by name. Links are followed and hidden files ignored, as for
    `data.dataset`."""
    names = list_folder(str(folder)).names
    return [Path(folder) / name for name in names if Path(name).suffix.lower() in sound_extensions()]


def window_of(extractor):
    """Seconds of sound that an extractor looks at."""
    return extractor.seconds(extractor.max_length)


def read(path, extractor):
    """A model's inputs for the beginning of a file, of which no more is decoded, and whether there is more.

    Raises:
        gradio.Error: it cannot be decoded, or is too short.
    """
    rate, seconds = extractor.sampling_rate, window_of(extractor)
    try:
        samples = decode_audio(path, rate, part_seconds=seconds + MARGIN, channels=channels_of(extractor))
        return extractor(samples, sampling_rate=rate, return_tensors="pt"), len(samples) > seconds * rate
    except (BadClipError, ValueError) as error:
        raise gradio.Error(str(error)) from error


class Listener:
    """What there is to say about a sound.

    Args:
        model: folder or Hub id of a `BridleForPreTraining`.
        classifier: folder or Hub id of a `BridleForAudioClassification`, or None.
        clips: folder of sounds to find neighbours in, or None.
    """

    def __init__(self, model, classifier=None, clips=None):
        self.model, self.extractor = open_for_sounds(BridleForPreTraining, model, "--model")
        self.classifier = None
        if classifier:
            opened = open_for_sounds(BridleForAudioClassification, classifier, "--classifier")
            self.classifier, self.extractor_of_classifier = opened
        if clips and not Path(clips).is_dir():
            raise ValueError(f"--clips is {str(clips)!r}; it takes a folder of sounds.")
        self.folder, self.clips, self.features = clips, [], []
        for path in map(str, find_sounds(clips) if clips else ()):
            try:
                self.features.append(self.embed(read(path, self.extractor)[0]))
                self.clips.append(path)
            except gradio.Error as error:
                logger.warning("%s is left out: %s", path, error)

    @torch.no_grad()
    def embed(self, inputs):
        """A vector of unit length, (D,)."""
        return torch.nn.functional.normalize(self.model.bridle(**inputs).pooler_output[0], dim=-1).numpy()

    @torch.no_grad()
    def draw(self, inputs, is_cut=False):
        """The spectrogram with its codes and a map of the codes of each codebook, as HTML; `is_cut` says that it is
        the beginning of the sound."""
        values, mask = inputs["input_values"], inputs["attention_mask"]
        codes = self.model.tokenizer.encode(values, mask)[0].numpy()
        valid = patch_validity(self.model.bridle, values, mask)[0].numpy()
        grid = self.model.bridle.patch_layer.grid(values)
        drawn = MODALITIES[self.model.config.modality].picture(values[0].numpy(), codes, valid, grid)
        figure = plots.codes_over_picture(*drawn)
        note = (
            f"<p>The sound is longer: these are its first {window_of(self.extractor):.4g} seconds.</p>"
            if is_cut
            else ""
        )
        return f'<div style="{STYLE}">{note}{plots.to_svg(figure, "codes", "The sound and its codes")}</div>'

    @torch.no_grad()
    def classes(self, path):
        """Class -> probability, of the classifier's own window; None without a classifier."""
        if self.classifier is None:
            return None
        inputs, _ = read(path, self.extractor_of_classifier)
        logits, config = self.classifier(**inputs).logits[0], self.classifier.config
        several = config.problem_type == "multi_label_classification"
        scores = logits.sigmoid() if several else logits.softmax(dim=-1)
        return {config.id2label[label]: score for label, score in enumerate(scores.tolist())}

    def nearest(self, inputs):
        """(path, cosine similarity) of the `NEIGHBOURS` clips that are most similar, padded with (None, None)."""
        sound = self.embed(inputs)
        cosines = np.array([sound @ other for other in self.features])
        order = np.argsort(-cosines, kind="stable")[:NEIGHBOURS]
        found = [(self.clips[row], float(cosines[row])) for row in order]
        return found + [(None, None)] * (NEIGHBOURS - len(found))

    def __call__(self, path):
        """The picture, the classes, and the neighbours as (path, cosine similarity)."""
        if path is None:
            return "", None, *[(None, None)] * NEIGHBOURS
        inputs, is_cut = read(path, self.extractor)
        return self.draw(inputs, is_cut), self.classes(path), *self.nearest(inputs)

    def shown(self, path):
        """What the parts of the page are to show; a neighbour is called by its file, in the folder of all."""
        picture, classes, *nearest = self(path)
        players = []
        for number, (clip, cosine) in enumerate(nearest, start=1):
            name = f": {os.path.relpath(clip, self.folder)} ({cosine:.2f} alike)" if clip else ""
            players.append(gradio.Audio(clip, label=f"Neighbour {number}{name}"))
        return picture, classes, *players


def build(listener):
    """The page."""
    with gradio.Blocks(title="BRIDLE") as page:
        gradio.Markdown("# BRIDLE\nDrop a sound. Each patch of its spectrogram becomes one code per codebook.")
        sound = gradio.Audio(type="filepath", sources=["upload", "microphone"], label="Sound")
        codes = gradio.HTML(label="Codes", elem_id="codes")
        classes = gradio.Label(num_top_classes=5, label="Top classes", visible=listener.classifier is not None)
        with gradio.Row():
            nearest = [
                gradio.Audio(label=f"Neighbour {number}", interactive=False, visible=bool(listener.clips))
                for number in range(1, NEIGHBOURS + 1)
            ]
        sound.change(listener.shown, sound, [codes, classes, *nearest])
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found = os.environ.get
    parser.add_argument("--model", default=found("BRIDLE_MODEL"), help="of BridleForPreTraining: folder or Hub id")
    parser.add_argument("--classifier", default=found("BRIDLE_CLASSIFIER"), help="of BridleForAudioClassification")
    parser.add_argument("--clips", default=found("BRIDLE_CLIPS"), help="folder of sounds to find neighbours in")
    parser.add_argument("--port", type=int, help="7860 or the next free one by default")
    given = parser.parse_args()
    if gradio is None:
        parser.error('gradio is missing; pip install "bridle-hf[space]"')
    if not given.model:
        parser.error("--model is missing; it takes a folder or Hub id, or set BRIDLE_MODEL")
    with setting_up(parser):
        listener = Listener(given.model, given.classifier, given.clips)
    page = build(listener)
    page.launch(server_port=given.port, allowed_paths=[given.clips] if given.clips else None)


if __name__ == "__main__":
    main()
