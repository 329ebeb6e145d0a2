"""The codebook report: one self-contained HTML page about the tokens of a pretraining run."""

import copy
import logging

import numpy as np
import torch

from ..codebook_metrics import code_counts, few_codes
from ..modeling_bridle import BridleTokenizer
from . import plots
from .listening import code_distances, excerpt, nearest_patches, wav_in_base64
from .page import figure, heading, player, players, table, tiles, warning, write_page
from .quality import code_norms, initialize_codebooks_, predictor_quality, tokenize, tokenizer_quality

logger = logging.getLogger(__name__)

PREDICTED = "By the decoder, from the visible patches."
NOT_LEARNED = (
    "By the decoder, which has not been trained on these codes: the run ended with a tokenizer phase. A further "
    "encoder phase would train it on them. The curves of the run show how well it predicted the earlier codes."
)

USAGE_COLUMNS = {
    "cur": "CUR",
    "entropy": "entropy, bits",
    "perplexity": "perplexity",
    "ecu": "ECU",
    "ecu_table6": "table 6 figure",
    "dead": "dead codes",
    "residual_energy": "energy left",
    "position_information": "bits of position",
    "first_code_information": "bits shared with code 1",
}


def usage_table(qualities):
    """CUR, ECU, perplexity and the other columns, with one row per codebook of each tokenizer."""
    rows = [
        [f"{name}, codebook {stage + 1}", *(None if q[key] is None else q[key][stage] for key in USAGE_COLUMNS)]
        for name, q in qualities.items()
        for stage in range(len(q["cur"]))
    ]
    return table(["tokenizer", *USAGE_COLUMNS.values()], rows)


def cold_start_tokenizer(config, examples, seed=0):
    """The tokenizer of iteration 1 for a config: a frozen random projection, with codebooks set from `examples`."""
    config = copy.deepcopy(config)
    config.cold_start = True
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = BridleTokenizer(config)
    initialize_codebooks_(tokenizer, examples, seed=seed)
    return tokenizer


def codebook_report(path, model, examples, *, name, records=(), results=(), clips=2, sounds=None, batch_size=32):
    """Measures the tokenizer of a pretrained model on labelled or unlabelled clips and writes the page.

    Args:
        path: of the HTML file.
        model: `BridleForPreTraining`.
        examples: as `load_examples` gives them; best clips that pretraining did not see.
        name (`str`): what the page calls the model.
        records: of the run's metrics.jsonl, for the loss curves.
        results: rows of a results table, dicts with the same keys (`{"features": "random", "accuracy": 0.65}`).
        clips (`int`): how many clips to draw codes over, evenly spaced.
        sounds: numbers of clips -> dict number -> samples at the model's rate, see `data.source.sound_reader`; with it
            the page plays the clips nearest to some codes.

    Returns:
        dict name of a tokenizer -> `tokenizer_quality`: "cold start", unless the clips have fewer patches than a
        codebook has codes, and "trained" where the tokenizer was trained.
    """
    config = model.config
    if model.tokenizer.cold_start is not None:
        tokenizers = {"cold start": model.tokenizer}
    else:
        tokenizers = {}
        try:
            tokenizers["cold start"] = cold_start_tokenizer(config, examples).to(model.device)
        except ValueError as error:  # fewer patches than codes
            logger.warning("the report leaves out the cold start, whose codebooks these clips cannot set: %s", error)
        tokenizers["trained"] = model.tokenizer
    tokens = {key: tokenize(tokenizer, examples, batch_size) for key, tokenizer in tokenizers.items()}
    qualities = {
        key: tokenizer_quality(tokenizer, examples, batch_size=batch_size, tokens=tokens[key])
        for key, tokenizer in tokenizers.items()
    }
    predictor = predictor_quality(model, examples, batch_size)
    phases = [record["phase"] for record in records if "phase" in record]
    learned = not phases or not phases[-1].startswith("tokenizer")  # whether the decoder was trained on these codes
    last = list(tokenizers)[-1]
    codes, valid = tokens[last]
    quality, quantizer = qualities[last], config.quantizer_config
    sizes = quantizer.codebook_sizes
    held = f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 else " + ".join(map(str, sizes))

    bag_of_codes = "bag-of-codes accuracy" if examples.labels is not None else "bag-of-codes accuracy (needs labels)"
    parts = [
        tiles(
            {
                bag_of_codes: _percent(quality["bag_of_codes"]),
                "mean ECU": float(np.mean(quality["ecu"])),
                "energy left at the end": _percent((quality["residual_energy"] or [None])[-1]),
                "position in the first code": f"{quality['position_information'][0]:.2f} bits",
                "codes predicted right": _percent(float(np.mean(predictor["accuracy"]))) if learned else None,
            }
        )
    ]
    if results:
        parts += [heading("Results"), table(results[0], [list(row.values()) for row in results])]
    if records:
        caption = (
            "Training loss. The encoder's is the cross-entropy of masked codes in nats; it says how predictable the "
            "codes are, not how good the features."
        )
        parts += [heading("Loss"), figure("loss", plots.loss_curves(records), caption)]
        if curves := plots.codebook_curves(records):
            caption = "The codebooks in training: a batch holds far fewer patches than the table below is made of."
            parts += [figure("codebooks", curves, caption)]
        if curves := plots.evaluation_curves(records):
            caption = (
                "The frozen encoder while it trained, from random weights on. A dashed line is where a later phase "
                "that trains it begins. RankMe counts the directions in use, and the spread is 0 where all features "
                "are one."
            )
            parts += [heading("Features while it trained"), figure("evaluation", curves, caption)]
    parts += [
        heading(
            "Use of the codebooks",
            "CUR is the share of codes in use, ECU = CUR x entropy / log K (1 is uniform). The table 6 figure of the "
            "paper divides by the entropy and mixes log bases: there lower is more even, and it is given for "
            "comparison alone. Bits are bias-corrected mutual information. The cold start is drawn anew, with "
            "codebooks set from these clips.",
        ),
        *map(warning, few_codes(quality["perplexity"], sizes, quality["patches"])),
        usage_table(qualities),
        figure(
            "histograms",
            plots.code_histograms({k: code_counts(c[v], sizes) for k, (c, v) in tokens.items()}, sizes),
            f"Share of each code of {held}, most frequent first. Dashed: all codes equally often.",
        ),
    ]
    norms = {name: code_norms(tokenizer.quantizer) for name, tokenizer in tokenizers.items()}
    if norms[last]:
        caption = (
            "All codes by their length, before training (the cold start) and after: the paper's figure 2 for one "
            "codebook (VQ) and figure 3 for several (RQ)."
        )
        drawings = plots.norm_histograms({name: lengths for name, lengths in norms.items() if lengths})
        parts += [heading("Norms of the codes"), figure("code-norms", drawings, caption)]
    if quality["code_norm"] is not None:
        caption = "Each stage of residual quantization codes what the stages before left over."
        parts += [heading("Norms by depth"), figure("norms", plots.norms_by_depth(qualities), caption)]
    rows = [
        [f"codebook {stage + 1}", quality["entropy"][stage], *(predictor[key][stage] for key in predictor)]
        for stage in range(quantizer.num_codebooks)
    ]
    parts += [
        heading("Prediction of masked codes", PREDICTED if learned else NOT_LEARNED),
        table(["", "entropy, bits", "cross-entropy, bits", "accuracy", "share explained"], rows),
        heading("Codes over clips"),
    ]
    for row in np.unique(np.linspace(0, len(codes) - 1, clips).round().astype(int)):
        values = examples.batch([row])[model.main_input_name]
        grid = model.bridle.patch_layer.grid(torch.as_tensor(values))
        drawing = plots.codes_over_picture(*examples.modality.picture(values[0], codes[row], valid[row], grid))
        caption = f"{named(examples, row)}. In the maps, patches of one colour share a code."
        parts.append(figure(f"clip-{row}", [drawing], caption, layout="wide"))
    if sounds is not None:
        parts += listen(tokenizers[last], examples, codes, valid, sounds, batch_size)
    subtitle = (
        f"{quantizer.type} quantizer, {held} codes, measured on {len(codes)} clips ({quality['patches']} patches)"
    )
    write_page(path, f"Codebooks of {name}", subtitle, parts)
    return qualities


def listen(tokenizer, examples, codes, valid, sounds, batch_size):
    """Parts of the page that play the patches nearest to some codes of the first codebook."""
    distances = code_distances(tokenizer, examples, codes, valid, batch_size)
    if distances is None:
        return []
    nearest = nearest_patches(codes, distances)
    samples = sounds({row for found in nearest.values() for row, _ in found})
    grid, rate = tokenizer.config.grid, examples.collate.sampling_rate
    seconds = tokenizer.config.patch_size[0] * examples.collate.hop_seconds
    note = (
        "For codes of the first codebook, frequent ones first: the second around the patch nearest to the code, of the "
    )
    parts = [heading("What codes sound like", note + "three clips that have the nearest. Scaled to one loudness.")]
    for code, found in nearest.items():
        sounding = []
        for row, patch in found:
            sound = excerpt(samples[row], rate, patch, grid, seconds)
            sounding.append(player(wav_in_base64(sound, rate), named(examples, row)))
        share = (codes[..., 0] == code)[valid].mean()
        parts.append(players(f"Code {code}, {_percent(share)} of the patches", sounding))
    return parts


def named(examples, row):
    """Caption of a clip: its name and its classes."""
    name = examples.clip_names[row] if examples.clip_names else f"clip {row + 1}"
    labels = ", ".join(examples.labels_of(row))
    return f"{name}, class {labels}" if labels else name


def _percent(share):
    return None if share is None else f"{100 * share:.1f} %"
