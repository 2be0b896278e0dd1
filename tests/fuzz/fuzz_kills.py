"""Kill trainings, saves and bulk answers at random moments, start commands twice, and compare what remains with
undisturbed runs.

    python tests/fuzz/fuzz_kills.py --kills 50 --bulk_kills 10 --double_starts 10 --seed 0

A kill is a signal after a random time, or SIGKILL before a random file operation. Every disturbed command is repeated
until it ends. The table counts, for each class: right; refused with a sentence and exit status 2; traceback; hang;
wrong result. Exit status 1 if there is any of the last three. Processes are forked from one that has imported torch.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import pandas as pd
import tiny_runs
import torch
import tqdm.auto

from gensar_hf import GenSARPipeline, cli, train
from gensar_hf.training.stages import STAGES

OUTCOMES = RIGHT, REFUSED, TRACEBACK, HANG, WRONG = "right", "refused", "traceback", "hang", "wrong result"
SETTINGS = {"max_steps": 16, "save_steps": 3}
OPERATIONS = ("rename", "replace", "mkdir", "unlink", "rmdir", "fsync", "open")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
LONGEST = 300.0  # seconds of a command


class Process:
    """A forked call; its screen goes to a file."""

    def __init__(self, call: Callable[[], Any], log: Path, operations: int | None = None) -> None:
        self.log, self.start = log, time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(call, operations)

    def _run(self, call: Callable[[], Any], operations: int | None) -> None:
        status = 1
        # Forks share the lock of the progress bars, and one that is killed while it holds it would stop all others.
        for bar in (tqdm.tqdm, tqdm.auto.tqdm):
            bar.set_lock(threading.RLock())
        try:
            screen = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(screen, 1)
            os.dup2(screen, 2)
            if operations is not None:
                kill_before(operations)
            status = cli.exit_status(call)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self, seconds: float = LONGEST) -> int | None:
        """The exit status, negative for a signal; None if the process still runs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        return None

    def outcome(self) -> str:
        """How the process ended by itself."""
        status = self.wait()
        if status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
            return HANG
        lines = self.log.read_text(errors="replace").splitlines()
        if status == 0:
            return RIGHT
        errors = [line for line in lines if line.startswith("error: ")]
        return REFUSED if status == 2 and len(errors) == 1 and len(errors[0]) <= 507 else TRACEBACK


def kill_before(operations: int) -> None:
    """Kill this process at its n-th operation on files."""
    left = [operations]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))


def contents(folder: Path) -> dict[str, Any]:
    """All files of a run or model, leftovers of killed processes included; of `stage.json` what does not vary."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "stage.json":
            record = json.loads(path.read_text())
            found[name] = {"details": record["details"], "files": record["files"]}
        elif path.is_file() and path.name != ".gensar.lock":
            found[name] = path.read_bytes()
    return found


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """What differs between two results of `contents`: the names, and records in full."""
    names = sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))
    pairs = [[each.get(name, "no file") for each in (found, expected)] for name in names[:5]]
    shown = [[f"{len(each)} bytes" if isinstance(each, bytes) else each for each in pair] for pair in pairs]
    return "; ".join(f"{name}: {pair[0]} in place of {pair[1]}" for name, pair in zip(names, shown, strict=False))


class Fuzz:
    """The counts, and a folder for all runs."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random, self.counts = folder, random.Random(seed), dict[str, Counter[str]]()
        self.data = tiny_runs.make_dataset()
        start = time.monotonic()
        reference = Process(lambda: self.train("reference"), folder / "log")
        assert reference.outcome() == RIGHT, (folder / "log").read_text()
        self.seconds = time.monotonic() - start
        self.expected = contents(folder / "reference")
        shutil.copytree(folder / "reference", folder / "again", ignore=shutil.ignore_patterns("model"))
        start = time.monotonic()
        assert self.finish("again") == RIGHT
        self.seconds_of_last_stage = time.monotonic() - start
        pipe = GenSARPipeline.from_pretrained(folder / "reference" / "model", device="cpu")
        self.pipes = [pipe, GenSARPipeline.from_pretrained(folder / "reference" / "model", device="cpu")]
        with torch.no_grad():
            self.pipes[1].model.shared.weight += 1
        self.pipes[1].remove_items(["B03"])
        self.saved = []
        for number, each in enumerate(self.pipes):
            each.load_item_encoder()
            each.save_pretrained(folder / f"saved-{number}")
            self.saved.append(contents(folder / f"saved-{number}"))
        item_ids = pipe.items["item_id"].tolist()
        rows = [{"user_id": f"u{user}", "history": self.random.choices(item_ids, k=3)} for user in range(400)]
        (folder / "histories.jsonl").write_text("\n".join(map(json.dumps, rows)))
        start = time.monotonic()
        assert Process(lambda: self.answer("answers"), folder / "log").outcome() == RIGHT, (folder / "log").read_text()
        self.seconds_of_answers, self.answers = time.monotonic() - start, contents(folder / "answers")

    def train(self, name: str) -> None:
        """The run that all are compared with."""
        cli.set_up_logging()
        train(self.data, tiny_runs.arguments(self.folder / name, **SETTINGS))

    def count(self, kind: str, outcome: str, what: Any = "") -> None:
        """Count a case; show those that are faults."""
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if outcome not in (RIGHT, REFUSED):
            log = (self.folder / "log").read_text(errors="replace")[-3000:]
            print(f"{kind}: {outcome} {what}\n{log}", file=sys.stderr, flush=True)

    def disturb(self, call: Callable[[], Any], seconds: float, operations: int) -> Any:
        """Start a call and kill it, by a signal after some time or before a file operation; what was done."""
        if self.random.random() < 0.5:
            what = ("operation", self.random.randint(1, operations))
            process = Process(call, self.folder / "log", what[1])
            return what, process.outcome() if process.wait(LONGEST) is None else None
        delay, number = self.random.uniform(0, seconds), self.random.choice(SIGNALS)
        process = Process(call, self.folder / "log")
        if process.wait(delay) is None:
            os.kill(process.pid, number)
            status = process.wait()
            if status is None:
                return (number, delay), process.outcome()
            if number == signal.SIGINT and status not in (0, 130):
                self.count("Ctrl-C", TRACEBACK, status)
        return (number, delay), None

    def kill_training(self, number: int) -> int:
        """One to three kills of a training, then the same command until its end; the number of kills."""
        name, kills, share = f"run-{number}", self.random.randint(1, 3), 1.0
        if self.random.random() < 0.7:  # kills of the last stage
            shutil.copytree(self.folder / "reference", self.folder / name, ignore=shutil.ignore_patterns("model"))
            share = self.seconds_of_last_stage / self.seconds
        seconds, operations = 1.1 * share * self.seconds, int(900 * share)
        done = [self.disturb(lambda: self.train(name), seconds, operations) for _ in range(kills)]
        outcome = HANG if any(hang for _, hang in done) else self.finish(name)
        self.count("killed training", outcome, [what for what, _ in done])
        return kills

    def finish(self, name: str) -> str:
        """Give the command once more; whether the run is that of an undisturbed one."""
        outcome = Process(lambda: self.train(name), self.folder / "log").outcome()
        found = contents(self.folder / name)
        folders = sorted(path.name for path in (self.folder / name).iterdir())
        if outcome == RIGHT and (found != self.expected or folders != sorted(STAGES)):
            print(f"{name}: {folders}; {difference(found, self.expected)}", file=sys.stderr)
            return WRONG
        shutil.rmtree(self.folder / name)
        return outcome if outcome in (RIGHT, HANG) else TRACEBACK

    def kill_save(self, number: int) -> None:
        """Kill a save over another model; then the folder is one model or the other."""
        folder = self.folder / f"model-{number}"
        shutil.copytree(self.folder / "saved-0", folder)
        what, hang = self.disturb(lambda: self.pipes[1].save_pretrained(folder), 0.5, 180)
        loading = Process(lambda: GenSARPipeline.from_pretrained(folder, device="cpu") and None, self.folder / "log")
        outcome = HANG if hang else loading.outcome()
        if outcome == RIGHT:
            found = {name: value for name, value in contents(folder).items() if not name.startswith(".files.aside-")}
            if found not in self.saved:
                outcome = WRONG
                print(*(difference(found, saved) for saved in self.saved), sep="\n", file=sys.stderr)
        self.count("killed save", TRACEBACK if outcome == REFUSED else outcome, what)
        Process(lambda: self.pipes[1].save_pretrained(folder), self.folder / "log").outcome()
        if contents(folder) != self.saved[1]:
            self.count("killed save", WRONG, ("the next save", what))
        shutil.rmtree(folder)

    def answer(self, name: str) -> int:
        """Bulk answers in 20 parts."""
        words = [str(self.folder / part) for part in ("saved-0", "histories.jsonl", name)]
        return cli.main(["recommend", *words, "--part_size=20", "--top_k=3"])

    def kill_answers(self, number: int) -> int:
        """One to three kills of bulk answers, then the same command until its end; the number of kills."""
        name, kills = f"answers-{number}", self.random.randint(1, 3)
        seconds, operations = 1.1 * self.seconds_of_answers, 300
        done = [self.disturb(lambda: self.answer(name), seconds, operations) for _ in range(kills)]
        outcome = Process(lambda: self.answer(name), self.folder / "log").outcome()
        if any(hang for _, hang in done):
            outcome = HANG
        elif outcome == RIGHT and contents(self.folder / name) != self.answers:
            outcome = WRONG
        self.count("killed answers", TRACEBACK if outcome == REFUSED else outcome, [what for what, _ in done])
        shutil.rmtree(self.folder / name)
        return kills

    def start_twice(self, number: int) -> None:
        """The same training twice at once: the second is refused or finds it finished, and the result is right."""
        name = f"twice-{number}"
        processes = [Process(lambda: self.train(name), self.folder / "log")]
        time.sleep(self.random.uniform(0, 0.8 * self.seconds))
        processes.append(Process(lambda: self.train(name), self.folder / "log-2"))
        outcomes = [process.outcome() for process in processes]
        last = self.finish(name)
        bad = [outcome for outcome in [*outcomes, last] if outcome not in (RIGHT, REFUSED)]
        if not bad and RIGHT not in outcomes:
            bad = [WRONG]
        self.count("training twice", bad[0] if bad else outcomes[1], (outcomes, last))

    def add_twice(self, number: int) -> None:
        """Two additions at once: each is in the catalogue or was refused."""
        folder = self.folder / f"add-{number}"
        shutil.copytree(self.folder / "saved-0", folder)
        for name in ("N1", "N2"):
            pd.DataFrame({"item_id": [name], "title": ["red soap"]}).to_csv(self.folder / f"{name}.csv", index=False)
        words = [["add-items", str(folder), str(self.folder / f"{name}.csv")] for name in ("N1", "N2")]
        processes = [Process(lambda: cli.main(words[0]), self.folder / "log")]
        time.sleep(self.random.uniform(0, 0.5))
        processes.append(Process(lambda: cli.main(words[1]), self.folder / "log-2"))
        outcomes = [process.outcome() for process in processes]
        items = set(GenSARPipeline.from_pretrained(folder, device="cpu").items["item_id"])
        bad = [outcome for outcome in outcomes if outcome not in (RIGHT, REFUSED)]
        if not bad and any(
            (name in items) != (ended == RIGHT) for name, ended in zip(("N1", "N2"), outcomes, strict=True)
        ):
            bad = [WRONG]
        self.count("add-items twice", bad[0] if bad else outcomes[1], outcomes)
        shutil.rmtree(folder)


def main() -> int:
    """Run all cases, print the table; 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--bulk_kills", type=int, default=10)
    parser.add_argument("--double_starts", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    with tempfile.TemporaryDirectory() as folder:
        fuzz, kills, starts, number = Fuzz(Path(folder), args.seed), 0, 0, 0
        with contextlib.suppress(KeyboardInterrupt):  # the table of the cases until then
            while kills < args.kills or starts < args.double_starts:
                number += 1
                if starts * args.kills < kills * args.double_starts or kills >= args.kills:
                    starts += 1
                    (fuzz.start_twice if starts % 2 else fuzz.add_twice)(number)
                elif number % 3 == 0:
                    kills += fuzz.kill_training(number)
                else:
                    fuzz.kill_save(number)
                    kills += 1
            bulk_kills = number = 0
            while bulk_kills < args.bulk_kills:
                number += 1
                bulk_kills += fuzz.kill_answers(number)
            kills += bulk_kills
        print(f"{kills} kills, {starts} double starts")
    print(f"{'':<20}" + "".join(f"{outcome:>14}" for outcome in OUTCOMES))
    for kind, counts in fuzz.counts.items():
        print(f"{kind:<20}" + "".join(f"{counts[outcome]:>14}" for outcome in OUTCOMES))
    return int(any(counts[outcome] for counts in fuzz.counts.values() for outcome in (TRACEBACK, HANG, WRONG)))


if __name__ == "__main__":
    sys.exit(main())
