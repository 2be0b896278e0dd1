"""Random calls of a tiny trained pipeline; every answer and every refusal is checked.

    python tests/fuzz/fuzz_calls.py --calls 10000 --seed 0

Call `i` of a seed is drawn from (seed, i). The catalogue changes between calls, so that a call is repeated by running
all before it. Prints how many calls of each kind ended in which way, and exits with 1 if one of them ended badly:

- `right`: a valid call, whose answer holds available items only, distinct, sorted, finite, at most `top_k`, the same
  twice, and the same as in a batch;
- `refused`: an invalid call, a ValueError of this package with one sentence of at most 500 characters;
- `traceback`: any other exception; `unclear`: a refusal that is no such sentence;
- `refused wrongly` and `answered wrongly`: a valid call that is refused, an invalid one that is not;
- `wrong answer`: a check of the answer failed; `hang`: more than 30 seconds of processor time.
"""

import argparse
import contextlib
import logging
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tiny_runs

from gensar_hf import GenSARPipeline

LIMIT_S = 30
GOOD = ("right", "refused")
CLASSES = (*GOOD, "traceback", "unclear", "refused wrongly", "answered wrongly", "wrong answer", "hang")
QUERIES = [
    "red", "blue soap", "RED Cream", "soap!!!", "a", "the of and", "crème rouge", "красное мыло", "红色肥皂",
    "赤い石鹸", "빨간 비누", "🧼🧴", "12345", "3.14 %", "<R_I>", "</s>", "＜S_I＞ soap", "red\x00soap", "\ud83d",
    "red \udfff", "'; DROP", "soap\n\tred", "\u200b", "\ufeffred", "ﬁlm", "é", "e\u0301", "x" * 10_000, "red " * 3000,
    "<pad> <unk>", ".", "صابون أحمر",
]  # fmt: skip
Drawn = tuple[Any, bool]  # a value, and whether it is valid


class Endless(Sequence):
    """A stream of events that goes on after the length that it gives."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, place: int) -> Any:  # type: ignore[override]
        return {"item_id": "B03"}


class WrongAnswer(Exception):
    """A check of an answer failed."""


class Calls:
    """Draws calls of a pipeline and makes them.

    Args:
        pipe: of `tiny_runs.make_tables`; its catalogue is changed.
        seed: of all draws.
    """

    def __init__(self, pipe: GenSARPipeline, seed: int) -> None:
        self.pipe, self.seed, self.random = pipe, seed, random.Random()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.bad: list[str] = []
        self.num_added = 0
        signal.signal(signal.SIGPROF, alarm)

    def run(self, number: int) -> None:
        """Make one call, and note how it ended."""
        self.random.seed(f"{self.seed} {number}")
        kinds = ["recommend", "search", "suggest_queries", "rank exact", "rank beam_search", "catalogue"]
        kind = self.random.choices(kinds, [5, 5, 1, 3, 2, 1])[0]
        arguments, outcome, detail = {}, "right", ""
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        try:
            if kind == "catalogue":
                call, arguments, is_valid = self.catalogue_call()
            else:
                call, arguments, is_valid = self.request(kind)
            try:
                answer = call(**arguments)
            except ValueError as error:
                outcome, detail = ("refused wrongly" if is_valid else refusal(error)), f"{error!s:.600}"
            else:
                outcome = "right" if is_valid else "answered wrongly"
                if is_valid and kind != "catalogue":
                    self.check(kind, call, arguments, answer)
        except WrongAnswer as error:
            outcome, detail = "wrong answer", str(error)
        except TimeoutError:
            outcome = "hang"
        except Exception:
            outcome, detail = "traceback", traceback.format_exc(limit=-3)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if time.process_time() - start > LIMIT_S:
            outcome = "hang"
        self.counts[kind, outcome] += 1
        if outcome not in GOOD:
            self.bad.append(f"call {number}: {kind} {arguments!r:.600}\n  {outcome}: {detail}")
            print(self.bad[-1], flush=True)

    # ---- what is asked

    def request(self, kind: str) -> tuple[Callable[..., Any], dict[str, Any], bool]:
        """A call for an answer: the method, its arguments, and whether all of them are valid."""
        draw, name = self.random, kind.split()[0]
        is_batch, size = draw.random() < 0.3, draw.randint(1, 4)
        faulty = draw.random() < 0.3 and draw.choice(["history", "query", "top_k", "flag", "candidates", "lengths"])
        skips = faulty not in ("history", "candidates") and draw.random() < 0.2
        histories = [self.history(skips) for _ in range(size if is_batch else 1)]
        arguments: dict[str, Any] = {"history": histories if is_batch else histories[0]}
        is_valid = True
        if faulty == "history":
            wrong = self.wrong_history()
            arguments["history"], is_valid = (([*histories, wrong] if is_batch else wrong), False)
        if skips:
            arguments["on_unknown"] = "skip"
        if name == "search" or (name == "rank" and draw.random() < 0.5):
            queries = [draw.choice(QUERIES) for _ in range(len(arguments["history"]) if is_batch else 1)]
            if faulty == "query":
                queries[draw.randrange(len(queries))], is_valid = self.wrong_query(), False
            arguments["query"] = queries if is_batch else queries[0]
        if name == "rank":
            arguments["method"] = kind.split()[1]
            lists = [self.candidates(skips) for _ in range(len(arguments["history"]) if is_batch else 1)]
            if faulty == "candidates":
                lists[draw.randrange(len(lists))], is_valid = self.wrong_candidates(), False
            arguments["candidates"] = lists if is_batch else lists[0]
        else:
            many = (
                [1, 2, 5, 10, 29, 100] if name == "suggest_queries" else [1, 2, 5, 10, 29, 30, 31, 1000, 10**6, 2**70]
            )
            if draw.random() < 0.8:
                arguments["top_k"] = draw.choice([np.int64(3), *many])
            if faulty == "top_k":
                arguments["top_k"], is_valid = (
                    draw.choice([0, -1, 2.5, "3", None, True, np.True_, np.array(3), [3]]),
                    False,
                )
        if name in ("recommend", "search"):
            arguments |= {"exclude_seen": draw.random() < 0.3, "explain": draw.random() < 0.2}
        if faulty == "flag":
            flags = {name for name in ("exclude_seen", "explain") if name in arguments}
            flag = draw.choice(sorted({"on_unknown", *flags, *({"method"} & arguments.keys())}))
            arguments[flag], is_valid = draw.choice([7, "yes", None, np.array([True, False]), [], ["raise"]]), False
        if faulty == "lengths" and is_batch and ("query" in arguments or "candidates" in arguments):
            list_name = draw.choice([name for name in ("query", "candidates") if name in arguments])
            arguments[list_name], is_valid = arguments[list_name][:-1], False
            if list_name == "query" and not arguments["query"] and name == "search":
                is_valid = True  # no queries, whatever the histories
                arguments["history"] = None
        return getattr(self.pipe, name), arguments, is_valid

    def history(self, with_unknown: bool) -> list[dict[str, Any]]:
        """A valid history."""
        draw, length = self.random, self.random.choice([0, 1, 2, 3, 5, 20, 150])
        events: list[dict[str, Any]] = []
        for _ in range(length):
            event: dict[str, Any] = {"item_id": draw.choice(self.pipe.tokenizer.identifiers.item_ids)}
            if draw.random() < 0.3:
                event["query"] = draw.choice(QUERIES)
            if draw.random() < 0.2:
                event = {"query": draw.choice(QUERIES)}
            if draw.random() < 0.1:
                event |= {"title": "red", "timestamp": 3, "score": -1.5}
            if draw.random() < 0.1:
                event |= {"query": draw.choice([None, "", " "])} if "item_id" in event else {"item_id": None}
            if with_unknown and draw.random() < 0.3 and "item_id" in event:
                event["item_id"] = draw.choice(["nothing", 7, "x" * 10_000])
            events.append(event)
        return events

    def wrong_history(self) -> Any:
        """Something that is no history."""
        draw = self.random
        events = [
            {"item_id": "nothing"}, {"qurey": "red"}, {"item_id": "B03", "qurey": "red"}, {},
            {"item_id": "B03", "query": 0}, {"item_id": ()}, {"title": "red"}, {7: 8}, "B03",
            {"item_id": "B03", "query": False}, {"query": np.array(["a", "b"])}, {"query": torch.tensor(5)},
            {"item_id": None}, {"item_id": ["B03"]}, {"query": b"red"}, {"item_id": np.array([1, 2])}, ["B03"], None,
            {"item_id": "B03", "query": ["red"]}, {"query": list(range(100_000))}, {"item_id": "x" * 100_000},
            {"item_id": "\ud800"}, {"item_id": {}}, {"query": float("nan")},
        ]  # fmt: skip
        event = draw.choice(events)
        wholes = [
            "B03", "x" * 100_000, 7, {"item_id": "B03"}, {"B03"}, np.zeros((2, 2)), torch.tensor(3.0), object(), b"B03",
            pd.DataFrame({"item_id": ["B03"]}), iter([]), np.array(["B03"]), torch.arange(3), range(3), True,
            float("nan"), [{"item_id": "B03"}] * 1_000_001, list(range(100_000)),
        ]  # fmt: skip
        if draw.random() < 0.4:
            return draw.choice(wholes)
        if isinstance(event, list):  # the first event of a history would make it a batch
            return [{"item_id": "B03"}, event]
        return [*[{"item_id": "B03"}] * draw.choice([0, 1, 3]), event]

    def wrong_query(self) -> Any:
        """Something that is no query."""
        return self.random.choice([
            "", "  ", "\n", 7, 0, False, b"red", object(), float("nan"), {"red": 1}, torch.tensor(5), np.array(5),
            ("",), iter(["red"]), {"red"}, [[]], np.zeros((2, 2)), [7], range(5), [None], np.arange(10**6),
            torch.arange(2),
        ])  # fmt: skip

    def candidates(self, with_unknown: bool) -> Any:
        """A valid list of candidates: removed and unknown ones among them only if these are skipped."""
        draw, table = self.random, self.pipe.tokenizer.identifiers
        available = [item_id for item_id, is_open in zip(table.item_ids, table.available, strict=True) if is_open]
        chosen = draw.choices(available, k=draw.choice([0, 1, 3, 10, 40, 2000 if draw.random() < 0.1 else 5]))
        if with_unknown:
            chosen = [*chosen, *draw.choices([*table.item_ids, "nothing", "x" * 1000], k=3)]
        return draw.choice([list, tuple, np.array, pd.Series if chosen else list])(chosen)

    def wrong_candidates(self) -> Any:
        """Something that is no list of candidates."""
        wrong = [
            "B03",
            None,
            7,
            {"B03": 1},
            {"B03"},
            torch.tensor(3),
            object(),
            iter(["B03"]),
            np.zeros((2, 2)),
            b"B03",
        ]
        lists = [["nothing"], [None], [["B03"]], [7.5], ["x" * 100_000], ["\ud800"], range(100_000), torch.arange(3)]
        return self.random.choice([*wrong, *lists])

    def catalogue_call(self) -> tuple[Callable[..., Any], dict[str, Any], bool]:
        """A change of the catalogue, or a use of the tokenizer that changes its state."""
        draw, table, pipe = self.random, self.pipe.tokenizer.identifiers, self.pipe
        what = draw.choice(["add", "remove", "restore", "wrong", "tokenizer"])
        is_open = [item_id for item_id, is_open in zip(table.item_ids, table.available, strict=True) if is_open]
        if what == "add" and table.num_items < 60:
            self.num_added += 1
            new = pd.DataFrame({"item_id": [f"N{self.num_added}"], "title": [draw.choice(QUERIES[:12])]})
            return pipe.add_items, {"items": new}, True
        if what == "remove" and len(is_open) > 5:
            return pipe.remove_items, {"item_ids": draw.sample(is_open, k=draw.randint(1, 3))}, True
        if what == "wrong":
            wrong = draw.choice(
                ["B03", ["nothing"], {"nothing": 1}, [["B03"]], np.zeros((2, 2)), [7.5], ["B03", "B03"]]
            )
            return draw.choice([pipe.remove_items, pipe.restore_items]), {"item_ids": wrong}, False
        if what == "tokenizer":
            options = {
                "padding": draw.choice([True, "max_length"]),
                "truncation": True,
                "max_length": draw.randint(1, 3),
            }
            return pipe.tokenizer, {"text": ["red soap", "blue"], **options}, True
        closed = sorted(set(table.item_ids) - set(is_open))
        return pipe.restore_items, {"item_ids": draw.sample(closed, k=min(len(closed), 2))}, True

    # ---- what is answered

    def check(self, kind: str, call: Callable[..., Any], arguments: dict[str, Any], answer: Any) -> None:
        """Raise `WrongAnswer` unless the answer to a valid call is right."""
        if repr(call(**arguments)) != repr(answer):
            raise WrongAnswer("the second answer differs from the first")
        history = arguments["history"]
        if history is None:
            require(answer == [], "no queries have answers")
            return
        is_batch = bool(history) and isinstance(history[0], list)
        if not is_batch:
            self.check_one(kind, arguments, answer)
            return
        require(len(answer) == len(history), "the batch has another number of answers")
        checked = self.random.randrange(len(answer))
        for row, own in enumerate(answer):
            single = {"history": history[row]}
            for name, value in arguments.items():
                if name != "history":
                    single[name] = value[row] if name in ("query", "candidates") else value
            self.check_one(kind, single, own)
            if row == checked:
                check_same(own, call(**single), "query" if kind == "suggest_queries" else "item_id")

    def check_one(self, kind: str, arguments: dict[str, Any], answer: list[dict[str, Any]]) -> None:
        """The same for one request."""
        scores, table = [a["score"] for a in answer], self.pipe.tokenizer.identifiers
        require(all(type(score) is float for score in scores), "a score is no float")
        require(scores == sorted(scores, reverse=True), "the scores are not sorted")
        require(bool(np.isfinite(scores).all()) or "beam_search" in kind, "a score is not finite")
        require(not np.isnan(scores).any(), "a score is NaN")
        top_k = arguments.get("top_k", 3 if kind == "suggest_queries" else 10)
        if kind == "suggest_queries":
            queries = [a["query"] for a in answer]
            require(len(queries) <= top_k and len(set(queries)) == len(queries), "suggestions repeat or are too many")
            require(all(query.strip() == query != "" for query in queries), "a suggestion is blank")
            return
        item_ids, rows = [a["item_id"] for a in answer], table.rows()
        is_open = {item_id for item_id, is_open in zip(table.item_ids, table.available, strict=True) if is_open}
        require(set(item_ids) <= is_open, "an item is not available")
        require(all(a["title"] == table.titles[rows[a["item_id"]]] for a in answer), "a title is another item's")
        if kind.startswith("rank"):
            wanted = sorted(item_id for item_id in map(str, arguments["candidates"]) if item_id in is_open)
            require(sorted(item_ids) == wanted, "other items than the candidates are ranked")
            return
        seen = {str(event.get("item_id")) for event in arguments["history"]} if arguments["exclude_seen"] else set()
        require(len(set(item_ids)) == len(item_ids), "an item is answered twice")
        require(not seen & set(item_ids), "a seen item is answered")
        require(len(item_ids) == min(top_k, len(is_open - seen)), f"{len(item_ids)} answers instead of {top_k}")
        if arguments["explain"]:
            sums = [sum(a["parts"].values()) for a in answer]
            require(np.allclose(sums, scores, atol=1e-3), "the parts do not sum up to the score")

    def table(self) -> str:
        """How many calls of each kind ended in which way."""
        kinds = sorted({kind for kind, _ in self.counts})
        frame = pd.DataFrame([[self.counts[kind, name] for name in CLASSES] for kind in kinds], kinds, CLASSES)
        frame.loc["all"] = frame.sum()
        return frame.to_string()


def check_same(answer: list[dict[str, Any]], alone: list[dict[str, Any]], key: str) -> None:
    """Raise `WrongAnswer` unless two answers are the same up to rounding.

    Rounding decides between equal scores: which neighbor is first, which item is the last, and which beam is kept. A
    tenth of the items may therefore differ, and those that score as the last one.
    """
    require(len(answer) == len(alone), "a batch has another number of answers than a single request")
    scores, others = ({a[key]: a["score"] for a in each} for each in (answer, alone))
    both = [name for name in scores if name in others]
    differ = [abs(scores[name] - others[name]) for name in both if np.isfinite([scores[name], others[name]]).any()]
    require(max(differ, default=0.0) < 1e-3, "a batch has other scores than a single request")
    for own, other in ((scores, others), (others, scores)):
        last = min(own.values(), default=0.0)
        missing = [name for name in own if name not in other and abs(own[name] - last) > 1e-3]
        require(len(missing) <= len(own) / 10, "a batch has other answers than a single request")
    values = np.array([scores[name] for name in both])
    is_clear = np.isfinite(values).all() and (len(values) < 2 or np.diff(values).max() < -1e-3)
    order = list(dict.fromkeys(a[key] for a in alone if a[key] in scores))  # candidates may be repeated
    require(not is_clear or both == order, "a batch has another order")


def require(holds: bool, trouble: str) -> None:
    """Raise `WrongAnswer` unless something holds."""
    if not holds:
        raise WrongAnswer(trouble)


def alarm(*unused: object) -> None:
    """A call takes too long."""
    raise TimeoutError


def refusal(error: ValueError) -> str:
    """The class of a refusal: "refused" for one sentence of this package, "unclear" otherwise."""
    origin = traceback.extract_tb(error.__traceback__)[-1].filename
    text = str(error)
    is_sentence = len(text) <= 500 and "\n" not in text and text.endswith((".", "?")) and text.isprintable()
    return "refused" if is_sentence and "gensar_hf" in origin else "unclear"


def main() -> None:
    """Train the tiny model, make the calls, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000, help="number of calls")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    parser.add_argument("--model", help="folder of a trained tiny model; default: one is trained")
    settings = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        if settings.model is None:
            from gensar_hf.training.stages import train

            train(tiny_runs.make_dataset(), tiny_runs.arguments(folder, max_steps=30))
        pipe = GenSARPipeline.from_pretrained(settings.model or Path(folder) / "model", device="cpu")
        calls = Calls(pipe, settings.seed)
        with contextlib.suppress(KeyboardInterrupt):  # the table of the calls until then
            for number in range(settings.calls):
                calls.run(number)
    print(calls.table())
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    raise SystemExit(bool(calls.bad))


if __name__ == "__main__":
    main()
