"""BRIDLE: encoder, decoder, tokenizer and the pretraining objective over them, plus classification heads."""

import copy
from math import prod

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput, SequenceClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .clip_features_bridle import extract_features
from .codebook_bridle import Codebook
from .codebook_training_bridle import initialize_codebooks, start_encoder_phase, start_tokenizer_phase
from .cold_start_bridle import BridleColdStart
from .configuration_bridle import BridleConfig
from .layers_bridle import (
    BridleAttention,
    BridleLayer,
    BridlePatchEmbeddings,
    BridlePositions,
    evaluating,
    in_precision_of,
    padding_mask,
    pick_input,
    run,
    take,
)
from .losses_bridle import LossSum, cosine_loss, masked_cross_entropy, masked_mean, objective, phase_weights
from .masking_bridle import PatchMask, hide_lines, mask_from_noise, mask_from_positions, num_kept, structured_noise
from .outputs_bridle import BridleForPreTrainingOutput, BridleTokenizerOutput
from .quantization_bridle import QuantizerOutput, build_quantizer
from .swin_bridle import BridleWindowAttention, BridleWindows, swin_layers

logger = logging.get_logger(__name__)


class BridlePreTrainedModel(PreTrainedModel):
    config: BridleConfig
    base_model_prefix = "bridle"
    main_input_name = "input_values"
    input_modalities = ("audio", "image", "video")
    supports_gradient_checkpointing = True
    _no_split_modules = ["BridleEmbeddings", "BridleLayer", "BridleSwinLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": BridleLayer, "attentions": BridleAttention}
    _input_embed_layer = "patch_embeddings"
    accepts_loss_kwargs = False  # losses are means over a batch: `Trainer` divides them by its micro-batches

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        self.main_input_name = "input_values" if config.modality == "audio" else "pixel_values"

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, which fills buffers past `load_state_dict`."""
        loaded = super().from_pretrained(*args, **kwargs)
        for module in (loaded[0] if isinstance(loaded, tuple) else loaded).modules():
            if isinstance(module, Codebook):
                module.note_state_()
        return loaded

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers; `config.cold_start` is saved as that of the tokenizer whose weights are."""
        tokenizer = self if isinstance(self, BridleTokenizer) else getattr(self, "tokenizer", None)
        if tokenizer is not None:
            self.config.cold_start = tokenizer.cold_start is not None
        super().save_pretrained(save_directory, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        """Xavier for every projection, as in MAE and the reference code; buffers start from their defaults."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, BridleEmbeddings):
            if module.cls_token is not None:
                init.normal_(module.cls_token, std=self.config.initializer_range)
        elif isinstance(module, BridleDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
        elif isinstance(module, BridleWindowAttention):
            init.ones_(module.tau)
        elif isinstance(module, BridlePositions):
            if module.layout == "table":
                init.copy_(module.table, module.default_table())
        elif hasattr(module, "default_state"):  # codebooks of every kind, and the cold start
            for name, value in module.default_state().items():
                init.copy_(getattr(module, name), value)
        else:
            super()._init_weights(module)


class BridleEmbeddings(nn.Module):
    """Patches with their positions, the masked ones dropped, the CLS token (position zero) in front."""

    def __init__(self, config):
        super().__init__()
        self.patch_embeddings = BridlePatchEmbeddings(config)
        self.positions = BridlePositions(config, config.hidden_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_cls_token else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, values, patch_mask: PatchMask | None = None):
        """(B, ...), padding zero -> (rows, prefix + k, D); rows is B, or C * B with C masks per sample."""
        grid = self.patch_embeddings.grid(values)
        patches = self.patch_embeddings.patchify(values)  # (B, N, C * prod(patch_size))
        positions = self.positions(grid, patches)  # (1, N, D)
        if patch_mask is not None:
            patches, positions = take(patches, patch_mask.kept), take(positions, patch_mask.kept)
        hidden_states = self.patch_embeddings(patches) + positions
        if self.cls_token is not None:
            cls_token = self.cls_token.expand(hidden_states.shape[0], -1, -1).to(hidden_states.dtype)
            hidden_states = torch.cat([cls_token, hidden_states], dim=1)
        return self.dropout(hidden_states)


class BridleModel(BridlePreTrainedModel):
    """The ViT encoder over patches of a spectrogram, an image or a video.

    Args:
        config (`BridleConfig`)
        use_final_norm (`bool`): classification heads normalise after pooling instead and leave it out.
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^tokenizer\.", r"^classifier\.", r"^layernorm\."]

    def __init__(self, config: BridleConfig, use_final_norm: bool = True):
        super().__init__(config)
        self.embeddings = BridleEmbeddings(config)
        depth = config.num_hidden_layers
        self.layers = nn.ModuleList(
            BridleLayer(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                drop_path=config.drop_path_rate * i / max(1, depth - 1),
            )
            for i in range(depth)
        )
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm = norm if use_final_norm else nn.Identity()
        self.post_init()

    extract_features = extract_features

    @property
    def patch_layer(self) -> BridlePatchEmbeddings:
        """Cuts inputs into patches, and knows their grid."""
        return self.embeddings.patch_embeddings

    def make_patch_mask(
        self, values, attention_mask=None, noise=None, bool_masked_pos=None, valid=None
    ) -> PatchMask | None:
        """The mask that `noise` (rows, N) or `bool_masked_pos` (rows, N) stand for; `None` without either.

        Args:
            attention_mask, valid (*optional*): as in `forward`; padded patches are neither kept nor predicted.
        """
        chosen = {"noise": noise, "bool_masked_pos": bool_masked_pos}
        chosen = {name: given for name, given in chosen.items() if given is not None}
        if not chosen:
            return None
        if len(chosen) == 2:
            raise ValueError("`noise` and `bool_masked_pos` are both given; a mask takes one of them.")
        name, given = chosen.popitem()
        grid = self.patch_layer.grid(values)
        patches = prod(grid)
        if given.dim() != 2 or given.shape[1] != patches or given.shape[0] % values.shape[0]:
            raise ValueError(
                f"`{name}` has shape {tuple(given.shape)}; it takes ({values.shape[0]}, {patches}), "
                "one row per sample, or a multiple of rows for several masks per sample."
            )
        if attention_mask is not None:
            valid = self.patch_layer.real_patches(values, attention_mask)
        if valid is not None:
            valid = valid.repeat(given.shape[0] // values.shape[0], 1)
        if bool_masked_pos is not None:
            return mask_from_positions(bool_masked_pos, valid)
        ratio, kind = self.config.mask_ratio, self.config.mask_type
        num_keep = num_kept(grid, ratio, kind)
        noise = structured_noise(noise, grid, ratio, kind)
        return mask_from_noise(noise, num_keep, valid, self.config.predict_ratio)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        patch_mask: PatchMask | None = None,
        valid: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            input_values (`torch.FloatTensor` of shape (B, frames, mel)): a log-mel spectrogram.
            pixel_values (`torch.FloatTensor` of shape (B, C, H, W) or (B, T, C, H, W)): an image or a video.
            attention_mask (`torch.LongTensor` of shape (B, frames), *optional*): 1 for real frames, 0 for padding.
            noise (`torch.FloatTensor` of shape (B, N), *optional*): drops the patches that are not among the smallest.
                Several masks per sample: (C * B, N), row c * B + b masks sample b.
            bool_masked_pos (`torch.BoolTensor` of shape (B, N), *optional*): drops the patches that are true.
            patch_mask (`PatchMask`, *optional*): a mask made by `make_patch_mask`.
            valid (`torch.BoolTensor` of shape (B, N), *optional*): in place of `attention_mask`, where padded frames
                are zero already: True for patches with any real frame.
        Returns:
            `last_hidden_state` (B, 1 + N, D), the CLS token first where there is one; `pooler_output` (B, D), the mean
            over real patches or the CLS token, as `config.pooling` says.
        """
        values = pick_input(self, input_values, pixel_values)
        values, valid = self.patch_layer.mask_padding(values, attention_mask, valid)
        if patch_mask is None:
            patch_mask = self.make_patch_mask(values, None, noise, bool_masked_pos, valid)
        hidden_states = self.embeddings(values, patch_mask)
        if patch_mask is not None:
            valid = patch_mask.kept_valid
        prefix = int(self.embeddings.cls_token is not None)
        layer_mask = padding_mask(self.config, hidden_states, valid)
        for layer in self.layers:
            hidden_states = layer(hidden_states, layer_mask, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        if self.config.pooling == "cls":
            pooled = hidden_states[:, 0]
        else:
            pooled = masked_mean(hidden_states[:, prefix:], valid)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class BridleDecoder(nn.Module):
    """Put the encoder's tokens back in place, mask tokens elsewhere, and predict the codes of the masked patches."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width, heads = config.decoder_hidden_size, config.decoder_num_attention_heads
        self.codebook_sizes = config.quantizer_config.codebook_sizes
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = BridlePositions(config, width)
        self.is_swin = config.decoder_type == "swin"
        if self.is_swin:
            self.layers = swin_layers(config, width, heads, config.decoder_num_hidden_layers)
        else:
            self.layers = nn.ModuleList(
                BridleLayer(config, width, heads, 4 * width) for _ in range(config.decoder_num_hidden_layers)
            )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = nn.Linear(width, sum(self.codebook_sizes))

    def forward(self, hidden_states, patch_mask: PatchMask, grid, valid=None):
        """Encoder output (B, prefix + k, D) -> one vector for each kept and then each masked patch, (B, k + S, Dd).

        Args:
            valid (`torch.BoolTensor` of shape (B, N), *optional*): False for padded patches.
        """
        hidden_states = self.embed(hidden_states)
        prefix = hidden_states.shape[1] - patch_mask.kept.shape[1]
        cls_token, visible = hidden_states[:, :prefix], hidden_states[:, prefix:]
        if self.is_swin:
            return self._decode_grid(visible, patch_mask, grid, valid)
        return self._decode_sequence(cls_token, visible, patch_mask, grid)

    def _decode_sequence(self, cls_token, visible, patch_mask, grid):
        """Plain layers do not mind the order of patches, nor that some are missing: CLS, kept, masked."""
        index = torch.cat([patch_mask.kept, patch_mask.masked], dim=1)  # (B, k + S)
        mask_token = self.mask_token.to(visible.dtype).expand(*patch_mask.masked.shape, -1)
        tokens = torch.cat([visible, mask_token], dim=1) + take(self.positions(grid, self.mask_token), index)
        tokens = torch.cat([cls_token.to(tokens.dtype), tokens], dim=1)
        valid = None
        if patch_mask.kept_valid is not None:
            valid = torch.cat([patch_mask.kept_valid, patch_mask.masked_valid], dim=1)  # (B, k + S)
        layer_mask = padding_mask(self.config, tokens, valid)
        for layer in self.layers:
            tokens = layer(tokens, layer_mask)
        return tokens[:, cls_token.shape[1] :]

    def _decode_grid(self, visible, patch_mask, grid, valid):
        """Swin layers want the whole grid: visible tokens back in place, mask tokens elsewhere, no CLS."""
        batch_size, num_kept, _ = visible.shape
        # where each patch's token stands in [visible tokens, mask token]
        slots = torch.arange(num_kept, device=visible.device).expand(batch_size, -1)
        if patch_mask.kept_valid is not None:
            slots = slots.masked_fill(~patch_mask.kept_valid, num_kept)
        place = torch.full(patch_mask.mask.shape, num_kept, device=visible.device).scatter(1, patch_mask.kept, slots)
        mask_token = self.mask_token.to(visible.dtype).expand(batch_size, -1, -1)
        tokens = take(torch.cat([visible, mask_token], dim=1), place) + self.positions(grid, self.mask_token)
        window, shift = tuple(self.config.decoder_window_size), tuple(self.config.decoder_shift_size)
        windows = BridleWindows(grid, window, shift, valid, tokens)
        for layer in self.layers:
            tokens = layer(tokens, windows)
        return take(tokens, torch.cat([patch_mask.kept, patch_mask.masked], dim=1))

    def predict(self, tokens):
        """(B, n, Dd) -> logits (B, n, M, K), K that of the largest codebook; -inf for codes that another has not."""
        logits, sizes = self.head(self.norm(tokens)), self.codebook_sizes
        if len(set(sizes)) == 1:
            return logits.unflatten(-1, (len(sizes), sizes[0]))
        parts = logits.split(sizes, dim=-1)
        return torch.stack([F.pad(p, (0, max(sizes) - p.shape[-1]), value=-torch.inf) for p in parts], dim=-2)

    @torch.no_grad()
    def reset_head_(self):
        """Forget what the codes of the previous iteration were."""
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class BridleEstimator(nn.Module):
    """Guess the encoder's features from quantized vectors: (B, N, d) -> (B, N, D)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width = config.estimator_hidden_size
        self.embed = nn.Linear(config.quantizer_config.codebook_dim, width)
        self.positions = BridlePositions(config, width)
        self.layers = nn.ModuleList(
            BridleLayer(config, width, config.estimator_num_attention_heads, 4 * width)
            for _ in range(config.estimator_num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = nn.Linear(width, config.hidden_size)

    def forward(self, quantized, grid, valid=None):
        quantized = in_precision_of(self.embed, quantized)
        hidden_states = self.embed(quantized) + self.positions(grid, quantized)
        layer_mask = padding_mask(self.config, hidden_states, valid)
        for layer in self.layers:
            hidden_states = layer(hidden_states, layer_mask)
        return self.head(self.norm(hidden_states))


class BridleTokenizer(BridlePreTrainedModel):
    """Turns every patch into M codes.

    It is one of two things. In the cold start (iteration 1) a `BridleColdStart` feeds the quantizer, and nothing is
    trained. `reset_` replaces that by a transformer of the encoder's shape, and adds the estimator, which a tokenizer
    phase trains. Weights say which of the two they are of, by their names; `config.cold_start` says with which one a
    new tokenizer begins, and is written by `save_pretrained` for the weights beside it.

    Attributes:
        cold_start (`BridleColdStart` or `None`)
        encoder (`BridleModel`), quantize_layer, estimator: `None` in the cold start.
    """

    base_model_prefix = "tokenizer"
    # Of folders written before the cold start was a module of its own.
    _keys_to_ignore_on_load_unexpected = [r"^bridle\.", r"^decoder\.", r"^cold_projection$"]

    def __init__(self, config: BridleConfig):
        super().__init__(config)
        self.cold_start = BridleColdStart(config) if config.cold_start else None
        self.encoder = self.quantize_layer = self.estimator = None
        if not config.cold_start:
            width, dim = config.hidden_size, config.quantizer_config.codebook_dim
            self.encoder = BridleModel(config)
            self.quantize_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dim))
        self.quantizer = build_quantizer(config.quantizer_config, cold_start=config.cold_start)
        if not config.cold_start:
            self.estimator = BridleEstimator(config)
        self.post_init()

    @property
    def patch_layer(self) -> BridlePatchEmbeddings:
        """Cuts inputs into patches, and knows their grid."""
        part = self.encoder.embeddings if self.cold_start is None else self.cold_start
        return part.patch_embeddings

    def project(self, values, attention_mask=None, valid=None) -> torch.Tensor:
        """What the quantizer receives: (B, N, d), in the ambient precision.

        Args:
            attention_mask, valid (*optional*): as in `BridleModel`.
        """
        values, valid = self.patch_layer.mask_padding(values, attention_mask, valid)
        if self.cold_start is not None:
            return self.cold_start(values)
        hidden_states = run(self.encoder, values, valid=valid).last_hidden_state
        return self.quantize_layer(hidden_states[:, int(self.config.use_cls_token) :])

    @torch.no_grad()
    def encode(self, values=None, attention_mask=None, *, input_values=None, pixel_values=None) -> torch.Tensor:
        """Codes of every patch: int64 (B, N, M). Computed without autocast, so they are the same under bf16 and fp32,
        and without dropout, also while the tokenizer trains.

        Args:
            values: `input_values` or `pixel_values`, which may also be given by their names.
            attention_mask (`torch.LongTensor` of shape (B, frames), *optional*): padded patches get codes too, to be
                ignored, and do not change those of the others.
        """
        values = pick_input(self, input_values, pixel_values) if values is None else values
        if not torch.compiler.is_compiling() and not self.quantizer.initialized:
            logger.warning_once(
                "The codebooks were never set from data, and most inputs get the same few codes: load a trained "
                "tokenizer, or call `tokenizer.quantizer.initialize_(tokenizer.project(values))` on a sample."
            )
        with torch.autocast(values.device.type, enabled=False), evaluating(self):
            return self.quantizer.encode(self.project(values, attention_mask))

    def decode(self, codes: torch.Tensor, grid: tuple[int, ...] | None = None) -> torch.Tensor:
        """The features that codes (B, N, M) stand for: (B, N, D). The estimator's guess of the encoder's features, or
        in the cold start, which has no estimator, patch embeddings (see `BridleColdStart.features`).

        Args:
            grid: patches along each axis of the input. When left out `config.grid`, of sounds as many rows as there are
                codes for.
        """
        vectors = self.quantizer.decode(codes)  # (B, N, d)
        patches, usual = vectors.shape[-2], self.config.grid
        if grid is None:
            grid = (patches // usual[1], usual[1]) if self.config.modality == "audio" else usual
        if len(grid) != len(usual) or prod(grid) != patches:
            raise ValueError(
                f"`grid` is {tuple(grid)} and `codes` has shape {tuple(codes.shape)}; `grid` takes {len(usual)} "
                f"numbers whose product is the {patches} patches."
            )
        return self._features(vectors, tuple(grid))

    def _features(self, quantized, grid, valid=None):
        if self.cold_start is not None:
            return self.cold_start.features(quantized)
        return self.estimator(quantized, grid, valid)

    def quantize(self, values, attention_mask=None, valid=None) -> QuantizerOutput:
        """The quantizer's output for an input: `quantized` (B, N, d), `codes` (B, N, M), losses and statistics."""
        values, valid = self.patch_layer.mask_padding(values, attention_mask, valid)
        return self.quantizer(self.project(values, valid=valid), mask=valid)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
        **kwargs,
    ) -> BridleTokenizerOutput:
        values = pick_input(self, input_values, pixel_values)
        values, valid = self.patch_layer.mask_padding(values, attention_mask, valid)
        projected = self.project(values, valid=valid)
        output = self.quantizer(projected, mask=valid)
        features = self._features(output.quantized, self.patch_layer.grid(values), valid)
        return BridleTokenizerOutput(
            loss=output.loss,
            features=features,
            codes=output.codes,
            losses=output.losses,
            quantizer_stats=output.stats,
            projected=projected.detach(),
        )

    def update_(self, stats: dict):
        """Move the codebooks (eq. 9-13) by the statistics of one optimizer step."""
        self.quantizer.update_(stats)

    @torch.no_grad()
    def reset_(self):
        """Start a tokenizer phase: new weights and codebooks from the global random state, and no cold start."""
        config = copy.deepcopy(self.config)
        config.cold_start = False
        place, training = {"device": self.device, "dtype": self.dtype}, self.training
        # a stored table cannot be drawn again
        tables = {name: table for name, table in self.state_dict().items() if name.endswith("positions.table")}
        fresh = BridleTokenizer(config)
        fresh.load_state_dict(fresh.state_dict() | {n: t for n, t in tables.items() if n in fresh.state_dict()})
        self.cold_start = None
        del self.quantizer  # set again in its turn: sums over parameters, such as norms, are taken in their order
        for name in ("encoder", "quantize_layer", "quantizer", "estimator"):
            setattr(self, name, getattr(fresh, name).to(**place).train(training))

    def get_input_embeddings(self):
        return self.patch_layer


class BridleForPreTraining(BridlePreTrainedModel):
    """Encoder, decoder and tokenizer with the losses of the three kinds of phase.

    Set the codebooks of a new model before training, by `initialize_codebooks`; a training step on others warns. Under
    transformers' `Trainer`, `bridle_hf.BridleTrainerCallback` does it, and moves codebooks that have no gradients.

    Attributes:
        phase: the `phase` of a `forward` that names none, "encoder" at first.
    """

    phase = "encoder"

    def __init__(self, config: BridleConfig):
        super().__init__(config)
        self.bridle = BridleModel(config)
        self.decoder = BridleDecoder(config)
        self.tokenizer = BridleTokenizer(config)
        self.post_init()

    initialize_codebooks = initialize_codebooks
    start_tokenizer_phase = start_tokenizer_phase
    start_encoder_phase = start_encoder_phase

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        patch_mask: PatchMask | None = None,
        valid: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        phase: str | None = None,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BridleForPreTrainingOutput:
        r"""
        Args:
            noise, bool_masked_pos, patch_mask, valid: as in `BridleModel`. Without a mask one is drawn while training,
                and is one fixed mask in evaluation.
            codes (`torch.LongTensor` of shape (B, N, M), *optional*): targets of the encoder phase that are known
                already. Otherwise the tokenizer makes them, without dropout. Under bf16 autocast they are those of
                `tokenizer.encode` during the cold start; after it the tokenizer's encoder runs in bf16 too, and of the
                codes of a codebook 97.6 to 99.95 % were the same in one measurement. Give `codes=tokenizer.encode(...)`
                for equal ones. In the joint phase the targets are the codes that the tokenizer trains on. Not taken
                where `config.soft_targets` asks for several codes per codebook.
            phase (`str`, *optional*): `"encoder"` predicts the codes of masked patches (eq. 4, mean over patches and
                codebooks), `"tokenizer"` trains the tokenizer against the frozen encoder (eq. 5, 6), `"joint"` does
                both (eq. 8). By default that of the attribute `phase`.
            return_loss (`bool`): `False` leaves `loss` out. Its name tells `Trainer.evaluate` that there is one.
        """
        phase = phase or self.phase
        weights = phase_weights(self.config, phase)
        if self.training and not torch.compiler.is_compiling() and not self.tokenizer.quantizer.was_set:
            logger.warning_once(
                "The codebooks were never set from data, and training on them says next to nothing: most inputs get "
                "the same few codes. Call `model.initialize_codebooks(batches)` first."
            )
        values = pick_input(self, input_values, pixel_values)
        values, valid = self.bridle.patch_layer.mask_padding(values, attention_mask, valid)
        losses, fields, projected = {}, {}, None
        if phase != "encoder":
            fields |= self._tokenizer_losses(losses, values, valid)
            codes, projected = fields["codes"], fields.pop("projected")
        if phase != "tokenizer":
            if patch_mask is None:
                if noise is None and bool_masked_pos is None:
                    noise = self._default_noise(values)
                patch_mask = self.bridle.make_patch_mask(values, None, noise, bool_masked_pos, valid)
            fields |= self._encoder_losses(losses, values, valid, patch_mask, codes, projected, **kwargs)
        loss = objective(losses, weights) if return_loss else None
        return BridleForPreTrainingOutput(loss=loss, losses=losses, **fields)

    def _encoder_losses(self, losses, values, valid, patch_mask, codes, projected, **kwargs):
        grid = self.bridle.patch_layer.grid(values)
        soft = broken = None
        if codes is not None and projected is None and self.config.soft_targets:
            raise ValueError("`codes` is given; where `config.soft_targets` is not 0 the tokenizer makes the targets.")
        if codes is not None and codes.shape != (len(values), prod(grid), self.tokenizer.quantizer.num_codebooks):
            raise ValueError(f"`codes` is {tuple(codes.shape)}; it takes (B, N, M), N = {prod(grid)}.")
        if codes is None:
            with torch.no_grad(), evaluating(self.tokenizer):
                z = self.tokenizer.project(values, valid=valid)
                # NaN shows in the loss: an error here, in one of many processes, would leave the others waiting
                broken = ~torch.isfinite(z.float().sum())
                projected = z.masked_fill(broken, 0.0)
                codes = self.tokenizer.quantizer.assign(projected)
        encoded = run(self.bridle, values, patch_mask=patch_mask, **kwargs)
        copies = patch_mask.mask.shape[0] // values.shape[0]
        valid = None if valid is None else valid.repeat(copies, 1)
        tokens = self.decoder(encoded.last_hidden_state, patch_mask, grid, valid)
        logits = self.decoder.predict(tokens[:, patch_mask.kept.shape[1] :])  # (B, S, M, K)
        labels = take(codes, patch_mask.masked)  # (B, S, M)
        if patch_mask.masked_valid is not None:
            labels = labels.masked_fill(~patch_mask.masked_valid[..., None], -100)
        if self.config.soft_targets:
            soft = self.tokenizer.quantizer.soft_assign(projected, self.config.soft_targets)  # two of (B, N, M, k)
            soft = [take(each.flatten(2), patch_mask.masked).unflatten(-1, each.shape[2:]) for each in soft]
        total, count = masked_cross_entropy(logits, labels, soft)
        losses["encoder"] = LossSum(total if broken is None else total.masked_fill(broken, float("nan")), count)
        return {
            "logits": logits,
            "labels": labels,
            "codes": codes,
            "mask": patch_mask.mask,
            "hidden_states": encoded.hidden_states,
            "attentions": encoded.attentions,
        }

    def _tokenizer_losses(self, losses, values, valid):
        # Targets without chance, also where the teacher trains in the same step.
        with torch.no_grad(), evaluating(self.bridle):
            teacher = run(self.bridle, values, valid=valid).last_hidden_state
        teacher = teacher[:, int(self.config.use_cls_token) :]  # (B, N, D)
        student = run(self.tokenizer, values, valid=valid)
        losses["cosine"] = cosine_loss(student.features, teacher, valid)
        losses |= {name: LossSum.of_mean(loss, losses["cosine"].count) for name, loss in student.losses.items()}
        return {"codes": student.codes, "quantizer_stats": student.quantizer_stats, "projected": student.projected}

    def _default_noise(self, values):
        patches = prod(self.bridle.patch_layer.grid(values))
        if self.training:
            return torch.rand(values.shape[0], patches, device=values.device)
        noise = torch.rand(1, patches, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        return noise.to(values.device).expand(values.shape[0], -1)


class BridleForClassification(BridlePreTrainedModel):
    """Mean over patches or CLS, norm (at first the encoder's), linear head. They differ in their first argument."""

    _keys_to_ignore_on_load_unexpected = [r"^bridle\.layernorm\.", r"^decoder\.", r"^tokenizer\."]
    output_class = SequenceClassifierOutput

    def __init__(self, config: BridleConfig):
        super().__init__(config)
        config.validate()  # `from_pretrained(..., id2label=...)` changes it without looking
        self.num_labels = config.num_labels
        self.bridle = BridleModel(config, use_final_norm=False)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _classify(self, values, attention_mask, labels, **kwargs):
        values = pick_input(self, values, values)
        values, valid = self.bridle.patch_layer.mask_padding(values, attention_mask)
        hides = self.training and any(self.config.classifier_mask_ratio)
        patch_mask = self._training_mask(values, valid) if hides else None
        outputs = run(self.bridle, values, patch_mask=patch_mask, valid=valid, **kwargs)
        logits = self.classifier(self.layernorm(outputs.pooler_output))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return self.output_class(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _training_mask(self, values, valid):
        """Hide a share of the patches (the paper's 1D masking) or of the rows and columns (2D); padding is no patch."""
        grid, ratio = self.bridle.patch_layer.grid(values), tuple(self.config.classifier_mask_ratio)
        if len(ratio) not in (1, len(grid)):
            raise ValueError(
                f"`classifier_mask_ratio` is {ratio}; it takes {len(grid)} numbers, one per axis, or 1 for all patches."
            )
        noise = torch.rand(values.shape[0], prod(grid), device=values.device)
        if len(ratio) == 1:
            return mask_from_noise(noise, num_kept(grid, ratio[0], "random"), valid)
        keep = [max(1, int(n * (1 - r))) for n, r in zip(grid, ratio, strict=True)]
        return mask_from_noise(hide_lines(noise, grid, keep), prod(keep), valid)


class BridleForAudioClassification(BridleForClassification):
    """Sound classification or tagging: `logits` (B, num_labels)."""

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        return self._classify(input_values, attention_mask, labels, **kwargs)


class BridleForImageClassification(BridleForClassification):
    """Image classification: `logits` (B, num_labels)."""

    main_input_name = "pixel_values"
    output_class = ImageClassifierOutput

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        return self._classify(pixel_values, None, labels, **kwargs)


class BridleForVideoClassification(BridleForImageClassification):
    """Video classification: `logits` (B, num_labels). Its `pixel_values` are (B, T, C, H, W)."""


__all__ = [
    "BridleForAudioClassification",
    "BridleForImageClassification",
    "BridleForPreTraining",
    "BridleForVideoClassification",
    "BridleModel",
    "BridlePreTrainedModel",
    "BridleTokenizer",
]
