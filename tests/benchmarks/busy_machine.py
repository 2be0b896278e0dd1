"""What another busy process costs a training with a thread a core: `python tests/benchmarks/busy_machine.py`.

    python tests/benchmarks/busy_machine.py --output_dir results/busy_machine

SASRec and the generator train with the default settings on a made-up log, in turns with threads that spin for
milliseconds while they wait for each other, as those of PyTorch do on Linux, and with threads that soon sleep, as those
of this package do (`GOMP_SPINCOUNT=1000`); alone, and beside processes that compute without end. Nothing else should
run.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from catalogue_scale import generator_trainer, make_log, sasrec_trainer

WAITS = {"spinning": {}, "asleep": {"GOMP_SPINCOUNT": "1000"}}
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
TRAINERS = {"sasrec": (sasrec_trainer, 60), "generator": (generator_trainer, 6)}  # and the steps of a turn


def train(model: str, folder: Path) -> float:
    """Milliseconds of a step in this process, the median."""
    import torch  # noqa: F401  before this package, which sets how its threads wait
    from transformers import TrainerCallback

    from gensar_hf import InteractionDataset

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    make, num_steps = TRAINERS[model]
    dataset = InteractionDataset(folder / "items.parquet", folder / "interactions.parquet")
    trainer = make(dataset, str(folder), num_steps)
    trainer.add_callback(Clock())
    trainer.train()
    return 1e3 * float(np.median(np.diff(times)))


def in_own_process(model: str, waits: str, folder: Path) -> float:
    """`train` with threads that wait in one way."""
    inherited = {name: value for name, value in os.environ.items() if name not in WAIT_VARIABLES}
    command = [sys.executable, __file__, "--child", model, "--folder", str(folder)]
    process = subprocess.run(command, env=inherited | WAITS[waits], stdout=subprocess.PIPE, text=True, check=True)
    return float(process.stdout.splitlines()[-1])


def main() -> None:
    """One line a model and number of busy processes."""
    from decoding_setup import markdown_table, write_report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2], help="numbers of processes beside")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output_dir", type=Path, required=True)
    given = parser.parse_args()
    results, rows, repeats = [], [], range(given.repeats)
    with tempfile.TemporaryDirectory() as folder:
        for name, frame in zip(("items", "interactions"), make_log(2_000, 2_000, 80_000), strict=True):
            frame.to_parquet(Path(folder) / f"{name}.parquet", index=False)
        for number in given.busy:
            beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
            try:
                variants = list(product(TRAINERS, WAITS))
                turns = [{variant: in_own_process(*variant, Path(folder)) for variant in variants} for _ in repeats]
            finally:
                for process in beside:
                    process.kill()
            for model in TRAINERS:
                spinning, asleep = (np.array([turn[model, waits] for turn in turns]) for waits in WAITS)
                ratios = spinning / asleep
                results.append({"trained": model, "busy": number, "spinning": [*spinning], "asleep": [*asleep]})
                values = [f"{np.median(times):.1f}" for times in (spinning, asleep)]
                rows.append([model, str(number), *values, f"{np.median(ratios):.2f}"])
                print(*rows[-1], flush=True)
    header = ["trained", "busy processes beside", "PyTorch's default, ms a step", "this package, ms a step", "ratio"]
    write_report(given.output_dir, "busy_machine", {"turns": results}, markdown_table(header, rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(train(sys.argv[2], Path(sys.argv[4])))
    else:
        main()
