"""How much faster the generator trains than the common way: same examples, same gradients, variants in turns.

    python tests/benchmarks/training_throughput.py --run_dir runs/ml-100k --output_dir results/training_throughput

All on the run's log and identifiers:

- `tokens, common way`: one position a token, as in the paper. Formatted strings, one target each, are tokenized in the
  collator, in batches in the order drawn, padded to the longest. The model is as transformers sets it up (SDPA).
- `tokens, package`: the same examples in the same steps, tokenized beforehand; a step is batches of like length.
- `events, common way`: one position an event, else as the first; every target of `events, package` by itself.
- `events, packed only`: all targets of a history in one row, a step in one batch in the order drawn, SDPA.
- `events, package`: the default: the same in two batches of like length.

Variants of one encoding compute the same gradients, so they must follow one loss curve; the last column of the second
table says how far they do not. The common way draws its examples and writes its strings with the clock standing still,
the package draws in time. `events, package` trains as long as `tokens, common way`, so that their held-out losses
compare at equal time: the same requests and responses for all, each model reading the history its own way.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from training_variants import (
    EVENTS,
    EVENTS_PACKAGE,
    EVENTS_PACKED,
    TOKENS,
    TOKENS_PACKAGE,
    Source,
    Step,
    Trainee,
    make_trainees,
)

from gensar_hf.files import write_json
from gensar_hf.training_defaults import bf16_is_faster

PAIRS = ((TOKENS_PACKAGE, TOKENS), (EVENTS_PACKAGE, EVENTS), (EVENTS_PACKAGE, EVENTS_PACKED), (EVENTS_PACKAGE, TOKENS))


def train_in_turns(trainees: dict[str, Trainee], arguments: argparse.Namespace) -> None:
    """Block after block, every variant in each."""
    num_steps = {
        TOKENS: arguments.steps, TOKENS_PACKAGE: arguments.steps, EVENTS: arguments.steps_alone,
        EVENTS_PACKED: arguments.steps,
    }  # fmt: skip
    for trainee in trainees.values():
        trainee.evaluate()
    for block in tqdm(range(arguments.blocks), desc="blocks"):
        for name, trainee in trainees.items():
            first = arguments.warmup_steps if block == 0 else 0
            for _ in range(first + num_steps.get(name, 1)):
                trainee.train_step(block)
            while name == EVENTS_PACKAGE and trainee.seconds < trainees[TOKENS].seconds:
                trainee.train_step(block)
            trainee.evaluate()


def summarize(trainees: dict[str, Trainee]) -> dict[str, Any]:
    """Rates, padding and curves of every variant, and the ratios of the pairs, block by block."""
    return {
        "variants": {name: describe(trainee) for name, trainee in trainees.items()},
        "ratios": {f"{new} / {old}": ratio(trainees, new, old) for new, old in PAIRS},
    }


def describe(trainee: Trainee) -> dict[str, Any]:
    """Rates, padding and curves of one variant."""
    timed = trainee.timed()
    used = np.sum([step.positions for step in timed], axis=0)
    return {
        "examples_per_second": trainee.rate("examples"),
        "target_tokens_per_second": trainee.rate("target_tokens"),
        "encoder_padding": 1 - float(used[0] / used[1]),
        "decoder_padding": 1 - float(used[2] / used[3]),
        "collate_ms": 1e3 * float(np.mean([step.collate_seconds for step in timed])),
        "compute_ms": 1e3 * float(np.mean([step.compute_seconds for step in timed])),
        "examples_per_step": float(np.mean([step.examples for step in timed])),
        "training_loss": training_curve(trainee.steps),
        "steps": [(step.examples, step.loss) for step in trainee.steps],
        "held_out_loss": trainee.held_out_losses,
    }


def training_curve(steps: Sequence[Step]) -> list[tuple[int, float]]:
    """Block by block: examples so far, and the block's mean loss per target token."""
    points, examples = [], 0
    for block in sorted({step.block for step in steps}):
        own = [step for step in steps if step.block == block]
        examples += sum(step.examples for step in own)
        loss = np.average([step.loss for step in own], weights=[step.target_tokens for step in own])
        points.append((examples, float(loss)))
    return points


def ratio(trainees: dict[str, Trainee], new: str, old: str) -> dict[str, Any]:
    """Examples per second of two variants, and the largest difference of their losses in any step both have done."""
    first, second = trainees[new], trainees[old]
    blocks = sorted({step.block for step in second.timed()})
    ratios = [first.rate("examples", block) / second.rate("examples", block) for block in blocks]
    result: dict[str, Any] = {"examples_per_second": float(np.median(ratios)), "blocks": ratios}
    if new.partition(",")[0] == old.partition(",")[0]:
        losses = [(one.loss, other.loss) for one, other in zip(first.steps, second.steps, strict=False)]
        result |= {"shared_steps": len(losses), "loss_difference": max(abs(one - other) for one, other in losses)}
    return result


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| | examples/s | target tokens/s | padding: encoder | decoder | collate ms | forward, backward, step ms | "
        "examples a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results["variants"].items():
        lines.append(
            f"| {name} | {row['examples_per_second']:,.0f} | {row['target_tokens_per_second']:,.0f} | "
            f"{row['encoder_padding']:.0%} | {row['decoder_padding']:.0%} | {row['collate_ms']:.1f} | "
            f"{row['compute_ms']:.1f} | {row['examples_per_step']:.0f} |"
        )
    lines += ["", "| examples/s against | ratio (median of the blocks) | lowest, highest | largest loss difference |"]
    lines.append("|---|---|---|---|")
    for pair, row in results["ratios"].items():
        same = f"{row['loss_difference']:.1e} in {row['shared_steps']} steps" if "shared_steps" in row else "-"
        lowest, highest = min(row["blocks"]), max(row["blocks"])
        lines.append(f"| {pair} | {row['examples_per_second']:.2f} | {lowest:.2f}, {highest:.2f} | {same} |")
    lines += ["", "| trained | " + " | ".join(f"{name}: s, held-out loss" for name in results["variants"]) + " |"]
    lines.append("|---" * (1 + len(results["variants"])) + "|")
    curves = [row["held_out_loss"] for row in results["variants"].values()]
    for block, points in enumerate(zip(*curves, strict=True)):
        share = f"{block / (len(curves[0]) - 1):.0%}"
        lines.append(f"| {share} | " + " | ".join(f"{seconds:.1f}, {loss:.3f}" for seconds, loss in points) + " |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """The training losses of each encoding over examples, and the held-out losses over seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    axes = figure.subplots(1, 3)
    for name, row in results["variants"].items():
        style = "--" if name in (TOKENS_PACKAGE, EVENTS_PACKAGE) else "-"
        examples, losses = np.array(row["steps"]).T
        axes[int(name.startswith("events"))].plot(examples.cumsum(), losses, style, label=name)
        axes[2].plot(*zip(*row["held_out_loss"], strict=True), style, marker=".", label=name)
    for axis, title, label in zip(
        axes,
        ("Same examples, one position a token", "Same examples, one position an event", "Same held-out requests"),
        ("examples", "examples", "seconds of training"),
        strict=True,
    ):
        axis.set(title=title, xlabel=label, ylabel="loss per target token (nats)")
        axis.legend()
    figure.savefig(path, dpi=120)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, required=True, help="a run with its data and rqvae stages finished")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps a block")
    parser.add_argument("--steps_alone", type=int, default=1, help="of 'events, common way'; they are long")
    parser.add_argument("--warmup_steps", type=int, default=3, help="first steps of each variant, not timed")
    parser.add_argument("--batch_size", type=int, default=16, help="rows a step, one position an event")
    parser.add_argument("--token_batch_size", type=int, default=64, help="examples a step, one position a token")
    parser.add_argument("--max_history_events", type=int, default=50, help="where an event is a position")
    parser.add_argument("--token_events", type=int, default=20, help="the same where a token is a position")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--requests", type=int, default=150, help="held-out requests of each task")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def report(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """JSON, table and figure."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    settings |= {"bf16": bf16_is_faster(), "torch": torch.__version__}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output_dir / "training_throughput.json", {"settings": settings, **results})
    (arguments.output_dir / "training_throughput.md").write_text(table(results), encoding="utf-8")
    draw(results, arguments.output_dir / "training_throughput.png")


def main() -> None:
    """Measure, save, print."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    trainees = make_trainees(Source.read(arguments.run_dir), arguments)
    train_in_turns(trainees, arguments)
    results = summarize(trainees)
    report(arguments, results)
    print(table(results))


if __name__ == "__main__":
    main()
