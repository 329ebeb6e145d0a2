"""How much work the phases of a recipe are, and how long they take at a rate that was measured.

    python benchmarks/plan.py --recipe audio/as2m_base --tflops encoder=137,tokenizer=300 [--gpus 1,8,64] [--price 3]

Counts the operations of the matrix products of one clip in each phase, forward and backward. `--tflops` is what one GPU
does of them in a second while it trains, one number or one for each kind or name of phase; `benchmarks/gpu.py` measures
it. More GPUs are taken to be as much faster, which was not measured.
"""

import argparse

from models import Training

from bridle_hf.training import load_recipe
from bridle_hf.training.phases import build_schedule


def count(recipe) -> list[dict]:
    """Clips, masks and GFLOP a clip of each phase of a recipe."""
    config, settings, phases, cold = recipe.config().to_dict(), recipe.training, [], True
    for phase in build_schedule(recipe, num_processes=1):
        masks = 1 if phase.kind == "tokenizer" else settings.masks_per_sample
        step = Training(config, 1, phase.kind, cold_start=cold, masks=masks)
        clips = phase.steps * settings.batch_size * settings.gradient_accumulation_steps
        phases.append({"phase": phase.name, "clips": clips, "masks": masks, "gflop": step.operations() / 1e9})
        cold = cold and phase.kind == "encoder"
    return phases


def rates(text: str) -> dict[str, float]:
    """`350`, or `encoder=137,tokenizer=300,encoder-iter2=168`; the key of a number alone is empty."""
    return {name: float(rate) for name, _, rate in (each.rpartition("=") for each in text.split(","))}


def rate_of(given: dict[str, float], phase: str, parser: argparse.ArgumentParser) -> float:
    """The rate of a phase by its name, by its kind, or that of all."""
    for name in (phase, phase.partition("-")[0], ""):
        if name in given:
            return given[name]
    parser.error(f"--tflops has {', '.join(given)}; the recipe has {phase}, too")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="of `bridle pretrain`: a name or a path")
    parser.add_argument("--tflops", type=rates, help="10^12 operations a second that a GPU was measured to do")
    parser.add_argument("--gpus", default="1,8,64", help="numbers of them, a line each")
    parser.add_argument("--price", type=float, help="of a GPU hour")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    given = parser.parse_intermixed_args(arguments)
    phases = count(load_recipe(given.recipe, given.overrides))
    print("| phase | million clips | masks | GFLOP a clip | a mask | EFLOP |\n|---|---|---|---|---|---|")
    for each in phases:
        each["eflop"] = each["gflop"] * each["clips"] / 1e9
        work = f"{each['gflop']:.0f} | {each['gflop'] / each['masks']:.0f}"
        numbers = f"{each['clips'] / 1e6:.1f} | {each['masks']} | {work} | {each['eflop']:.1f}"
        print(f"| {each['phase']} | {numbers} |")
    total = sum(each["eflop"] for each in phases)
    print(f"| all | | | | | {total:.1f} |")
    if given.tflops:
        for each in phases:
            each["rate"] = rate_of(given.tflops, each["phase"], parser)
        seconds = sum(each["eflop"] * 1e6 / each["rate"] for each in phases)
        most = max(each["rate"] * 1e3 / each["gflop"] for each in phases)  # clips a second of the fastest phase
        print("\n| GPUs | hours | clips a second at most | GPU hours |" + (" price |" if given.price else ""))
        print("|---|---|---|---|" + ("---|" if given.price else ""))
        for gpus in map(int, given.gpus.split(",")):
            hours = seconds / gpus / 3600
            price = f" {hours * gpus * given.price:,.0f} |" if given.price else ""
            print(f"| {gpus} | {hours:,.1f} | {most * gpus:,.0f} | {hours * gpus:,.0f} |{price}")


if __name__ == "__main__":
    main()
