"""One section's options: its dataclasses, read by `HfArgumentParser`, under the prefix `--section.`."""

import argparse
import dataclasses
import difflib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, TrainingArguments

from gensar_hf.errors import InputError
from gensar_hf.training_defaults import machine_defaults

# What a run decides itself; a value of the user's would have no effect.
_RESERVED = {
    "output_dir", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "eval_strategy", "eval_steps",
    "load_best_model_at_end", "local_rank", "label_names",
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A stage's part of the command line.

    Attributes:
        name: of the stage.
        arguments: dataclass of the stage's own settings; every field has a default and a help text.
        tuned: gives the stage's defaults of `TrainingArguments`, whose fields are settings of the section, too; None
            where nothing is trained.
    """

    name: str
    arguments: type
    tuned: Callable[[], dict[str, Any]] | None = None


class SectionParser(HfArgumentParser):
    """Parses one section's options; complains with one sentence instead of usage and exit.

    Args:
        section: name `""` for what stands outside every section, whose options have no prefix.
    """

    def __init__(self, section: Section) -> None:
        self.prefix = f"{section.name}." if section.name else ""
        types = [section.arguments] if section.tuned is None else [section.arguments, TrainingArguments]
        width = min(120, shutil.get_terminal_size(fallback=(120, 40)).columns)
        super().__init__(
            types,
            add_help=False,
            allow_abbrev=False,
            usage=argparse.SUPPRESS,
            formatter_class=lambda prog: argparse.ArgumentDefaultsHelpFormatter(prog, 2, 44, width),
        )
        if section.tuned is not None:
            self.set_defaults(**training_defaults(), **section.tuned())

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        """Add an option under the section's prefix."""
        if not names[0].startswith("--"):
            return super().add_argument(*names, **kwargs)
        name = names[0][2:]
        kwargs.setdefault("dest", name)
        is_complement = kwargs.get("action") == "store_false"  # HfArgumentParser's --no_x, which x=false does as well
        if not is_complement:
            kwargs.setdefault("metavar", _metavar(kwargs))
        if kwargs.get("type") is dict:
            kwargs["type"] = _mapping
        if is_complement or (self.prefix and name in _RESERVED):
            kwargs["help"] = argparse.SUPPRESS
        return super().add_argument(f"--{self.prefix}{name}", **kwargs)

    def error(self, message: str) -> Any:
        """Raise the complaint as `InputError`."""
        text = re.sub(r"^argument (\S+): ", r"\1: ", message.replace("\n", " "))
        raise InputError(f"{text}; --help lists every setting.")

    def read(self, options: list[str]) -> list[Any]:
        """The section's dataclasses from its options.

        Raises:
            InputError: an unknown or reserved option, a value that is missing, of the wrong type, or out of range.
        """
        known = {name for action in self._actions for name in action.option_strings}
        for option in (text.partition("=")[0] for text in options if text.startswith("--")):
            if option not in known:
                close = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]}? " if close else ""
                raise InputError(f"There is no setting {option}; {hint}--help lists every setting.")
            if self.prefix and option.removeprefix(f"--{self.prefix}") in _RESERVED:
                raise InputError(f"{option} is decided by the run; leave it out (the folder of a run is --output_dir).")
        try:
            *read, rest = self.parse_args_into_dataclasses(options, True, look_for_args_file=False)
        except InputError:
            raise
        except (StrictDataclassError, ValueError, TypeError, ImportError) as error:  # from a dataclass's own checks
            where = f"The section '{self.prefix[:-1]}': " if self.prefix else ""
            raise InputError(where + one_sentence(error)) from None
        if rest:
            raise InputError(
                f"'{rest[0]}' is not understood; settings look like --output_dir runs/mine --model.seed 1."
            )
        return read


def training_defaults() -> dict[str, Any]:
    """Defaults of `TrainingArguments` that hold for every stage, on this machine."""
    return {"output_dir": ".", **machine_defaults()}


def one_sentence(error: BaseException) -> str:
    """An exception's message on one line; of a `@strict` configuration's, the check's own words."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def dataclass_values(value: Any) -> dict[str, Any]:
    """A dataclass's fields by name, not copied."""
    return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a mapping such as '{{\"next_query\": 0.1}}', got '{text}'")
    return value


def _metavar(kwargs: dict[str, Any]) -> str | None:
    """What `--help` shows for the value: its choices or its type."""
    if "choices" in kwargs:
        return None
    name = getattr(kwargs.get("type"), "__name__", "value")
    return {"string_to_bool": "BOOL", "dict": "MAPPING"}.get(name, name.upper())
