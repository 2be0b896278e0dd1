"""The command `gensar`: train, evaluate, search, recommend, add-items, push, serve, space."""

import argparse
import dataclasses
import difflib
import inspect
import io
import logging
import os
import re
import sys
import textwrap
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from gensar_hf.errors import InputError, extra_installed, shown

USAGE = """usage: gensar COMMAND ... (gensar COMMAND --help lists the settings)

  train      two tables → a model that searches and recommends
  evaluate   a run's model on the clicks that were held out, next to other systems
  search     items for a query, or for all queries of a file
  recommend  items for a history of clicks, or for all users of a file
  serve      a page and a REST API of a model
  space      a Hugging Face Space of a model
  add-items  take new items up, remove or restore items; nothing is trained
  push       upload a model to the Hub
"""


WIDTH = 118
HINT = "--help lists the settings."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 2 and one sentence on stderr for input that cannot be used.

    Args:
        argv: default: the command line.
    """
    return exit_status(_run, list(sys.argv[1:] if argv is None else argv))


def _run(words: list[str]) -> int | None:
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("gensar-hf"))
        return 0
    if words[0] not in COMMANDS:
        raise InputError(f"There is no command {shown(words[0])}; commands are {', '.join(COMMANDS)}.")
    return COMMANDS[words[0]](words[1:])


def exit_status(command: Callable[..., int | None], *arguments: Any) -> int:
    """Call a command; 2 and one sentence on stderr for input that cannot be used, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # titles may hold what the terminal cannot show
    try:
        return command(*arguments) or 0
    except InputError as error:
        print(f"error: {_one_sentence(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:  # torch raises a RuntimeError where the memory of the CPU is full
        if isinstance(error, RuntimeError) and not re.search(r"can't allocate memory|out of memory", str(error)):
            raise
        reason = _one_sentence(error)[:200] if str(error) else "MemoryError."
        print(f"error: There is too little memory; give smaller sizes or batches ({reason[:-1]}).", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command continues where it stopped.", file=sys.stderr)
        return 130
    except SystemExit as ended:  # after --help and --print_config
        return int(ended.code or 0)


def _one_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith((".", "?")) else text + "."


class SettingsParser(ArgumentParser):
    """jsonargparse with a help text of one line a setting, which leaves out those that are only hidden in it."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, exit_on_error=False, print_config=None)
        self.hidden: set[str] = set()

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Usage, description and settings; a value in brackets is the default."""
        words = [_usage(action) for action in self._get_positional_actions()]
        lines = [" ".join(["usage:", self.prog, *words, "[--SETTING VALUE ...]"]), ""]
        lines += [*textwrap.wrap(str(self.description), WIDTH), ""]
        for action in self._actions:
            name = action.option_strings[-1].removesuffix("+") if action.option_strings else action.dest
            if action.dest not in self.hidden and action.help != argparse.SUPPRESS:
                start = f"  {name:<25} "
                text = f"{start}{action.help}{_default_text(action)}"
                wrapped = textwrap.wrap(text, WIDTH, subsequent_indent=" " * len(start), drop_whitespace=False)
                lines += [line.rstrip() for line in wrapped]
        return "\n".join(lines) + "\n"


def _usage(action: Any) -> str:
    return {"?": f"[{action.dest}]", "*": f"[{action.dest} ...]"}.get(action.nargs, action.dest)


def _default_text(action: Any) -> str:
    if typing.get_origin(action._typehint if hasattr(action, "_typehint") else None) is typing.Literal:
        choices = ", ".join(str(each) for each in typing.get_args(action._typehint))
        return f" ({choices}) [{action.default}]"
    if not action.option_strings or action.default in (None, argparse.SUPPRESS, [], ""):
        return ""
    value = str(action.default).lower() if isinstance(action.default, bool) else action.default
    return f" [{value}]"


def read_settings(parser: SettingsParser, argv: Sequence[str]) -> Any:
    """The parsed command line, a YAML file of `--config` under it; with `--print_config` they are printed instead.

    Raises:
        SystemExit: after `--help` and `--print_config`.
        InputError: a setting that does not exist or has a wrong type, or a file that cannot be read.
    """
    known = [name.removesuffix("+") for action in parser._actions for name in action.option_strings]
    options = [*argv][: argv.index("--") if "--" in argv else None]  # what follows begins with - and is no setting
    for place, word in enumerate(options):
        name, _, value = word.partition("=")
        if name == "--config" and "--config" in known:
            path = value or next(iter(options[place + 1 :]), "")
            _check_names(_read_config(path), known, f" in {path}")
        elif name.startswith("--"):
            _check_names([name.removeprefix("--").partition(".")[0].removesuffix("+")], known, "")
    try:
        settings = parser.parse_args(argv)
    except argparse.ArgumentError as error:
        dashed = next((word for word in options if re.match(r"-[^-]", word)), None)
        if dashed is not None and re.search(r"expected one argument|nrecognized", str(error)):
            raise InputError(
                f"{shown(dashed)} begins like a setting; write such ids and queries at the end, after --, and lists of "
                f"them as in --history=[-abc]. {HINT}"
            ) from None
        raise InputError(_explained(parser, error)) from None
    settings.pop("config", None)
    if settings.pop("print_config", False):
        print_config(parser, settings.as_dict())
        raise SystemExit(0)
    return settings


def _check_names(names: Iterable[str], known: Sequence[str], where: str) -> None:
    for name in names:
        if f"--{name}" not in known:
            close = difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError(f"There is no setting --{name}{where}; {hint}--help lists the settings.")


def _read_config(path: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The settings {path} cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {_one_sentence(error)[:300]}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise InputError(f"{path} must hold settings, one a line, such as `max_steps: 300`.")
    return {str(name): value for name, value in settings.items()}


def _explained(parser: SettingsParser, error: argparse.ArgumentError) -> str:
    """What jsonargparse complains about, as a sentence."""
    text = _one_sentence(error)
    found = re.match(r'Parser key "([^".]+).*?(?:Given|Got) value: (.*)', text)
    if found is None:
        return f"{text[:300]} {HINT}"
    name, value = found.groups()
    action: Any = next(action for action in parser._actions if action.dest == name)
    label = action.option_strings[-1].removesuffix("+") if action.option_strings else name
    return f"{label} takes {_kind_text(action._typehint)}; got {value[:100].removesuffix('.')}. {HINT}"


def _kind_text(kind: Any) -> str:
    """A type, in words."""
    origin, inner = typing.get_origin(kind), [each for each in typing.get_args(kind) if each is not type(None)]
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind_text(each) for each in inner))
    if inspect.isclass(kind) and issubclass(kind, Enum):
        return f"one of {', '.join(str(each.value) for each in kind)} (in quotes)"
    texts = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        dict: "a mapping {name: value}",
    }
    return texts.get(origin or kind, "a list [a, b]")


def add_settings(
    parser: SettingsParser,
    function: Any,
    skip: Sequence[str] = (),
    shown: Sequence[str] | None = None,
    help_of: Any = None,
) -> None:
    """Options for the fields of a dataclass, or for the keyword parameters of a function, with their help.

    Args:
        parser: that gets them.
        function: a dataclass whose fields have `help` metadata, or a callable with a Google docstring.
        skip: names that are left out.
        shown: names that `--help` lists; default: all.
        help_of: callable whose docstring describes parameters that `function` only refers to.
    """
    if dataclasses.is_dataclass(function):
        hints = typing.get_type_hints(function)
        for item in dataclasses.fields(function):
            if item.name in skip or not item.init:
                continue
            default = item.default if item.default is not dataclasses.MISSING else None
            if item.default_factory is not dataclasses.MISSING:
                default = item.default_factory()
            text = _SHORTER.get(item.name, item.metadata.get("help", ""))
            parser.add_argument(f"--{item.name}", type=hints[item.name], default=default, help=text)
            if shown is not None and item.name not in shown:
                parser.hidden.add(item.name)
        return
    texts = {**_parameter_help(function), **(_parameter_help(help_of) if help_of is not None else {})}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in skip or parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        kind = parameter.annotation
        if isinstance(kind, str):  # of a module whose annotations are not evaluated
            kind = eval(kind, vars(sys.modules[function.__module__]))
        parser.add_argument(f"--{name}", type=kind, default=parameter.default, help=texts.get(name, ""))


# Help texts of `TrainingArguments` that are too long for a line.
_SHORTER = {
    "output_dir": "folder of the run.",
    "max_steps": "training steps of the generator; default: as many as num_train_epochs take.",
}


def _parameter_help(function: Any) -> dict[str, str]:
    """Name → first sentence of its entry in the docstring's `Args:`."""
    lines = (inspect.getdoc(function) or "").partition("Args:\n")[2].splitlines()
    texts: dict[str, str] = {}
    name = ""
    for line in lines:
        if not line.strip():
            break
        if line.startswith("    ") and not line.startswith("     ") and ":" in line:
            name, _, text = line.strip().partition(":")
            texts[name] = text.strip()
        elif name:
            texts[name] += " " + line.strip()
    return {name: re.split(r"(?<=\.) (?=[A-Z`])", text)[0].replace("`", "") for name, text in texts.items()}


# ---- train


def train_command(argv: Sequence[str]) -> None:
    """`gensar train`: all stages, then what to do next."""
    from gensar_hf.training.stages import MODEL, process_rank, train

    parser = training_parser(
        "gensar train",
        "Train on two tables. A finished stage is skipped when the command is repeated; a killed training continues. "
        "All fields of transformers.TrainingArguments are settings as well, such as --seed 1 --eval_strategy steps. A "
        "value in brackets is the default.",
    )
    _add_engine(parser, "of the text stage: this process, or workers of Ray", "text encoder")
    settings = read_settings(parser, argv).as_dict()
    workers = {name: settings.pop(name) for name in ("engine", "num_workers", "num_gpus")}
    dataset, args = dataset_and_arguments(settings)
    set_up_logging()
    pipe = train(dataset, args, on_stage=StageLines(), **workers)
    if process_rank() > 0:
        return
    show_answers(pipe, dataset)
    model_dir = Path(str(args.output_dir)) / MODEL
    print(f"\nThe model is in {model_dir}. Next:")
    print(f"    gensar evaluate {args.output_dir}")
    print(f'    gensar search {model_dir} "…"')


def training_parser(prog: str, description: str) -> SettingsParser:
    """A parser of every setting of the dataset and of the training, with `--config` for a YAML file of them."""
    from gensar_hf.data import InteractionDataset
    from gensar_hf.training.arguments import GenSARTrainingArguments

    parser = SettingsParser(prog, description)
    parser.add_argument("--config", action="config", help="YAML file of settings, one a line; options override it.")
    parser.add_argument("--print_config", action="store_true", help="print the settings as such a file, and end.")
    parser.add_argument("--items", type=str | None, help="items table: item_id and text columns (Parquet, CSV, …).")
    parser.add_argument("--interactions", type=str | None, help="interactions: user_id, item_id, timestamp, query.")
    add_settings(parser, InteractionDataset, skip=("history", "seed"))
    parser.add_argument("--dataset_seed", type=int, default=0, help="of the choice of search clicks.")
    own = GenSARTrainingArguments.own_settings()
    add_settings(
        parser,
        GenSARTrainingArguments,
        skip=["parallelism_config"],
        shown=["output_dir", *own, "max_steps", "learning_rate", "num_train_epochs", "per_device_train_batch_size"],
    )
    return parser


def print_config(parser: SettingsParser, settings: dict[str, Any]) -> None:
    """Print the settings as YAML: all that `--help` lists, and those of the others that differ from their defaults."""
    defaults = {action.dest: action.default for action in parser._actions}
    shown = {name: v for name, v in settings.items() if name not in parser.hidden or v != defaults[name]}
    print(yaml.safe_dump(_plain(shown), sort_keys=False, allow_unicode=True), end="")


def dataset_and_arguments(settings: dict[str, Any]) -> tuple[Any, Any]:
    """The dataset and the training arguments that a flat mapping of settings describes.

    Args:
        settings: names of `training_parser` → values; those with defaults may be left out.

    Raises:
        InputError: a table or the output folder is not named, a setting does not exist, or a value is out of range.
    """
    from gensar_hf.data import InteractionDataset
    from gensar_hf.training.arguments import GenSARTrainingArguments
    from gensar_hf.training.stages import refuse_input_in_stage

    settings = dict(settings)
    for name in ("items", "interactions", "output_dir"):
        if not settings.get(name):
            raise InputError(
                f"Name the {name.replace('_', ' ')} with --{name}; gensar train --help lists the settings."
            )
    for name in ("items", "interactions"):
        refuse_input_in_stage(settings[name], Path(settings["output_dir"]))
    seed = settings.pop("dataset_seed", 0)
    names = [name for name in inspect.signature(InteractionDataset).parameters if name in settings and name != "seed"]
    of_dataset = {name: settings.pop(name) for name in names}
    _check_names(settings, [f"--{item.name}" for item in dataclasses.fields(GenSARTrainingArguments)], "")
    with settings_checked():
        args = GenSARTrainingArguments(**settings)
    with settings_checked("gensar_hf."):
        dataset = InteractionDataset(**of_dataset, seed=seed)
    return dataset, args


def _plain(value: Any) -> Any:
    """Settings as YAML writes them."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return value.value if isinstance(value, Enum) else list(value) if isinstance(value, tuple) else value


@contextmanager
def settings_checked(module: str = "") -> Iterator[None]:
    """Report a `ValueError` about a setting as input that cannot be used; all other errors are defects.

    Args:
        module: start of the name of the modules whose errors count; default: all of them.

    Raises:
        InputError: a value out of range.
    """
    try:
        yield
    except ValueError as error:
        frame = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
        if not str(frame.f_globals.get("__name__")).startswith(module):
            raise
        raise InputError(_one_sentence(error)[:480]) from error


class StageLines:
    """Prints a line a stage."""

    def __call__(self, report: Any) -> None:
        """Print the stage's name, time and figures."""
        state = "already finished" if report.skipped else f"{report.seconds:.1f} s"
        facts = {name: value for name, value in report.details.items() if type(value) in (int, float)}
        shown = ", ".join(
            f"{name} {value:,.4g}" if value < 10 else f"{name} {value:,.0f}" for name, value in facts.items()
        )
        print(f"{report.stage:<14}{state:>18}   {shown}"[:150], flush=True)


def show_answers(pipe: Any, dataset: Any, top_k: int = 3) -> None:
    """Print one user's last events, and what the model answers, in titles."""
    from gensar_hf.data import RECOMMENDATION, SEARCH
    from gensar_hf.evaluation.scorer import request_history

    split = dataset.split
    task = SEARCH if len(split.test[SEARCH]) else RECOMMENDATION
    requests = split.test[task]
    if not len(requests):
        return
    history = request_history(requests, 0)
    titles = dict(zip(dataset.item_ids, dataset.titles, strict=True))
    user = dataset.events.user_ids[int(requests.users[0])]
    print(f"\nUser {user}, latest of {len(history)} events:")
    for event in history[-5:]:
        if "item_id" in event:
            print(f"    {'found' if event.get('query') else 'clicked'} {titles[event['item_id']]}")
        else:
            print(f"    searched “{event['query']}”")
    print("Recommended:")
    _print_answers(pipe.recommend(history, top_k=top_k, exclude_seen=True))
    if task == SEARCH:
        query = requests.query_texts[0]
        print(f"Found for “{query}”:")
        _print_answers(pipe.search(query, history, top_k=top_k))


def _print_answers(answers: list[dict[str, Any]]) -> None:
    for place, answer in enumerate(answers, start=1):
        print(f"    {place:>2}  {answer['score']:8.2f}  {answer['title'] or ''}  [{answer['item_id']}]")
        if parts := answer.get("parts"):
            print("                  " + ", ".join(f"{name} {value:.2f}" for name, value in parts.items()))


# ---- evaluate


def evaluate_command(argv: Sequence[str]) -> int:
    """`gensar evaluate`: the run's model and other systems by kind of query and on held-out clicks."""
    from rich.console import Console

    from gensar_hf.baselines.run_systems import run_systems
    from gensar_hf.data import InteractionDataset
    from gensar_hf.evaluation import Evaluation, evaluate_pipeline, evaluate_query_kinds, gensar_rows
    from gensar_hf.folders import saving
    from gensar_hf.pipeline import GenSARPipeline
    from gensar_hf.training.stages import DATA, MODEL

    about = (
        "Search all items for titles, parts of them, errors and attributes, and rank held-out clicks among sampled "
        "candidates; write RUN/results."
    )
    parser = SettingsParser("gensar evaluate", about)
    parser.add_argument("run", type=str, help="output_dir of gensar train.")
    add_settings(parser, evaluate_pipeline, skip=("systems", "tasks"), help_of=Evaluation)
    parser.add_argument(
        "--baselines", type=bool, default=True, help="SASRec, popularity, BM25, dense and hybrid search."
    )
    parser.add_argument("--trec_runs", type=bool, default=False, help="write run files for ranx or ir-measures.")
    parser.add_argument("--queries_per_kind", type=int, default=200, help="searched among all items; 0: none.")
    settings = read_settings(parser, argv).as_dict()
    run_dir, queries_per_kind = Path(settings.pop("run")), settings.pop("queries_per_kind")
    trec_runs = settings.pop("trec_runs")
    if queries_per_kind < 0:
        raise InputError(f"--queries_per_kind must not be negative; got {queries_per_kind}. 0 leaves the table out.")
    if not (run_dir / MODEL).is_dir() or not (run_dir / DATA).is_dir():
        raise InputError(f"{run_dir} holds no finished run (folders data and model); run gensar train first.")
    set_up_logging()
    folder, console = run_dir / "results", Console()
    with saving(
        folder, replace=True, names=("metrics.json", "ranks.parquet", "tables.md", "ndcg.png", "query_kinds.json")
    ) as aside:
        dataset, pipe = InteractionDataset.load(run_dir / DATA), GenSARPipeline.from_pretrained(run_dir / MODEL)
        systems = run_systems(run_dir, dataset) if settings.pop("baselines") else []
        result = evaluate_pipeline(pipe, dataset, systems=systems, **settings)
        result.save(aside, trec_runs)
        failures = dict(result.failures)
        if queries_per_kind:
            rows, options = [*gensar_rows(pipe), *systems], {name: settings[name] for name in ("part", "seed")}
            kinds = evaluate_query_kinds(rows, dataset, max_requests=queries_per_kind, **options)
            kinds.save(aside)
            failures |= kinds.failures
            console.print(kinds.terminal_table())
    console.print(result.terminal_table())
    print(f"\nRanks, tables and pictures are in {folder}.")
    return 1 if failures else 0


# ---- ask


def search_command(argv: Sequence[str]) -> None:
    """`gensar search`: answers to a query, or to all queries of a file."""
    parser = SettingsParser("gensar search", "Items for a query, or for every query of a file.")
    parser.add_argument("model", type=str, help="run, model folder, adapter folder or Hub name.")
    parser.add_argument("query", type=str, help="what was typed; or a .parquet or .jsonl file of queries.")
    parser.add_argument("answers", type=str, nargs="?", help="folder for the answers to a file's queries.")
    parser.add_argument("--history", type=list[str], default=[], help="item ids clicked before, oldest first: [a,b].")
    _add_answer_settings(parser, exclude_seen=False)
    parser.add_argument("--explain", type=bool, default=False, help="show the parts of each score of one request.")
    settings = read_settings(parser, argv)
    if settings.answers is not None:
        answer_file(settings, "search", settings.query, settings.answers)
        return
    pipe, history, options = ready_to_answer(settings)
    with settings_checked("gensar_hf"):
        _print_answers(pipe.search(settings.query, history, explain=settings.explain, **options))


def recommend_command(argv: Sequence[str]) -> None:
    """`gensar recommend`: the next items for a history, or for all histories of a file."""
    parser = SettingsParser("gensar recommend", "The items that a user will click next, or every user of a file.")
    parser.add_argument("model", type=str, help="run, model folder, adapter folder or Hub name.")
    about = "item ids clicked before, oldest first; or a .parquet or .jsonl file of histories or events, and a folder."
    parser.add_argument("history", type=str, nargs="*", help=about)
    _add_answer_settings(parser, exclude_seen=True)
    settings = read_settings(parser, argv)
    first = Path(settings.history[0]) if settings.history else Path()
    if first.suffix in (".parquet", ".jsonl") or (len(settings.history) == 2 and first.is_dir()):
        if len(settings.history) != 2:
            raise InputError(f"Name one folder for the answers: gensar recommend {settings.model} {first} answers.")
        answer_file(settings, "recommend", *settings.history)
        return
    pipe, history, options = ready_to_answer(settings)
    with settings_checked("gensar_hf"):
        _print_answers(pipe.recommend(history, **options))


def _add_answer_settings(parser: SettingsParser, exclude_seen: bool) -> None:
    parser.add_argument("--top_k", type=int, default=10, help="number of answers.")
    parser.add_argument("--among", type=str | None, help="table with a column item_id: no other items are answers.")
    parser.add_argument("--exclude_seen", type=bool, default=exclude_seen, help="leave out the items of the history.")
    on_unknown = typing.Literal["raise", "skip"]
    parser.add_argument("--on_unknown", type=on_unknown, default="raise", help="about unknown items")
    parser.add_argument("--part_size", type=int, default=10_000, help="of a file: requests in a part of the answers.")
    _add_engine(parser, "of a file: this process, or workers of Ray", "model")


def _add_engine(parser: SettingsParser, about: str, copied: str) -> None:
    parser.add_argument("--engine", type=typing.Literal["local", "ray"], default="local", help=about)
    parser.add_argument("--num_workers", type=int, default=2, help=f"of --engine ray: copies of the {copied}.")
    parser.add_argument("--num_gpus", type=float, default=0.0, help="of --engine ray: GPUs of each worker.")


def answer_file(settings: Any, task: str, source: str, output_dir: str) -> None:
    """Answer every request of a file into a folder; the same command continues after a kill."""
    from gensar_hf.serving.bulk import BulkAnswers, write_answers

    write: Callable[..., int] = write_answers
    if settings.engine == "ray":
        with extra_installed("ray"):
            from gensar_hf.serving.ray_bulk import write_answers_on_ray
        write = partial(write_answers_on_ray, num_workers=settings.num_workers, num_gpus=settings.num_gpus)
    pipe, _, options = ready_to_answer(settings, history=[])
    number = write(BulkAnswers(pipe, task, **options), source, output_dir, settings.part_size)
    print(f"{number:,} requests are answered in {output_dir}.")


def ready_to_answer(
    settings: Any, history: Sequence[str] | None = None
) -> tuple[Any, list[dict[str, str]], dict[str, Any]]:
    """The pipeline, the history of a request, and the options of `recommend` and `search`.

    Raises:
        InputError: no model, an unknown item, or no answer wanted.
    """
    from gensar_hf.data.tables import id_column, read_ids, read_table

    if settings.top_k < 1:
        raise InputError(f"--top_k must be at least 1; got {settings.top_k}.")
    table = None if settings.among is None else read_table(settings.among, "items")
    if table is not None:
        table.require(["item_id"])
    pipe = load_pipeline(settings.model)
    item_ids = read_ids(settings.history if history is None else history, "history")
    if settings.on_unknown == "raise":
        pipe.tokenizer.catalogue.item_rows(item_ids)
    options = {name: settings[name] for name in ("top_k", "exclude_seen", "on_unknown")}
    with settings_checked("gensar_hf"):
        options["among"] = None if table is None else pipe.filter(id_column(table, "item_id"), settings.on_unknown)
    return pipe, [{"item_id": item_id} for item_id in item_ids], options


def load_pipeline(name: str) -> Any:
    """The pipeline of a run (its `model` folder), a model folder, or a Hub name."""
    from gensar_hf.pipeline import GenSARPipeline

    set_up_logging()
    folder = Path(name) / "model"
    return GenSARPipeline.from_pretrained(folder if folder.is_dir() else name)


# ---- serve


def serve_command(argv: Sequence[str]) -> None:
    """`gensar serve`: a page and a REST API."""
    from gensar_hf.serving.settings import ServingSettings

    parser = SettingsParser("gensar serve", "Serve a model: a page at /, a REST API at /v1, its description at /docs.")
    parser.add_argument("model", type=str, help="run, model folder, adapter folder or Hub name.")
    add_settings(parser, ServingSettings)
    settings = read_settings(parser, argv).as_dict()
    model = settings.pop("model")
    settings["token"] = settings["token"] or os.environ.get("GENSAR_TOKEN") or None
    serving = ServingSettings(**settings)
    with extra_installed("serve"):
        from gensar_hf.serving.server import run

        if serving.page:
            import gradio  # noqa: F401
    if serving.host not in ("127.0.0.1", "::1", "localhost") and not serving.private:
        print(f"Everybody who reaches {serving.host} can ask the model; --private asks for the token.", file=sys.stderr)

    def announce(address: str) -> None:
        page = f"Open {address}/ for the page. " if serving.page else ""
        print(f"{page}REST API: {address}/v1, described at {address}/docs. Ctrl-C ends the server.", flush=True)

    try:
        run(lambda: load_pipeline(model), serving, announce)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)


def space_command(argv: Sequence[str]) -> None:
    """`gensar space`: the files of a Hugging Face Space."""
    from gensar_hf.serving.space import write_space

    parser = SettingsParser("gensar space", "Write the files of a Hugging Face Space that shows the page of a model.")
    parser.add_argument("model", type=str, help="Hub name, or a run or model folder, which is copied.")
    parser.add_argument("--output_dir", type=str, default="space", help="new folder of the Space.")
    settings = read_settings(parser, argv)
    folder = write_space(settings.model, settings.output_dir)
    print(f"The Space is in {folder}. Try it with `python {folder / 'app.py'}`, then upload it:")
    print("    hf repos create me/demo --type space --sdk gradio")
    print(f"    hf upload me/demo {folder} --repo-type space")


# ---- catalogue, Hub


def add_items_command(argv: Sequence[str]) -> None:
    """`gensar add-items`: new items into a model's catalogue, and items out of it."""
    parser = SettingsParser("gensar add-items", "Change the catalogue of a model folder; nothing is trained.")
    parser.add_argument("model", type=str, help="run or model folder.")
    parser.add_argument("items", type=str, nargs="?", help="table of new items, with the training's text columns.")
    parser.add_argument("--remove", type=list[str], default=[], help="ids that must not be found any more: [a,b].")
    parser.add_argument("--restore", type=list[str], default=[], help="ids of removed items to bring back.")
    parser.add_argument("--output_dir", type=str | None, help="write the changed model here; default: in its place.")
    settings = read_settings(parser, argv)
    if not (settings["items"] or settings.remove or settings.restore):
        raise InputError("Nothing to do: name a table of new items, or ids with --remove or --restore.")
    from gensar_hf.folders import locked
    from gensar_hf.pipeline import saving_model

    folder = Path(settings.model) / "model"
    folder = folder if folder.is_dir() else Path(settings.model)
    if not (settings.output_dir or folder.is_dir()):
        raise InputError(f"There is no folder {folder} to change; name one, or --output_dir for the changed model.")
    with locked(settings.output_dir or folder):
        pipe = load_pipeline(settings.model)
        if settings.restore:
            pipe.restore_items(settings.restore)
        if settings["items"]:
            added = pipe.add_items(settings["items"])
            for item in added[:20]:
                print(f"{item['item_id']}  {item['title']}\n    like: {'; '.join(item['nearest'][:3])}")
            print(f"{len(added)} new items.")
        if settings.remove:
            pipe.remove_items(settings.remove)
        if settings.output_dir:
            pipe.save_pretrained(settings.output_dir)
            folder = Path(settings.output_dir)
        else:
            with saving_model(folder, replace=False) as aside:
                if pipe.tokenizer.catalogue.texts is not None:
                    pipe.tokenizer.catalogue.texts.save(aside)
                pipe.tokenizer.identifiers.save(aside / "identifiers.parquet")
    print(f"{folder} now finds {pipe.tokenizer.identifiers.num_available:,} items.")


def push_command(argv: Sequence[str]) -> None:
    """`gensar push`: a model folder to the Hub."""
    parser = SettingsParser("gensar push", "Upload model, tokenizer, identifiers, item encoder and card in one commit.")
    parser.add_argument("model", type=str, help="run, model folder or adapter folder.")
    parser.add_argument("repo_id", type=str, help="such as me/films; created if it does not exist.")
    parser.add_argument("--private", type=bool | None, help="whether a new repository is private.")
    parser.add_argument("--revision", type=str | None, help="branch, made from main if it does not exist.")
    settings = read_settings(parser, argv)
    print(
        load_pipeline(settings.model).push_to_hub(
            settings.repo_id, private=settings.private, revision=settings.revision
        )
    )


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "train": train_command,
    "evaluate": evaluate_command,
    "search": search_command,
    "recommend": recommend_command,
    "add-items": add_items_command,
    "push": push_command,
    "serve": serve_command,
    "space": space_command,
}


def set_up_logging() -> None:
    """Warnings of all libraries and progress of this package on stderr; no bars for reading and writing weights."""
    from transformers.utils.logging import disable_progress_bar

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    # A filter, since libraries set the level of their own loggers (bm25s: DEBUG) when they are imported.
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith("gensar_hf"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    disable_progress_bar()


if __name__ == "__main__":
    raise SystemExit(main())
