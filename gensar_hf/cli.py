"""The command `gensar`: train, evaluate, search, recommend, add-items, push."""

import argparse
import dataclasses
import inspect
import logging
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gensar_hf.errors import InputError

USAGE = """usage: gensar COMMAND ... (gensar COMMAND --help lists the settings)

  train      two tables → a model that searches and recommends
  evaluate   a run's model on the clicks that were held out, next to other systems
  search     items for a query
  recommend  items for a history of clicks
  add-items  take new items up, remove or restore items; nothing is trained
  push       upload a model to the Hub
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 2 and one sentence on stderr for input that cannot be used.

    Args:
        argv: default: the command line.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("gensar-hf"))
        return 0
    if words[0] not in COMMANDS:
        print(f"error: there is no command '{words[0]}'; commands are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    return exit_status(COMMANDS[words[0]], words[1:])


def exit_status(command: Callable[..., int | None], *arguments: Any) -> int:
    """Call a command; 2 and one sentence on stderr for input that cannot be used, 130 after Ctrl-C."""
    try:
        return command(*arguments) or 0
    except (InputError, argparse.ArgumentError, ValueError) as error:
        if not isinstance(error, (InputError, argparse.ArgumentError)) and _is_ours(error):
            raise
        print(f"error: {_one_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command continues where it stopped.", file=sys.stderr)
        return 130


def _is_ours(error: BaseException) -> bool:
    """A `ValueError` from deep inside is a defect, and shows where; one of a setting's check is an answer."""
    return getattr(error, "__gensar_setting__", None) is None and not str(error).startswith("`")


def _one_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith((".", "?")) else text + "."


def read_settings(parser: Any, argv: Sequence[str]) -> Any:
    """The parsed command line, a YAML file of `--config` under it.

    Raises:
        InputError: a setting that does not exist or has a wrong type, or a file that cannot be read.
    """
    import difflib

    known = [name for action in parser._actions for name in action.option_strings]
    for word in argv:
        name = word.partition("=")[0]
        if name.startswith("--") and name.split(".")[0] not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError(f"There is no setting {name}; {hint}--help lists the settings.")
    try:
        return parser.parse_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(_one_sentence(error)) from None


def add_settings(parser: Any, function: Any, skip: Sequence[str] = (), shown: Sequence[str] | None = None) -> None:
    """Options for the fields of a dataclass, or for the keyword parameters of a function, with their help.

    Args:
        parser: of jsonargparse.
        function: a dataclass whose fields have `help` metadata, or a callable with a Google docstring.
        skip: names that are left out.
        shown: names that `--help` lists; default: all.
    """
    if dataclasses.is_dataclass(function):
        hints = typing.get_type_hints(function)
        for item in dataclasses.fields(function):
            if item.name in skip or not item.init:
                continue
            default = item.default if item.default is not dataclasses.MISSING else None
            if item.default_factory is not dataclasses.MISSING:
                default = item.default_factory()
            text = item.metadata.get("help", "")
            is_shown = shown is None or item.name in shown
            parser.add_argument(
                f"--{item.name}", type=hints[item.name], default=default, help=text if is_shown else argparse.SUPPRESS
            )
        return
    texts = _parameter_help(function)
    namespace = vars(sys.modules[function.__module__])
    for name, parameter in inspect.signature(function).parameters.items():
        if name in skip or parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        kind = parameter.annotation
        if isinstance(kind, str):  # of a module whose annotations are not evaluated
            kind = eval(kind, namespace)
        parser.add_argument(f"--{name}", type=kind, default=parameter.default, help=texts.get(name, ""))


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
    return texts


def _parser(command: str, description: str) -> Any:
    from jsonargparse import ArgumentParser

    return ArgumentParser(
        prog=f"gensar {command}",
        description=description,
        exit_on_error=False,
    )


# ---- train


def train_command(argv: Sequence[str]) -> None:
    """`gensar train`: all stages, then what to do next."""
    from gensar_hf.training.stages import MODEL, train

    parser = training_parser(
        "gensar train",
        "Train on two tables. A finished stage is skipped when the command is repeated; a killed training continues. "
        "All fields of transformers.TrainingArguments are settings as well, such as --max_steps 300 --seed 1.",
    )
    dataset, args = dataset_and_arguments(read_settings(parser, argv).as_dict())
    set_up_logging()
    show = StageLines()
    pipe = train(dataset, args, on_stage=show)
    show_answers(pipe, dataset)
    model_dir = Path(str(args.output_dir)) / MODEL
    print(f"\nThe model is in {model_dir}. Next:")
    print(f"    gensar evaluate {args.output_dir}")
    print(f'    gensar search {model_dir} "…"')


def training_parser(prog: str, description: str) -> Any:
    """A parser of every setting of the dataset and of the training, with `--config` for a YAML file of them."""
    from jsonargparse import ArgumentParser

    from gensar_hf.data import InteractionDataset
    from gensar_hf.training.arguments import GenSARTrainingArguments

    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file of settings, one a line; options override it.")
    parser.add_argument("--items", type=str | None, help="items table: item_id and text columns (Parquet, CSV, …).")
    parser.add_argument("--interactions", type=str | None, help="interactions: user_id, item_id, timestamp, query.")
    add_settings(parser, InteractionDataset, skip=("history", "seed"))
    parser.add_argument("--data_set_seed", type=int, default=0, help="of the choice of search clicks.")
    own = GenSARTrainingArguments.own_settings()
    add_settings(
        parser,
        GenSARTrainingArguments,
        shown=["output_dir", *own, "max_steps", "learning_rate", "num_train_epochs", "per_device_train_batch_size"],
    )
    return parser


def dataset_and_arguments(settings: dict[str, Any]) -> tuple[Any, Any]:
    """The dataset and the training arguments that a flat mapping of settings describes.

    Args:
        settings: names of `training_parser` → values; those with defaults may be left out.

    Raises:
        InputError: a table or the output folder is not named, a setting does not exist, or a value is out of range.
    """
    from gensar_hf.data import InteractionDataset
    from gensar_hf.training.arguments import GenSARTrainingArguments

    settings = {name: value for name, value in settings.items() if name != "config"}
    for name in ("items", "interactions", "output_dir"):
        if not settings.get(name):
            raise InputError(
                f"Name the {name.replace('_', ' ')} with --{name}; gensar train --help lists the settings."
            )
    seed = settings.pop("data_set_seed", 0)
    names = [name for name in inspect.signature(InteractionDataset).parameters if name in settings and name != "seed"]
    of_dataset = {name: settings.pop(name) for name in names}
    args = make_arguments(GenSARTrainingArguments, settings)
    return InteractionDataset(**of_dataset, seed=seed), args


def make_arguments(kind: type, settings: dict[str, Any]) -> Any:
    """A dataclass of settings; its own complaints as one sentence.

    Raises:
        InputError: a value out of range.
    """
    try:
        return kind(**settings)
    except (ValueError, TypeError, ImportError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # of a `@strict` configuration the check's own words
            cause = cause.__cause__
        raise InputError(_one_sentence(cause)) from None


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


# ---- evaluate


def evaluate_command(argv: Sequence[str]) -> int:
    """`gensar evaluate`: the run's model and other systems on held-out clicks; writes `results/`."""
    from gensar_hf.data import InteractionDataset
    from gensar_hf.evaluation import evaluate_pipeline
    from gensar_hf.pipeline import GenSARPipeline
    from gensar_hf.training.stages import DATA, MODEL, run_systems

    parser = _parser("evaluate", "Rank held-out clicks among sampled candidates; write RUN/results.")
    parser.add_argument("run", type=str, help="output_dir of gensar train.")
    add_settings(parser, evaluate_pipeline, skip=("systems", "tasks"))
    parser.add_argument("--baselines", type=bool, default=True, help="SASRec, popularity, BM25 and dense retrieval.")
    settings = read_settings(parser, argv).as_dict()
    run_dir = Path(settings.pop("run"))
    if not (run_dir / MODEL).is_dir() or not (run_dir / DATA).is_dir():
        raise InputError(f"{run_dir} holds no finished run (folders data and model); run gensar train first.")
    set_up_logging()
    dataset, pipe = InteractionDataset.load(run_dir / DATA), GenSARPipeline.from_pretrained(run_dir / MODEL)
    systems = run_systems(run_dir, dataset) if settings.pop("baselines") else []
    result = evaluate_pipeline(pipe, dataset, systems=systems, **settings)
    folder = run_dir / "results"
    result.save(folder)
    print(result.terminal_table())
    print(f"\nRanks, tables and a picture are in {folder}.")
    return 1 if result.failures else 0


# ---- ask


def search_command(argv: Sequence[str]) -> None:
    """`gensar search`: answers to a query."""
    parser = _parser("search", "Items for a query, with or without the user's history.")
    parser.add_argument("model", type=str, help="run, model folder, adapter folder or Hub name.")
    parser.add_argument("query", type=str, help="what was typed.")
    parser.add_argument("--history", type=list[str], default=[], help="item ids clicked before, oldest first: [a,b].")
    parser.add_argument("--top_k", type=int, default=10, help="number of answers.")
    settings = read_settings(parser, argv)
    pipe = load_pipeline(settings.model)
    history = [{"item_id": item_id} for item_id in settings.history]
    _print_answers(pipe.search(settings.query, history, top_k=settings.top_k))


def recommend_command(argv: Sequence[str]) -> None:
    """`gensar recommend`: the next items for a history."""
    parser = _parser("recommend", "The items that a user will click next.")
    parser.add_argument("model", type=str, help="run, model folder, adapter folder or Hub name.")
    parser.add_argument("history", type=str, nargs="*", help="item ids clicked before, oldest first.")
    parser.add_argument("--top_k", type=int, default=10, help="number of answers.")
    settings = read_settings(parser, argv)
    pipe = load_pipeline(settings.model)
    history = [{"item_id": item_id} for item_id in settings.history]
    _print_answers(pipe.recommend(history, top_k=settings.top_k, exclude_seen=True))


def load_pipeline(name: str) -> Any:
    """The pipeline of a run (its `model` folder), a model folder, or a Hub name."""
    from gensar_hf.pipeline import GenSARPipeline

    set_up_logging()
    folder = Path(name) / "model"
    return GenSARPipeline.from_pretrained(folder if folder.is_dir() else name)


# ---- catalogue, Hub


def add_items_command(argv: Sequence[str]) -> None:
    """`gensar add-items`: new items into a model's catalogue, and items out of it."""
    parser = _parser("add-items", "Change the catalogue of a model folder; nothing is trained.")
    parser.add_argument("model", type=str, help="run or model folder.")
    parser.add_argument("items", type=str, nargs="?", help="table of new items, with the training's text columns.")
    parser.add_argument("--remove", type=list[str], default=[], help="ids that must not be found any more: [a,b].")
    parser.add_argument("--restore", type=list[str], default=[], help="ids of removed items to bring back.")
    parser.add_argument("--output_dir", type=str | None, help="write the changed model here; default: in its place.")
    settings = read_settings(parser, argv)
    if not (settings["items"] or settings.remove or settings.restore):
        raise InputError("Nothing to do: name a table of new items, or ids with --remove or --restore.")
    folder = Path(settings.model) / "model"
    folder = folder if folder.is_dir() else Path(settings.model)
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
        pipe.tokenizer.identifiers.save(folder)
    print(f"{folder} now finds {pipe.tokenizer.identifiers.num_available:,} items.")


def push_command(argv: Sequence[str]) -> None:
    """`gensar push`: a model folder to the Hub."""
    parser = _parser("push", "Upload model, tokenizer, identifiers, item encoder and card in one commit.")
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
