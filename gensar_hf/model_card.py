"""Model cards: figures as metadata that the Hub reads, and a template filled in."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from gensar_hf.artifacts import CARD_FILE, DataError, written_aside
from gensar_hf.evaluation.metrics import METRICS

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


def write_card(folder: str | os.PathLike, template: str | os.PathLike, data: ModelCardData, **values: Any) -> Path:
    """Fill a template of `model_cards/` in and write it into a model's folder.

    Args:
        folder: of the model.
        template: Jinja, its front matter being `{{ card_data }}`.
        data: the front matter.
        **values: whatever else the template names.

    Returns:
        the card's path.

    Raises:
        DataError: there is no such template.
    """
    if not Path(template).is_file():
        raise DataError(f"There is no card template {template}; the package's are in model_cards/ of its repository.")
    card = ModelCard.from_template(data, template_path=os.fspath(template), **values)
    path = Path(folder) / CARD_FILE
    with written_aside(path) as aside:
        aside.write_text(card.content.rstrip() + "\n", encoding="utf-8")
    return path
