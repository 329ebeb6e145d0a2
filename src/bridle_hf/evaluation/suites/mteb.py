"""MTEB, with its benchmarks of sounds (MAEB), images (MIEB) and videos (MVEB): an encoder, and what MTEB asks of it.

    import mteb
    from bridle_hf.evaluation.suites.mteb import model_meta

    model = model_meta("runs/mine/final").load_model()
    mteb.evaluate(model, mteb.get_tasks(["ESC50"]))

MTEB's base class where it is installed.
"""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from ...configuration_bridle import BridleConfig
from ...data.audio_decoding import decode_audio
from .pretrained import Pretrained, chosen_pooling, vector_size

try:
    from mteb.models.abs_encoder import AbsEncoder
except ImportError:
    AbsEncoder = object


class BridleEncoder(AbsEncoder):
    """One vector for each sound, image or video that MTEB's loaders give.

    Args:
        model_name: Hub id, where there is no `source`.
        revision: of the repository on the Hub.
        device: a GPU where there is one, by default.
        source: folder or Hub id.
        pooling, layer: see `Pretrained`.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        source: str | None = None,
        pooling: str | None = None,
        layer: int | None = None,
    ):
        source = source or model_name
        if revision:
            source = snapshot_download(source, revision=revision)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Pretrained(source, pooling, layer).to(device)

    @torch.no_grad()
    def encode(self, inputs, *, task_metadata=None, hf_split=None, hf_subset=None, prompt_type=None, **kwargs):
        """float32 array (N, clip_size) of the rows of a `DataLoader`. soxr resamples sounds, as in pretraining."""
        column = self.model.modality.name
        if collate := self._collator(column):
            inputs.collate_fn = collate
        return torch.cat([self.model.clips(batch[column]).cpu() for batch in inputs]).numpy()

    def _collator(self, column: str):
        """None where MTEB's own already gives a list."""
        if self.model.is_sound:
            rate = self.model.processor.sampling_rate

            def collate(rows):
                sounds = ({key: row[column][key] for key in ("array", "sampling_rate")} for row in rows)
                return {column: [decode_audio(sound, rate) for sound in sounds]}

            return collate
        if self.model.modality.has_time:
            from mteb.models.modality_collators import FramesCollator

            return FramesCollator(num_frames=self.model.model.config.num_frames)
        return None


def model_meta(source: str, name: str | None = None, revision: str | None = None, **options):
    """MTEB's `ModelMeta` of a pretrained model; its `load_model()` gives the encoder.

    Args:
        source: folder or Hub id.
        name: organization/model, under which MTEB files results; by default the Hub id, or the last two parts of the
            folder.
        revision: of the repository on the Hub.
        options: `pooling`, `layer`.
    """
    from mteb.models import ModelMeta

    config = BridleConfig.from_pretrained(source, revision=revision or "main")
    name = name or "/".join(("bridle_hf", *Path(source).resolve().parts)[-2:] if Path(source).is_dir() else (source,))
    return ModelMeta(
        loader=BridleEncoder,
        loader_kwargs={"source": source, **options},
        name=name,
        revision=revision,
        release_date=None,
        languages=None,
        n_parameters=None,
        memory_usage_mb=None,
        max_tokens=None,
        embed_dim=vector_size(config, chosen_pooling(options.get("pooling"))),
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "Transformers"],
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets=None,
        modalities=[config.modality],
    )
