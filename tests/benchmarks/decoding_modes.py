"""What faster ways of decoding cost in quality, on a trained run's held-out requests.

    OMP_NUM_THREADS=1 python tests/benchmarks/decoding_modes.py --run_dir runs/ml-100k --output_dir runs/decoding-modes

Search: the exact beam search (30 beams, fp32, softmax over the vocabulary) beside a softmax over the level's codes,
bf16, int8 (dynamic quantisation by torch) and int8 with the level's softmax. Ranking of the run's own candidates: exact
scores beside the paper's beam search among the candidates. All by identifiers alone, as a search knows no item vectors.
HR@10 and NDCG@10 of the target's place in the list of the best ten, or among the candidates; for each mode the
difference to the exact one, with the 95 % bootstrap interval over users. The modes answer each batch one after another;
times are processor time. Written to the output folder: `decoding_modes.json`, `decoding_modes.md`.
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from decoding_setup import markdown_table, write_report
from tqdm.auto import tqdm

from gensar_hf import GenSARPipeline, TrieBeamSearch
from gensar_hf.data import InteractionLog, Split, events_from_log
from gensar_hf.data.splits import SEARCH, TASKS, Requests
from gensar_hf.evaluation.candidates import CandidateSets
from gensar_hf.evaluation.generator_scorer import request_history
from gensar_hf.evaluation.metrics import hit_rate_per_request, ndcg_per_request
from gensar_hf.evaluation.significance import bootstrap_interval

EXACT = "exact"
METRICS = {"HR@10": hit_rate_per_request, "NDCG@10": ndcg_per_request}
# The requests' places, their histories and queries (None: recommendations) → `(batch_size,)` ranks of the targets.
Mode = Callable[[np.ndarray, list, list[str] | None], np.ndarray]
Modes = dict[str, Mode]


class Answers(NamedTuple):
    """ranks: `(num_requests,)` of the targets, from 1. seconds: of processor time, for all requests."""

    ranks: np.ndarray
    seconds: float


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, required=True, help="with data/, model/ and results/")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_beams", type=int, default=30)
    parser.add_argument("--max_requests", type=int, default=None, help="of each task; default: all")
    parser.add_argument("--modes", nargs="+", default=["level", "bf16", "int8", "int8 level"])
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser.parse_args(argv)


def quantized(model: torch.nn.Module, with_head: bool) -> torch.nn.Module:
    """Linear layers with int8 weights, activations quantised as they come; the head on request."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this moves to another package
        layers = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
        layers = layers if with_head else layers - {"lm_head"}
        return torch.ao.quantization.quantize_dynamic(model, layers, dtype=torch.qint8)


def search_modes(pipe: GenSARPipeline, names: Sequence[str], num_beams: int, target_ids: Sequence[str]) -> Modes:
    """Ways to search; each returns the targets' ranks among the ten items found, 11 where they are not among them."""
    target_rows = np.array([pipe.tokenizer.identifiers.index_of(item_id) for item_id in target_ids])

    def searcher(model: Any, softmax: str) -> Mode:
        def ranks(places: np.ndarray, histories: list, queries: list[str] | None) -> np.ndarray:
            output = model.generate(
                **pipe.tokenizer.encode_request(histories, queries, "<R_I>" if queries is None else "<S_I>"),
                custom_generate=TrieBeamSearch(pipe.tokenizer.trie, softmax=softmax),
                num_beams=num_beams,
                num_return_sequences=10,
            )
            found = pipe.tokenizer.decode_item_rows(output).reshape(len(places), -1)
            is_target = found == target_rows[places, None]
            return np.where(is_target.any(axis=1), is_target.argmax(axis=1) + 1, 11)

        return ranks

    model = pipe.model
    makers: dict[str, Callable[[], Mode]] = {
        "level": lambda: searcher(model, "level"),
        "bf16": lambda: searcher(copy.deepcopy(model).to(torch.bfloat16), "vocabulary"),
        "int8": lambda: searcher(quantized(model, with_head=True), "vocabulary"),
        "int8 level": lambda: searcher(quantized(model, with_head=False), "level"),
    }
    return {EXACT: searcher(model, "vocabulary")} | {name: makers[name]() for name in names}


def ranking_modes(
    pipe: GenSARPipeline, candidates: CandidateSets, item_ids: Sequence[str], target_ids: Sequence[str]
) -> Modes:
    """The two ways to rank; each returns the targets' ranks among their candidates."""

    def ranker(method: str) -> Mode:
        def ranks(places: np.ndarray, histories: list, queries: list[str] | None) -> np.ndarray:
            chosen = [[item_ids[item] for item in candidates.candidates[place]] for place in places]
            answers = pipe.rank(histories, chosen, queries, method=method)
            ids = [[answer["item_id"] for answer in own] for own in answers]
            return np.array([1 + own.index(target_ids[place]) for place, own in zip(places, ids, strict=True)])

        return ranks

    return {EXACT: ranker("exact"), "beam search": ranker("beam_search")}


def run_modes(modes: Modes, requests: Requests, batch_size: int, label: str) -> dict[str, Answers]:
    """Ranks and times of every mode; the modes answer the same batch one after another."""
    ranks: dict[str, list[np.ndarray]] = {name: [] for name in modes}
    seconds = dict.fromkeys(modes, 0.0)
    queries = requests.query_texts if requests.task == SEARCH else None
    for start in tqdm(range(0, len(requests), batch_size), desc=label):
        places = np.arange(start, min(start + batch_size, len(requests)))
        histories = [request_history(requests, place) for place in places]
        chosen = None if queries is None else [queries[place] for place in places]
        for name, answer in modes.items():
            begun = time.process_time()
            ranks[name].append(answer(places, histories, chosen))
            seconds[name] += time.process_time() - begun
    return {name: Answers(np.concatenate(ranks[name]), seconds[name]) for name in modes}


def compare(answers: dict[str, Answers], users: np.ndarray, seed: int) -> dict[str, dict[str, Any]]:
    """Every mode's metrics, its differences to the exact one with their intervals, and how much faster it is."""
    record = {}
    for name, own in answers.items():
        record[name] = {"times_faster": answers[EXACT].seconds / own.seconds, "processor_seconds": own.seconds}
        for metric, per_request in METRICS.items():
            values, exact = per_request(own.ranks, 10), per_request(answers[EXACT].ranks, 10)
            low, high = bootstrap_interval(values - exact, seed=seed, groups=users)
            record[name][metric] = {
                "value": float(values.mean()),
                "difference": float((values - exact).mean()),
                "low": float(low),
                "high": float(high),
            }
    return record


def table_of(record: dict[str, dict[str, Any]], title: str) -> str:
    """One row a mode."""
    header = [title, "faster", *(text for metric in METRICS for text in (metric, "difference to exact [95 %]"))]
    rows = []
    for name, own in record.items():
        cells = [name, f"{own['times_faster']:.2f} ×"]
        for metric in METRICS:
            one = own[metric]
            cells += [f"{one['value']:.4f}", f"{one['difference']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"]
        rows.append(cells)
    return markdown_table(header, rows)


def main(argv: list[str] | None = None) -> None:
    """Answer, compare, print, write."""
    arguments = parse_arguments(argv)
    pipe = GenSARPipeline.from_pretrained(arguments.run_dir / "model", device="cpu")
    pipe.num_beams, pipe.batch_size = arguments.num_beams, arguments.batch_size
    pipe.model.config.item_weight = 0.0
    events = events_from_log(InteractionLog.load(arguments.run_dir / "data"))
    split = Split.load(arguments.run_dir / "data", events)
    record: dict[str, dict] = {"search": {}, "ranking": {}}
    tables = []
    for task in TASKS:
        candidates = CandidateSets.load(arguments.run_dir / "results" / f"candidates_{task}.safetensors")
        places = np.arange(len(split.test[task]))[: arguments.max_requests]
        requests, candidates = split.test[task].subset(places), candidates.subset(places)
        target_ids = [events.item_ids[item] for item in requests.target_items]
        all_modes = {
            "search": search_modes(pipe, arguments.modes, arguments.num_beams, target_ids),
            "ranking": ranking_modes(pipe, candidates, events.item_ids, target_ids),
        }
        for kind, modes in all_modes.items():
            label = f"{task}, {'best ten of the catalogue' if kind == 'search' else candidates.protocol}"
            answers = run_modes(modes, requests, arguments.batch_size, label)
            record[kind][task] = compare(answers, requests.users, arguments.seed)
            tables.append(table_of(record[kind][task], label))
            print(tables[-1], flush=True)
    write_report(arguments.output_dir, "decoding_modes", record, "\n".join(tables))


if __name__ == "__main__":
    main()
