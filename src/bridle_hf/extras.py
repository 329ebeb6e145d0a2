"""What the extras of the package install. It imports nothing."""

# Extra of the package -> the modules that it brings.
EXTRAS = {
    "train": (
        "accelerate", "datasets", "evaluate", "pyarrow", "scipy", "sklearn", "soundfile", "threadpoolctl", "torchdata"
    ),
    "av": ("av",),
    "report": ("matplotlib",),
    "tracking": ("tensorboard",),
    "lora": ("peft",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}  # fmt: skip


def cure(error: ModuleNotFoundError, what: str) -> str | None:
    """One line for a module that is missing and the extra that brings it; None for a module of no extra.

    Args:
        what: needs the module.
    """
    name = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), None)
    return extra and f'{name} is not installed; {what} needs it: pip install "bridle-hf[{extra}]"'
