"""Speed of constrained beam search and of candidate ranking, compared with `generate` and with the hardware's floor.

    OMP_NUM_THREADS=1 python tests/benchmarks/decoding_speed.py --output_dir runs/decoding-speed
    OMP_NUM_THREADS=1 python tests/benchmarks/decoding_speed.py --output_dir runs/decoding-speed --batch_sizes 1 8

The model has the shape of T5-small and random weights, fp32. There are 62,882 items with random identifiers of 4 levels
of 256 codes, 128 input tokens, and 30 beams, of which 10 are returned. The script first checks that all variants return
the same, then runs them in turn and reports the fastest of `--repeats` rounds. Peak memory is measured in one more
call. The floor of our search (or ranking) is the larger of two times: its arithmetic at the rate of large matrix
products, and reading the weights once per step at the memory bandwidth, both measured in the same run. A profile gives
the shares of the time. Ranking uses 100 random candidates per request. The script writes `decoding_speed.json` and
`decoding_speed.md` to the output folder.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoding_setup import (
    EOS,
    Cost,
    Shape,
    build_model,
    dict_trie,
    markdown_table,
    measure_interleaved,
    megabytes,
    random_identifiers,
    random_requests,
    write_report,
)
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5ForConditionalGeneration

from gensar_hf.decoding import Trie, TrieBeamSearch, TrieLogitsProcessor
from gensar_hf.decoding.candidate_scoring import score_candidates
from gensar_hf.decoding.tree_decoder import EncoderContext

DICT_TRIE, CSR_TRIE, OURS = "generate(), dict trie", "generate(), TrieLogitsProcessor", "TrieBeamSearch"
RESTRICTED, RESTRICTED_OURS, EXACT = "generate(), dict trie of the candidates", "TrieBeamSearch", "exact, one forward"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--ranking_batch_sizes", type=int, nargs="*", default=[1, 8], help="none: no ranking")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num_items", type=int, default=62_882)
    parser.add_argument("--num_candidates", type=int, default=100)
    parser.add_argument("--num_beams", type=int, default=30)
    parser.add_argument("--num_returned", type=int, default=10)
    for name, default in (("d_model", 512), ("num_layers", 6), ("num_heads", 8), ("d_ff", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default, help="of the model")
    parser.add_argument("--num_input_tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


# ---- search


def search_variants(
    model: T5ForConditionalGeneration, identifiers: np.ndarray, inputs: dict, num_beams: int, num_returned: int
) -> dict[str, Callable[[], Any]]:
    """The same search in three ways."""
    trie, prefixes = Trie(identifiers), dict_trie(identifiers)
    options = {
        **inputs,
        "num_beams": num_beams,
        "num_return_sequences": num_returned,
        "max_new_tokens": identifiers.shape[1] - 1,
        "length_penalty": 0.0,
        "return_dict_in_generate": True,
        "output_scores": True,
    }

    def allowed(request: int, tokens: torch.Tensor) -> list[int]:
        node: dict | None = prefixes
        for token in tokens.tolist()[1:]:
            node = node.get(token) if node else None
        return list(node) if node else [EOS]

    return {
        DICT_TRIE: lambda: model.generate(**options, prefix_allowed_tokens_fn=allowed),
        CSR_TRIE: lambda: model.generate(**options, logits_processor=[TrieLogitsProcessor(trie)]),
        OURS: lambda: model.generate(**options, custom_generate=TrieBeamSearch(trie)),
    }


def check_same_search(outputs: dict[str, Any]) -> None:
    """Stop if a variant returns other sequences or scores."""
    expected = outputs[CSR_TRIE]
    for name, output in outputs.items():
        error = (output.sequences_scores - expected.sequences_scores).abs().max().item()
        if error > 1e-4 or not torch.equal(output.sequences, expected.sequences):
            raise RuntimeError(f"{name} returns other sequences than {CSR_TRIE}, or scores that differ by {error:.1e}.")


# ---- ranking


def ranking_variants(
    model: T5ForConditionalGeneration, identifiers: np.ndarray, inputs: dict, num_beams: int, num_candidates: int
) -> dict[str, Callable[[], Any]]:
    """Rank the same candidates in three ways; each returns `(batch_size, num_candidates)` scores, -inf if not found."""
    generator, batch_size = np.random.default_rng(0), len(inputs["input_ids"])
    rows = [np.sort(generator.choice(len(identifiers), num_candidates, replace=False)) for _ in range(batch_size)]
    trie, tries = Trie(identifiers), [dict_trie(identifiers[chosen]) for chosen in rows]
    options = {
        **inputs,
        "num_beams": num_beams,
        "num_return_sequences": num_beams,
        "max_new_tokens": identifiers.shape[1] - 1,
        "length_penalty": 0.0,
        "return_dict_in_generate": True,
        "output_scores": True,
    }

    def allowed(request: int, tokens: torch.Tensor) -> list[int]:
        node: dict | None = tries[request]
        for token in tokens.tolist()[1:]:
            node = node.get(token) if node else None
        return list(node) if node else [EOS]

    def scores_of(output: Any) -> torch.Tensor:
        found = trie.lookup(output.sequences[:, 1:]).view(batch_size, -1).tolist()
        scores = output.sequences_scores.view(batch_size, -1).tolist()
        score_of = [dict(zip(*pair, strict=True)) for pair in zip(found, scores, strict=True)]
        return torch.tensor([[one.get(row, -np.inf) for row in own] for one, own in zip(score_of, rows, strict=True)])

    @torch.inference_mode()
    def exact() -> torch.Tensor:
        mask = inputs["attention_mask"]
        states = model.encoder(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
        context = EncoderContext(model, states, mask.bool())
        return score_candidates(context, np.stack([identifiers[chosen] for chosen in rows]))

    return {
        RESTRICTED: lambda: scores_of(model.generate(**options, prefix_allowed_tokens_fn=allowed)),
        RESTRICTED_OURS: lambda: scores_of(
            model.generate(**options, custom_generate=TrieBeamSearch(trie, allowed=rows))
        ),
        EXACT: exact,
    }


def check_same_ranking(outputs: dict[str, torch.Tensor]) -> None:
    """Stop if a beam search returns a score that is not the exact one."""
    for name, scores in outputs.items():
        is_found = scores > -np.inf
        error = (scores - outputs[EXACT])[is_found].abs().max().item()
        if error > 1e-4 or not is_found.any():
            raise RuntimeError(f"{name} has scores that differ from the exact ones by {error:.1e}.")


# ---- the floor


def machine_rates() -> dict[str, float]:
    """Peak rates of this machine: FLOP/s of a large fp32 product, bytes/s of reading a large array."""
    left, right = torch.randn(512, 1024), torch.randn(1024, 2048)
    large = torch.randn(1 << 26)
    costs = measure_interleaved({"product": lambda: left @ right, "sum": large.sum}, repeats=7)
    return {
        "flops": 2 * left.numel() * right.shape[1] / busy_seconds(costs["product"]),
        "bandwidth": large.nbytes / busy_seconds(costs["sum"]),
    }


def busy_seconds(cost: Cost) -> float:
    """Processor time per thread: the time of the call on an idle machine."""
    return cost.cpu_seconds / torch.get_num_threads()


def count_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products and attention."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def weight_bytes(model: T5ForConditionalGeneration, num_steps: int) -> int:
    """Bytes of weights that a search reads: the encoder once, the decoder and the head once per step."""

    def layers(stack: torch.nn.Module) -> int:
        return sum(parameter.nbytes for parameter in stack.block.parameters())  # type: ignore[union-attr]

    return layers(model.encoder) + num_steps * (layers(model.decoder) + model.lm_head.weight.nbytes)


def time_shares(call: Callable[[], Any]) -> dict[str, float]:
    """Shares of a call's time by kind of operation, from a profile of one more call."""
    groups = {"matrix products": ("aten::mm", "aten::addmm", "aten::bmm"), "attention": ("aten::_scaled_dot",)}
    with profile() as recorded:
        call()
    own_times = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    shares = {
        group: sum(time for name, time in own_times.items() if name.startswith(names)) / sum(own_times.values())
        for group, names in groups.items()
    }
    return {**shares, "norms, softmax, copies, sorting": 1 - sum(shares.values())}


def floor_of(
    model: T5ForConditionalGeneration,
    call: Callable[[], Any],
    costs: tuple[Cost, Cost],
    rates: dict[str, float],
    num_steps: int,
) -> dict[str, Any]:
    """The least time that our call can take on this machine; `costs`: of our call and of the reference."""
    flops, num_bytes = count_flops(call), weight_bytes(model, num_steps)
    arithmetic, reading = flops / rates["flops"], num_bytes / rates["bandwidth"]
    return {
        "flops": flops,
        "weight_bytes": num_bytes,
        "arithmetic_seconds": arithmetic,
        "reading_seconds": reading,
        "floor_seconds": max(arithmetic, reading),
        "floor_share": max(arithmetic, reading) / busy_seconds(costs[0]),
        "most_times_faster": busy_seconds(costs[1]) / max(arithmetic, reading),
        "time_shares": time_shares(call),
    }


# ---- the report


def cost_table(costs: dict[int, dict[str, Cost]], reference: str, title: str) -> str:
    """Milliseconds, ratios (of processor time) and memory of every variant at every batch size."""
    header = [title, "batch", "ms", "processor ms", "faster", "peak memory"]
    rows = [
        [name, f"{batch_size}", f"{1000 * cost.seconds:,.0f}", f"{1000 * cost.cpu_seconds:,.0f}",
         f"{busy_seconds(own[reference]) / busy_seconds(cost):.1f} ×", megabytes(cost.peak_bytes)]
        for batch_size, own in costs.items()
        for name, cost in own.items()
    ]  # fmt: skip
    return markdown_table(header, rows)


def floor_table(floors: dict[str, dict[int, dict[str, Any]]], rates: dict[str, float]) -> str:
    """The floor, the shares of the time, and the speedup that a call at the floor would have."""
    header = [
        "of",
        "batch",
        "GFLOP",
        "arithmetic",
        "reading weights",
        "floor / time",
        "at most",
        "products",
        "attention",
        "the rest",
    ]
    rows = []
    for (name, batch_size), floor in {
        (name, size): own for name, by in floors.items() for size, own in by.items()
    }.items():
        shares = floor["time_shares"].values()
        times = [f"{1000 * floor[part]:,.0f} ms" for part in ("arithmetic_seconds", "reading_seconds")]
        reached, *percent = [f"{100 * share:.0f} %" for share in (floor["floor_share"], *shares)]
        most = f"{floor['most_times_faster']:.1f} ×"
        rows.append([name, f"{batch_size}", f"{floor['flops'] / 1e9:.1f}", *times, reached, most, *percent])
    return (
        f"{rates['flops'] / 1e9:.0f} GFLOP/s in a large product, {rates['bandwidth'] / 1e9:.1f} GB/s reading, "
        f"{torch.get_num_threads()} thread(s).\n\n" + markdown_table(header, rows)
    )


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    arguments = parse_arguments(argv)
    shape = Shape(*(getattr(arguments, name) for name in ("d_model", "num_layers", "num_heads", "d_ff")),
                  arguments.num_input_tokens)  # fmt: skip
    model = build_model(shape, arguments.seed)
    identifiers = random_identifiers(arguments.num_items, shape, arguments.seed)
    rates, search, ranking = machine_rates(), {}, {}
    floors: dict[str, dict[int, dict[str, Any]]] = {OURS: {}, EXACT: {}}
    for batch_size in arguments.batch_sizes:
        inputs = random_requests(batch_size, shape, arguments.seed)
        calls = search_variants(model, identifiers, inputs, arguments.num_beams, arguments.num_returned)
        check_same_search({name: call() for name, call in calls.items()})
        search[batch_size] = measure_interleaved(calls, arguments.repeats)
        costs = (search[batch_size][OURS], search[batch_size][DICT_TRIE])
        floors[OURS][batch_size] = floor_of(model, calls[OURS], costs, rates, shape.num_levels)
        print(cost_table({batch_size: search[batch_size]}, DICT_TRIE, "search"))
    for batch_size in arguments.ranking_batch_sizes:
        inputs = random_requests(batch_size, shape, arguments.seed)
        calls = ranking_variants(model, identifiers, inputs, arguments.num_beams, arguments.num_candidates)
        check_same_ranking({name: call() for name, call in calls.items()})
        ranking[batch_size] = measure_interleaved(calls, arguments.repeats)
        costs = (ranking[batch_size][EXACT], ranking[batch_size][RESTRICTED])
        floors[EXACT][batch_size] = floor_of(model, calls[EXACT], costs, rates, num_steps=1)
    tables = [cost_table(search, DICT_TRIE, "search"), floor_table(floors, rates)]
    if ranking:
        tables.append(cost_table(ranking, RESTRICTED, f"ranking {arguments.num_candidates} candidates"))
    print("\n".join(tables))
    record = {
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "rates": rates,
        "search": {size: {name: asdict(cost) for name, cost in own.items()} for size, own in search.items()},
        "floors": floors,
        "ranking": {size: {name: asdict(cost) for name, cost in own.items()} for size, own in ranking.items()},
    }
    write_report(arguments.output_dir, "decoding_speed", record, "\n".join(tables))


if __name__ == "__main__":
    main()
