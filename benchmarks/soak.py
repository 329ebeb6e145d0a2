"""Pretrain a tiny model for minutes with loader workers, and look whether memory and open files grow.

    python benchmarks/soak.py --minutes 30

Every process of the run is counted, workers too, from its first step on. The first fifth is warm-up. Exits with 1 where
the median of the last fifth lies more than 2 % (memory) or more than 2 (open files) above that of the second fifth.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = """
data: {dataset: synthetic, shuffle_buffer: 16, num_workers: 2}
model:
  {input_size: [64, 16], patch_size: [16, 8], hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2,
   intermediate_size: 32, decoder_type: plain, decoder_hidden_size: 16, decoder_num_hidden_layers: 1,
   decoder_num_attention_heads: 2, estimator_num_hidden_layers: 1,
   quantizer_config: {num_codebooks: 2, codebook_size: 16, codebook_dim: 8}}
training: {batch_size: 8, checkpoint_steps: 200}
phases: [{kind: joint, steps: 100000000}]
"""


def family(process: int) -> list[int]:
    """A process and all that descend from it."""
    children = [
        int(child) for task in Path(f"/proc/{process}/task").glob("*/children") for child in task.read_text().split()
    ]
    return [process, *(descendant for child in children for descendant in family(child))]


def measure(process: int) -> tuple[float, int]:
    """Memory in MB, what processes share counted once, and open files of a process and its descendants.

    Without mapped files: the share that one process has in a library hangs on who else has loaded it.
    """
    memory = files = 0
    for each in family(process):
        lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        memory += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) / 1024
        files += len(os.listdir(f"/proc/{each}/fd"))
    return memory, files


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    seconds = parser.parse_args().minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder, "soak.yaml")
        recipe.write_text(f"output_dir: {folder}/run\n{RECIPE}")
        command = [sys.executable, str(ROOT / "examples" / "pretrain.py"), "--recipe", str(recipe)]
        with open(Path(folder, "said"), "w") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said)
        metrics, samples, start = Path(folder, "run", "metrics.jsonl"), [], None
        while start is None or time.monotonic() - start < seconds:
            time.sleep(min(5.0, seconds / 50))
            if process.poll() is not None:
                sys.exit(Path(folder, "said").read_text()[-2000:])
            if start is None and metrics.is_file() and metrics.stat().st_size:
                start = time.monotonic()
            if start is not None:
                samples.append(measure(process.pid))
        process.terminate()
        process.wait(60)
        steps = metrics.read_text().count("\n") * 10
    fifth = len(samples) // 5
    (early, early_files), (late, late_files) = (
        [statistics.median(column) for column in zip(*part, strict=True)]
        for part in (samples[fifth : 2 * fifth], samples[-fifth:])
    )
    print(f"about {steps} steps; after warm-up {early:.0f} MB and {early_files:.0f} open files, at the end", end=" ")
    print(f"{late:.0f} MB and {late_files:.0f}; exit code {process.returncode}")
    sys.exit(late > 1.02 * early or late_files > early_files + 2 or process.returncode != 0)


if __name__ == "__main__":
    main()
