"""The command line: reference checkpoints into folders that `from_pretrained` reads, and back to the bit."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, AutoModelForPreTraining

from bridle_hf.configuration_bridle import BridleConfig
from bridle_hf.hub import convert as command
from bridle_hf.hub import load_official, to_official
from bridle_hf.hub.convert import RESIDUE, convert, main, reverse
from bridle_hf.modeling_bridle import BridleForPreTraining, BridleModel

FOUR = {"num_attention_heads": 4}
HEADS = ["num_attention_heads=4"]
PLAIN = [*HEADS, "decoder_num_attention_heads=4"]
# what no shape tells, as words of a command line
OPTIONS = {
    "audio_rq": ["--modality", "audio", *HEADS],
    "audio_vq": HEADS,
    "image": ["--modality", "image", *PLAIN],
    "video_rq": ["--modality", "video", *PLAIN, "estimator_num_attention_heads=4", "input_size=[16, 64, 64]"],
    "finetune_audio": HEADS,
}


@pytest.fixture(scope="module")
def golden(golden_dir):
    """name -> (reference weights, first input in our layout, outputs)"""

    def golden(name):
        tensors = load_file(golden_dir / f"{name}.safetensors")
        weights, inputs, outputs = (
            {key.removeprefix(part): tensor for key, tensor in tensors.items() if key.startswith(part)}
            for part in ("weights/", "inputs/", "outputs/")
        )
        if "input_values" in inputs:
            return weights, {"input_values": inputs["input_values"][:, 0]}, outputs
        values = inputs["pixel_values"]
        return weights, {"pixel_values": values if values.dim() == 4 else values.transpose(1, 2)}, outputs

    return golden


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in state.items())


@pytest.mark.parametrize("name", OPTIONS)
def test_there_and_back(golden, name, tmp_path):
    weights, inputs, outputs = golden(name)
    torch.save({"model": weights, "epoch": 3}, tmp_path / "checkpoint.pth")
    main([str(tmp_path / "checkpoint.pth"), str(tmp_path / "folder"), "--source", "bridle", *OPTIONS[name]])
    with torch.no_grad():
        if name == "finetune_audio":
            model = AutoModelForAudioClassification.from_pretrained(tmp_path / "folder")
            torch.testing.assert_close(model(**inputs).logits, outputs["logits"], rtol=0, atol=1e-4)
        else:
            features = AutoModel.from_pretrained(tmp_path / "folder")(**inputs).last_hidden_state
            torch.testing.assert_close(features, outputs["features"], rtol=0, atol=1e-4)
            AutoModelForPreTraining.from_pretrained(tmp_path / "folder")
    main([str(tmp_path / "folder"), str(tmp_path / "back.pth"), "--source", "bridle", "--reverse"])
    assert same(torch.load(tmp_path / "back.pth", weights_only=True)["model"], weights)


def test_safetensors_there_and_back(golden, tmp_path):
    weights, *_ = golden("image")
    save_file(weights, tmp_path / "checkpoint.safetensors")
    main([str(tmp_path / "checkpoint.safetensors"), str(tmp_path / "folder"), "--source", "bridle", *OPTIONS["image"]])
    reverse(tmp_path / "folder", tmp_path / "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), weights)


def test_weights_that_have_moved_since_are_written_as_they_are(golden, tmp_path):
    weights, *_ = golden("finetune_audio")
    convert(weights, tmp_path / "folder", num_attention_heads=4)
    assert set(load_file(tmp_path / "folder" / RESIDUE)) == {"cls_token", "pos_embed"}
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "folder")
    with torch.no_grad():
        model.bridle.embeddings.cls_token += 1
    model.save_pretrained(tmp_path / "folder")
    reverse(tmp_path / "folder", tmp_path / "back.pth")
    again = load_official(tmp_path / "back.pth", type(model), num_attention_heads=4)
    assert same(again.state_dict(), model.state_dict())


SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2, "estimator_num_hidden_layers": 1,
    "quantizer_config": {"codebook_size": 8, "codebook_dim": 8, "num_codebooks": 2},
}  # fmt: skip


def trained(**options):
    torch.manual_seed(0)
    model = BridleForPreTraining(BridleConfig(**{**SMALL, **options}))
    for book in model.tokenizer.quantizer.codebooks:
        book.set_(torch.randn(book.embed.shape), torch.ones(book.num_codes))
    return model


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"input_size": (64, 128)}, {"encoder_decoder.pos_embed", "tokenizer.quantizer.codebooks.1.weight"}),
        ({"modality": "image", "input_size": (32, 32), "decoder_type": "plain"}, {"encoder_decoder.decoder_pos_embed"}),
        ({"quantizer_config": {"type": "vector", "codebook_size": 8}, "input_size": (64, 128)},
         {"tokenizer.quantizer.embedding.weight", "tokenizer.quantizer.embedding.cluster_size"}),
        ({"modality": "video", "preset": "official", "cold_start": False}, {"tokenizer.encoder.blocks.1.attn.v_bias"}),
        ({"input_size": (64, 128), "cold_start": False}, {"tokenizer.quantize_layer.0.weight"}),
    ],
)  # fmt: skip
def test_a_model_of_ours_there_and_back(options, names):
    model = trained(**options)
    state = to_official(model)
    assert names <= set(state)
    heads = ("num_attention_heads", "decoder_num_attention_heads", "estimator_num_attention_heads")
    again = load_official(state, modality=model.config.modality, **dict.fromkeys(heads, 2))
    assert same(again.state_dict(), model.state_dict())
    assert again.config.position_layout == model.config.position_layout


def test_the_encoder_alone(tmp_path):
    model = trained(input_size=(64, 128))
    convert(to_official(model.bridle), tmp_path, num_attention_heads=2)
    assert same(AutoModel.from_pretrained(tmp_path).state_dict(), model.bridle.state_dict())
    again = load_official(to_official(model, "audiomae"), BridleModel, num_attention_heads=2)
    assert same(again.state_dict(), model.bridle.state_dict())


def test_what_the_reference_has_no_place_for():
    with pytest.raises(ValueError, match="`quantizer_config.type` is 'random_projection'; the reference has"):
        to_official(BridleForPreTraining(BridleConfig(**SMALL | {"quantizer_config": {"type": "random_projection"}})))
    video = trained(modality="video", preset="official")
    with torch.no_grad():
        video.decoder.embed.bias[0] = 1
    with pytest.raises(ValueError, match="bridle has no place for decoder.embed.bias"):
        to_official(video)
    with pytest.raises(ValueError, match="no place for decoder.positions.table, tokenizer.estimator.positions.table"):
        to_official(trained(modality="video", input_size=(4, 32, 32), use_cls_token=False, cold_start=False))


def test_the_processor_is_saved_with_the_model(golden, tmp_path):
    weights, *_ = golden("finetune_audio")
    convert(weights, tmp_path / "esc50", num_attention_heads=4, processor={"mean": -6.6268077, "std": 5.358466})
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "esc50")
    assert (extractor.max_length, extractor.num_mel_bins, extractor.pad_to_multiple_of) == (512, 128, 16)
    assert (extractor.mean, extractor.std) == (-6.6268077, 5.358466)
    convert(weights, tmp_path / "audiomae", source="audiomae", num_attention_heads=4)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "audiomae")
    assert (extractor.mean, extractor.std) == (-4.2677393, 4.5689974)


def test_unknown_arguments_of_the_processor(golden, tmp_path):
    with pytest.raises(ValueError, match="`processor.men` is no argument of BridleFeatureExtractor"):
        convert(golden("finetune_audio")[0], tmp_path, num_attention_heads=4, processor={"men": -6.6})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a={b"], "'a={b': the value is no YAML"),
        (["processor=5"], "`processor` is 5; it takes a mapping"),
        (["processor={men: 1}"], "`processor.men` is no argument"),
        (["modality=image"], "'modality' is no field of BridleConfig that can be set here; give --modality"),
        (["folder=x"], "'folder' is no field of BridleConfig that can be set here"),
        (["return_report=true"], "'return_report' is no field of BridleConfig that can be set here"),
        (["input_size=5"], "`input_size` is 5; it takes 2 whole numbers"),
        (["input_size=[512]"], "`input_size` is [512]; it takes 2 whole numbers"),
        (["input_size=[a, b]"], "`input_size` is ['a', 'b']; it takes 2 whole numbers"),
        (["position_layout=sin"], "`position_layout` is 'sin'; it takes one of 'grid', 'wrapped', 'flat', 'table'"),
        (["quantizer_config=5"], "`quantizer_config` is 5; it takes a mapping"),
    ],
)
def test_the_command_says_it_in_one_line(words, message, golden, tmp_path, capsys):
    save_file(golden("finetune_audio")[0], tmp_path / "in.safetensors")
    given = [str(tmp_path / "in.safetensors"), str(tmp_path / "out"), "--source", "bridle", "num_attention_heads=4"]
    with pytest.raises(SystemExit, match="2"):
        main([*given, *words])
    assert message in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "out").exists()
    (tmp_path / "out").touch()
    with pytest.raises(SystemExit, match="2"):
        main(given)
    assert f"OUT_DIR is '{tmp_path}/out', and " in capsys.readouterr().err.splitlines()[-1]


def test_neither_the_checkpoint_nor_the_folder_is_written_over(golden, tmp_path):
    save_file(golden("finetune_audio")[0], tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="^OUT_DIR is '.*', where CHECKPOINT lies; it takes another folder"):
        convert(tmp_path / "model.safetensors", tmp_path, num_attention_heads=4)
    convert(tmp_path / "model.safetensors", tmp_path / "folder", num_attention_heads=4)
    for name in ("model.safetensors", RESIDUE, "config.json"):
        kept = (tmp_path / "folder" / name).read_bytes()
        with pytest.raises(ValueError, match="^OUT_DIR is '.*', in the folder that is read"):
            reverse(tmp_path / "folder", tmp_path / "folder" / name)
        assert (tmp_path / "folder" / name).read_bytes() == kept
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_files_of_others_in_the_folder_stay_private(golden, tmp_path):
    (tmp_path / "out").mkdir(mode=0o755)
    for private in (tmp_path / "outside", tmp_path / "out" / "id_rsa"):
        private.touch(mode=0o600)
    (tmp_path / "out" / "link.safetensors").symlink_to(tmp_path / "outside")
    convert(golden("finetune_audio")[0], tmp_path / "out", num_attention_heads=4)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "outside", tmp_path / "out" / "id_rsa"))


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "pos_embed", "cls_token", "blocks.0.mlp.fc1.weight"])
def test_weights_of_other_axes(golden, name):
    weights, *_ = golden("finetune_audio")
    for other in (torch.tensor(1.0), torch.ones(3)):
        with pytest.raises(ValueError, match=f"^The checkpoint's {name} has [01] axes; it takes"):
            load_official(weights | {name: other}, BridleModel, **FOUR)
    with pytest.raises(ValueError, match="checkpoint"):
        load_official(weights | {name: weights[name][..., :3]}, BridleModel, **FOUR)


def test_where_no_checkpoint_can_be_written(golden, tmp_path):
    convert(golden("finetune_audio")[0], tmp_path / "folder", num_attention_heads=4)
    (tmp_path / "file").write_text("kept")
    for place, message in (("file/back.pth", "is no folder"), ("folder", "a folder lies where a file is")):
        with pytest.raises(OSError, match=message):
            reverse(tmp_path / "folder", tmp_path / place)
    reverse(tmp_path / "folder", tmp_path / "new" / "back.pth")
    assert len(load_official(tmp_path / "new" / "back.pth", num_attention_heads=4, cls=BridleModel).state_dict())
    for name in ("model.safetensors", "config.json"):
        convert(golden("finetune_audio")[0], tmp_path / "folder", num_attention_heads=4)
        if name == "config.json":
            (tmp_path / "folder" / name).write_text("[]")
        else:
            weights = load_file(tmp_path / "folder" / name)
            del weights["bridle.layers.0.mlp.fc1.weight"]  # transformers would draw it at random
            save_file(weights, tmp_path / "folder" / name, {"format": "pt"})
        with pytest.raises(ValueError, match="^CHECKPOINT is '.*folder', which (holds no classifier|cannot be read)"):
            reverse(tmp_path / "folder", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_an_encoder_without_its_norm_makes_no_folder(golden, tmp_path):
    weights, *_ = golden("finetune_audio")
    for name in ("head.weight", "head.bias"):
        del weights[name]
    with pytest.raises(ValueError, match="without its final norm"):
        convert(weights, tmp_path / "folder", num_attention_heads=4)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.pth", "folder", "--source", "bridle"], "none.pth"),
        (["none.pth", "folder", "--source", "mae"], "argument --source: invalid choice: 'mae'"),
        (["none.pth", "folder", "--source", "bridle", "heads"], "'heads' is not of the form key=value"),
        (["folder", "none.pth", "--source", "bridle", "--reverse", "a=1"], "--reverse takes neither --modality nor"),
    ],
)
def test_errors_are_one_line(words, message, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_it_runs_as_a_module():
    words = [sys.executable, "-W", "error::RuntimeWarning", "-m", command.__name__, "--help"]
    finished = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "CHECKPOINT OUT_DIR" in finished.stdout and not finished.stderr


def test_folders_and_names_of_the_hub(golden, tmp_path):
    with pytest.raises(ValueError, match="no file org/model; if it is a model of the Hub, fetch it by `hf download"):
        convert("org/model", tmp_path / "out", source="bridle")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder is a folder without a model.safetensors or pytorch_model.bin"):
        convert(tmp_path / "folder", tmp_path / "out", source="bridle")
