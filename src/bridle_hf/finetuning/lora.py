"""LoRA by peft: the encoder's matrices stay, and small ones beside them learn; the head trains as a whole."""

from importlib.util import find_spec

TARGETS = ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")  # of each layer of the encoder
ADAPTER = "adapter"  # folder of the small matrices and the head, beside the merged model


def require_peft() -> None:
    """Raise a `ModuleNotFoundError` that says what to install where peft is missing."""
    if not find_spec("peft"):
        raise ModuleNotFoundError(
            "`training.lora_rank` takes peft, which is not installed: run `pip install bridle-hf[lora]`.", name="peft"
        )


def add_adapters(model, settings):
    """A peft model over a classifier, whose adapters and head train.

    Args:
        settings: `FinetuneTraining` with a `lora_rank`.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank if settings.lora_alpha is None else settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.lora_target_modules or TARGETS),
        modules_to_save=["classifier"],
    )
    return get_peft_model(model, config)
