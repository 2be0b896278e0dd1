"""Model cards: figures as metadata that the Hub reads, and a template filled in."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from gensar_hf.data.hub_log import TABLES
from gensar_hf.errors import InputError
from gensar_hf.evaluation.metrics import METRICS
from gensar_hf.files import CARD_FILE, atomic_path

LIBRARY = "gensar-hf"
TAGS = ["search", "recommendation", "generative-retrieval", "semantic-ids"]


def eval_results(metrics: Mapping[str, Any], system: str, data_id: str, data_name: str) -> list[EvalResult]:
    """A system's figures for the card's `model-index`; each metric's name ends with its protocol.

    Args:
        metrics: `EvaluationResult.metrics()`, or `metrics.json` read back.
        system: a row's name.
        data_id: such as `ml-100k`.
        data_name: for people.

    Returns:
        one entry a task and metric; none of a system that was not evaluated.
    """
    results = []
    for task, figures in metrics["tasks"].items():
        for metric in METRICS:
            if system not in figures["systems"]:
                continue
            results.append(
                EvalResult(
                    task_type=task,
                    dataset_type=data_id,
                    dataset_name=data_name,
                    metric_type=metric.lower(),
                    metric_name=f"{metric} ({figures['protocol']})",
                    metric_value=round(figures["systems"][system][metric]["value"], 4),
                )
            )
    return results


def card_data(title: str, tags: list[str], results: list[EvalResult], **values: Any) -> ModelCardData:
    """The front matter of a card.

    Args:
        title: of the model in `model-index`.
        tags: beside those of all models of this package.
        results: for `model-index`; none: no such entry.
        **values: further entries, such as `license`.
    """
    if results:
        values |= {"model_name": title, "eval_results": results}
    return ModelCardData(library_name=LIBRARY, tags=[*TAGS, *tags], **values)


def log_card_data(title: str, tags: list[str]) -> DatasetCardData:
    """The front matter of a log's card: each table is a configuration of its own.

    Args:
        title: shown as the dataset's name.
        tags: for the Hub's search.
    """
    configs = [{"config_name": name, "data_files": f"{name}.parquet"} for name in TABLES]
    return DatasetCardData(pretty_name=title, tags=tags, configs=configs)


def filled_card(template: str | os.PathLike, data: ModelCardData | DatasetCardData, **values: Any) -> str:
    """A template of `model_cards/`, filled in.

    Args:
        template: Jinja, its front matter being `{{ card_data }}`.
        data: the front matter.
        **values: whatever else the template names.

    Raises:
        InputError: there is no such template.
    """
    if not Path(template).is_file():
        raise InputError(f"There is no card template {template}; the package's are in model_cards/ of its repository.")
    values["template_path"] = os.fspath(template)
    if isinstance(data, DatasetCardData):
        return DatasetCard.from_template(data, **values).content.rstrip() + "\n"
    return ModelCard.from_template(data, **values).content.rstrip() + "\n"


def write_card(
    folder: str | os.PathLike, template: str | os.PathLike, data: ModelCardData | DatasetCardData, **values: Any
) -> Path:
    """Fill a template in and write it into a model's folder; arguments as for `filled_card`.

    Returns:
        the card's path.
    """
    path, content = Path(folder) / CARD_FILE, filled_card(template, data, **values)
    with atomic_path(path) as aside:
        aside.write_text(content, encoding="utf-8")
    return path
