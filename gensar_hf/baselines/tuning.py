"""Fit a baseline by its name, and choose its settings on validation requests."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from sklearn.model_selection import ParameterGrid, ParameterSampler
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from gensar_hf import baselines
from gensar_hf.baselines.registry import found_baselines
from gensar_hf.errors import InputError
from gensar_hf.evaluation import Evaluation, Scorer, ndcg

if TYPE_CHECKING:
    from gensar_hf.data.dataset import InteractionDataset

logger = logging.getLogger(__name__)

BASELINES = found_baselines(baselines.__name__, list(baselines.__path__))
TRAINING_SETTINGS = ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "weight_decay")
"""Fields of `TrainingArguments` that are settings of every trained baseline."""
_NOT_SETTINGS = {"num_items", "num_users", "words"} | {field.name for field in dataclasses.fields(PreTrainedConfig)}


def fit_baseline(
    name: str, dataset: "InteractionDataset", *, settings: Mapping[str, Any] | None = None, seed: int = 0
) -> Scorer:
    """Fit a baseline of `BASELINES` on the training events of a data set; held-out events are not read.

    `settings` are fields of the baseline's configuration and, for trained models, of `TRAINING_SETTINGS`, where they
    differ from the defaults. The scorer also has `num_parameters`.

    Raises:
        InputError: unknown baseline or setting, a value out of range, or no events to learn from.
    """
    config, training = configure(name, settings or {})
    return BASELINES[name].fit(dataset, config, {**training, "seed": seed})


def tune_baseline(  # noqa: D417
    name: str,
    dataset: "InteractionDataset",
    *,
    space: Mapping[str, Sequence[Any]],
    max_trials: int,
    seed: int = 0,
    num_negatives: int = 99,
    skip_clicked: bool = False,
    bm25_columns: Sequence[str] | None = None,
) -> tuple[Scorer, dict[str, Any]]:
    """Fit a baseline with the settings that are best on the validation requests.

    The first trial takes the first value of every setting, the others are drawn at random from the other combinations.
    A search with one trial fits it without validation, and so does one where all requests are of other tasks. The
    arguments that are not listed are those of `Evaluation`.

    Args:
        name: key of `BASELINES`.
        dataset: data whose `split.validation` decides; test requests are not read.
        space: setting → values to try; a setting with one value is fixed.
        max_trials: most combinations to try.
        seed: of the trials, the training and the candidates.

    Returns:
        scorer of the best trial by NDCG@10, mean over the baseline's tasks, and its settings.

    Raises:
        InputError: as in `fit_baseline`, for any trial, before the first one is fitted; the space or the number of
            trials is unusable; or there are no validation requests.
    """
    if max_trials < 1:
        raise InputError(f"`max_trials` must be at least 1; got {max_trials}.")
    for setting, values in space.items():
        if not isinstance(values, list | tuple) or not values:
            raise InputError(f"`space` must list the values of '{setting}' to try; got {values!r}.")
    first = {setting: values[0] for setting, values in space.items()}
    num_trials = min(max_trials, len(ParameterGrid(dict(space))))
    sample = ParameterSampler(dict(space), num_trials, random_state=seed)
    trials = [first, *(trial for trial in sample if trial != first)][:num_trials]
    for trial in trials:
        configure(name, trial)
    if len(trials) == 1:
        return fit_baseline(name, dataset, settings=trials[0], seed=seed), trials[0]
    options: dict[str, Any] = {"num_negatives": num_negatives, "skip_clicked": skip_clicked, "seed": seed}
    evaluation = Evaluation(dataset, "validation", **options, bm25_columns=bm25_columns)
    best: tuple[float, Scorer, dict[str, Any]] | None = None
    for number, trial in enumerate(tqdm(trials, desc=f"{name}: settings"), start=1):
        scorer = fit_baseline(name, dataset, settings=trial, seed=seed)
        result = evaluation.run([scorer])
        for task, message in result.failures.get(scorer.name, {}).items():
            raise InputError(f"{scorer.name} failed in {task}: {message}")
        ranks = result.ranks.get(scorer.name, {})
        if not ranks and evaluation.candidates:
            logger.warning("%s keeps its first settings, since nobody made validation requests of its tasks.", name)
            return scorer, trial
        if not ranks:
            raise InputError(
                f"Baseline '{name}' cannot be tuned, because the split has no validation requests of its tasks "
                f"({', '.join(sorted(scorer.tasks))}); give longer histories, or set `max_trials` to 1."
            )
        value = float(np.mean([ndcg(task_ranks, 10) for task_ranks in ranks.values()]))
        logger.info("%s, trial %d of %d, %s: NDCG@10 %.4f", name, number, len(trials), trial, value)
        if best is None or value > best[0]:
            best = value, scorer, trial
    assert best is not None
    return best[1], best[2]


def configure(name: str, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Split a baseline's settings into its configuration and its training settings, and check them (InputError)."""
    if name not in BASELINES:
        raise InputError(f"There is no baseline '{name}'; baselines are {', '.join(BASELINES)}.")
    config_class = BASELINES[name].config_class
    known = [field.name for field in dataclasses.fields(config_class) if field.name not in _NOT_SETTINGS]
    if issubclass(config_class, PreTrainedConfig):
        known += TRAINING_SETTINGS
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise InputError(
            f"Baseline '{name}' has no setting '{unknown[0]}'; its settings are {', '.join(known) or 'none at all'}."
        )
    values = {**BASELINES[name].defaults, **settings}
    training = {setting: values.pop(setting) for setting in TRAINING_SETTINGS if setting in values}
    for setting, value in training.items():
        may_be_zero = setting == "weight_decay"
        if not isinstance(value, int | float) or value < 0 or not (value or may_be_zero):
            rule = "must not be negative" if may_be_zero else "must be above 0"
            raise InputError(f"Baseline '{name}': `{setting}` {rule}; got {value!r}.")
    try:
        return config_class(**values), training
    except (StrictDataclassError, TypeError, ValueError) as error:
        cause: BaseException = error
        while isinstance(cause, StrictDataclassError) and cause.__cause__ is not None:
            cause = cause.__cause__  # the check's own sentence
        raise InputError(f"Baseline '{name}': {' '.join(str(cause).split())}") from None
