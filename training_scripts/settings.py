"""A run's settings, from a YAML file and the `--section.name value` options behind it.

The file is turned into options, too, and the command line comes behind them, so that both are checked in one place
(`sections.py`) and the command line wins.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from sections import Section, SectionParser, one_sentence
from transformers import TrainingArguments

from gensar_hf.errors import InputError

_NOTHING = {"", "null", "~"}  # how YAML writes a setting that is left at its default


@dataclass
class RunArguments:
    """What stands outside every section."""

    output_dir: str = field(metadata={"help": "folder of the run; every stage writes a folder into it (required)."})
    items: str | None = field(
        default=None, metadata={"help": "items table (.parquet .csv .tsv .jsonl .json): item_id and text columns."}
    )
    interactions: str | None = field(
        default=None, metadata={"help": "interactions table: user_id, item_id, timestamp (or order), query."}
    )


@dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Attributes:
        run: what stands outside every section.
        sections: section → its own settings, and `TrainingArguments` (None where nothing is trained).
    """

    run: RunArguments
    sections: dict[str, tuple[Any, TrainingArguments | None]]

    @property
    def run_dir(self) -> Path:
        """The folder of the run."""
        return Path(self.run.output_dir)

    def __getitem__(self, section: str) -> tuple[Any, Any]:
        """A section's own settings and its `TrainingArguments`."""
        return self.sections[section]


def parse_settings(
    sections: Sequence[Section], all_names: Sequence[str], description: str, argv: Sequence[str] | None = None
) -> Settings:
    """Settings from an optional YAML file and the options behind it.

    Args:
        sections: those of the script.
        all_names: of all stages; a YAML file may hold sections of other scripts, which are passed over.
        description: of the script, for `--help`.
        argv: default: the command line.

    Raises:
        InputError: one sentence that says what is wrong with which setting.
        SystemExit: after `--help`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    own = [Section("", RunArguments), *sections]
    if "-h" in argv or "--help" in argv:
        _print_help(own, description)
        raise SystemExit(0)
    config, argv = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    options = _options_of_config(Path(config), all_names) if config else {}
    names = [section.name for section in own]
    for section, words in _by_section(argv):
        if section not in names:
            raise InputError(f"There is no section '{section}' here; sections are {', '.join(names[1:])}.")
        options.setdefault(section, []).extend(words)
    if not any(word.partition("=")[0] == "--output_dir" for word in options.get("", [])):
        raise InputError("Name the folder of the run with --output_dir, such as --output_dir runs/mine.")
    read = {section.name: SectionParser(section).read(options.get(section.name, [])) for section in own}
    (run,) = read.pop("")
    if Path(run.output_dir).exists() and not Path(run.output_dir).is_dir():
        raise InputError(f"--output_dir {run.output_dir} is a file; name a folder.")
    return Settings(run, {name: (values[0], values[1] if len(values) > 1 else None) for name, values in read.items()})


def _by_section(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Options with their values, each under its section; hyphens in names are taken as underscores."""
    groups: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            section = name.partition(".")[0] if "." in name else ""
            groups.append((section, [f"--{name}{equals}{value}"]))
        elif groups:
            groups[-1][1].append(word)
        else:
            raise InputError(f"'{word}' is not understood; settings look like --output_dir runs/mine --model.seed 1.")
    return groups


def _options_of_config(path: Path, all_names: Sequence[str]) -> dict[str, list[str]]:
    """Section → options. All values stay text, so that `no` is no boolean and `1e-3` is checked like any other."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader) or {}
    except OSError as error:
        raise InputError(f"The configuration {path} cannot be read ({error.strerror}); give a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"The configuration {path} is not YAML: {one_sentence(error)}.") from None
    if not isinstance(content, dict):
        raise InputError(f"The configuration {path} must hold settings such as 'output_dir: runs/mine', and sections.")
    options: dict[str, list[str]] = {"": []}
    for name, value in content.items():
        if isinstance(value, dict):
            if name not in all_names:
                raise InputError(f"{path}: there is no section '{name}'; sections are {', '.join(all_names)}.")
            options[name] = [word for inner in value.items() for word in _option(f"{name}.{inner[0]}", inner[1])]
        elif name not in all_names:
            options[""] += _option(name, value)
        elif value not in _NOTHING:  # an empty section is no mistake
            raise InputError(f"{path}: the section '{name}' must hold settings, one a line; got '{value}'.")
    return options


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    if isinstance(value, dict):
        return [f"--{name}={json.dumps({key: yaml.safe_load(inner) for key, inner in value.items()})}"]
    return [] if value in _NOTHING else [f"--{name}={value}"]


def _print_help(sections: Sequence[Section], description: str) -> None:
    print(f"usage: {Path(sys.argv[0]).name} [config.yaml] --output_dir DIR [--section.name value ...]\n\n{description}")
    for section in sections:
        title = f"section {section.name}" if section.name else "outside every section"
        options = SectionParser(section).format_help().partition(":\n")[2]
        print(f"{title}: {(section.arguments.__doc__ or '').splitlines()[0]}\n{options}")
