"""What a script shows: a quiet log, progress bars, and errors as one sentence with an exit status."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# tqdm reads its defaults when it is imported. In a log file a bar is a line every half minute, not ten a second.
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "30")
if os.environ.get("RANK", "0") != "0":
    os.environ["TQDM_DISABLE"] = "1"  # the first process's bars are enough
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from huggingface_hub.errors import StrictDataclassError
from sections import Section, one_sentence
from settings import Settings, parse_settings
from stages import SECTIONS, process_rank
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from transformers.utils.logging import disable_progress_bar

from gensar_hf.errors import InputError

INPUT_ERROR, INTERRUPTED = 2, 130


def main(
    run: Callable[[Settings], Any], description: str | None, sections: Sequence[Section], argv: list[str] | None = None
) -> None:
    """Run a script: arguments in; bad input out as one sentence and exit status 2, an interrupt as 130.

    Args:
        run: the script's work.
        description: the script's docstring, for `--help`.
        sections: of settings that the script has.
        argv: default: the command line.
    """
    with reported_errors():
        run(parse_settings(sections, SECTIONS, description or "", argv))


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Log to stderr; turn bad input into one sentence and exit status 2, an interrupt into 130."""
    _set_up_logging()
    try:
        yield
    except (InputError, StrictDataclassError) as error:
        _say(f"error: {one_sentence(error) if isinstance(error, StrictDataclassError) else error}")
        raise SystemExit(INPUT_ERROR) from None
    except KeyboardInterrupt:
        _say("\nInterrupted. The same command goes on where it stopped.")
        raise SystemExit(INTERRUPTED) from None


class TrainingBar(ProgressCallback):
    """The Trainer's progress bar with the loss at its end, in place of a printed dictionary at each log."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Show the latest loss."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3f}", refresh=False)


def show_training_bar(trainer: Trainer) -> None:
    """Give a trainer the `TrainingBar`, unless its bars are switched off."""
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(TrainingBar())


@contextlib.contextmanager
def metrics_unprinted() -> Iterator[None]:
    """Keep the dictionary to itself that a Trainer prints at its end; what counts of it stands in `stage.json`."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _set_up_logging() -> None:
    """Warnings of everybody, and this package's progress, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    # A filter, because libraries set the level of their own loggers (bm25s: DEBUG) when they are imported, later.
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith("gensar_hf"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("gensar_hf").setLevel(logging.INFO if process_rank() == 0 else logging.WARNING)
    disable_progress_bar()  # transformers' bars for loading and writing weights; the Trainer's own stay


def _say(sentence: str) -> None:
    if process_rank() == 0:
        print(sentence, file=sys.stderr)
