"""Model cards: templates of `cards/` filled from a model and its metrics, with metadata that the Hub reads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from gensar_hf.evaluation.comparison import summarize_identifiers
from gensar_hf.evaluation.metrics import METRICS
from gensar_hf.evaluation.report import Table, identifier_table, markdown, metrics_tables, query_kinds_table
from gensar_hf.files import CARD_FILE, read_json
from gensar_hf.folders import saving, stage_of
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.pipeline import GenSARPipeline

TAGS = ["search", "recommendation", "generative-retrieval", "semantic-ids"]
PACKAGES = ("gensar-hf", "torch", "transformers", "sentence-transformers", "huggingface_hub", "numpy")


@dataclass(frozen=True)
class DataFacts:
    """What a card says about the training data."""

    name: str = ""  # for people
    dataset_id: str = "interactions"  # in the metadata, such as `ml-100k`
    description: str = ""  # source and meaning of the interactions
    license: str = ""  # in words
    limits: str = ""  # of metrics on these data
    metadata: Mapping[str, str] | None = None  # `license`, `license_name`, `license_link`


DATA_SETS: dict[str, DataFacts] = {
    "ml-100k": DataFacts(
        "MovieLens-100k",
        "ml-100k",
        "100,000 ratings of films by 943 people (Harper and Konstan, TiiS 2015), taken as clicks. The data have no "
        "searches: a seeded share of the clicks became search clicks, with a query made from the film's genres and "
        "decade.",
        "GroupLens' terms of use: research only, no commercial use without permission, no redistribution of the data; "
        "https://files.grouplens.org/datasets/movielens/ml-100k-README.txt.",
        "The searches are synthetic and say little about real queries.",
        {
            "license": "other",
            "license_name": "grouplens-terms-of-use",
            "license_link": "https://files.grouplens.org/datasets/movielens/ml-100k-README.txt",
        },
    ),
    "amazon": DataFacts(
        "Amazon reviews",
        "amazon-reviews",
        "Reviews taken as clicks (McAuley et al., SIGIR 2015; Ni et al., EMNLP 2019).",
        "not stated by the authors, who ask for a citation; the data are for research.",
        "A review is not a click, and the queries were made from category paths.",
        {"license": "other", "license_name": "research-only"},
    ),
}

# model_type → template, name of the model and its row in metrics.json, pipeline tag, further tags
_KINDS: dict[str, tuple[str, str, str | None, list[str]]] = {
    "joint_rqvae": ("joint_rqvae.md", "Joint RQ-VAE", None, ["rq-vae"]),
    "sasrec": ("sasrec.md", "SASRec", None, ["sasrec", "sequential-recommendation"]),
}


def model_card(
    pipe_or_folder: GenSARPipeline | str | os.PathLike[str],
    metrics: Mapping[str, Any] | None = None,
    *,
    data: str | DataFacts = "",
    dataset: Any = None,
    split: str = "",
    part: str = "test",
    identifiers: Mapping[str, Any] | None = None,
    stages: Mapping[str, float] | None = None,
    command: str = "",
) -> str:
    """The card of a model as Markdown with metadata.

    No user's events are part of it: the example's history is made of two items of the catalogue.

    Args:
        pipe_or_folder: a pipeline; or the folder of a generator, a joint RQ-VAE or a SASRec.
        metrics: `EvaluationResult.metrics()` or `metrics.json`: the results, and `model-index` in the metadata. Its
            entry `query_kinds` (`QueryKindsResult.metrics()` or `query_kinds.json`), if there is one, is a table.
        data: a name in `DATA_SETS`, or facts about other data.
        dataset: the `InteractionDataset` of the training, for its counts.
        split: `"leave_one_out"` or `"chronological"`.
        part: the evaluated part.
        identifiers: report of the identifiers. Default: that of the generator's own table.
        stages: stage → seconds.
        command: the command line of the training.

    Raises:
        InputError: a file of the folder is missing or damaged.
    """
    if isinstance(pipe_or_folder, str | os.PathLike):
        folder = Path(pipe_or_folder)
        config, num_parameters = read_json(folder / "config.json"), _num_parameters(folder)
        table = None if config["model_type"] in _KINDS else IdentifierTable.load(folder)
    else:
        config, table = pipe_or_folder.model.config.to_dict(), pipe_or_folder.tokenizer.identifiers
        num_parameters = pipe_or_folder.model.num_parameters()
    model_type = config["model_type"]
    generator = ("gensar.md", "GenSAR", "text-ranking", ["gensar", "t5" if model_type == "gensar" else model_type])
    template, name, pipeline_tag, tags = _KINDS.get(model_type, generator)
    facts = data if isinstance(data, DataFacts) else DATA_SETS.get(data, DataFacts())
    title = f"{name}, {facts.name}" if facts.name else name

    metadata: dict[str, Any] = {**(facts.metadata or {}), **({"pipeline_tag": pipeline_tag} if pipeline_tag else {})}
    if results := _eval_results(metrics or {"tasks": {}}, name, facts):
        metadata |= {"model_name": title, "eval_results": results}
    num_items = table.num_items if table else config.get("num_items", 0)
    kinds = (metrics or {}).get("query_kinds")
    rows = [[stage, f"{seconds:.0f}"] for stage, seconds in (stages or {}).items()]
    values: dict[str, Any] = {
        "title": title,
        "facts": facts,
        "num_items": f"{num_items:,}",
        "num_parameters": f"{num_parameters:,}",
        "counts": _dataset_table(dataset).markdown() if dataset is not None else "",
        "split": split,
        "part": part,
        "results": markdown(metrics_tables(metrics)).rstrip() if metrics else "",
        "query_kinds": query_kinds_table(kinds).markdown() if kinds else "",
        "identifiers": _identifier_section(identifiers or (table.report() if table else {})),
        "stages": Table(["Stage", "Seconds"], rows).markdown() if rows else "",
        "command": command,
        "version": version("gensar-hf"),
        "versions": ", ".join(f"{package} {version(package)}" for package in PACKAGES),
    }
    if table:  # a history and a query as Python, of the catalogue's first items
        history, query = [{"item_id": item_id} for item_id in table.item_ids[:2]], (table.titles or ["a query"])[0]
        values["example_history"] = json.dumps(history, ensure_ascii=False)
        values["example_query"] = json.dumps(query.lower(), ensure_ascii=False)
    card_data = ModelCardData(library_name="gensar-hf", tags=[*TAGS, *tags], **metadata)
    path = str(Path(__file__).parent / "cards" / template)
    return ModelCard.from_template(card_data, template_path=path, **values).content.rstrip() + "\n"


def write_model_card(folder: str | os.PathLike[str], metrics: Mapping[str, Any] | None = None, **options: Any) -> Path:
    """Write the card of the model in `folder` as its README.md and return its path; arguments as for `model_card`.

    Raises:
        InputError: the folder has a card that this package did not write there, or that was edited.
    """
    content = model_card(folder, metrics, **options)
    with saving(folder, stage=stage_of(Path(folder))) as aside:
        (aside / CARD_FILE).write_text(content, encoding="utf-8")
    return Path(folder) / CARD_FILE


def _eval_results(metrics: Mapping[str, Any], system: str, data: DataFacts) -> list[EvalResult]:
    """A system's metrics for `model-index`. Each metric's name ends with its protocol."""
    return [
        EvalResult(
            task_type=task,
            dataset_type=data.dataset_id,
            dataset_name=data.name or data.dataset_id,
            metric_type=metric.lower(),
            metric_name=f"{metric} ({measured['protocol']})",
            metric_value=round(measured["systems"][system][metric]["value"], 4),
        )
        for task, measured in metrics["tasks"].items()
        if system in measured["systems"]
        for metric in METRICS
    ]


def _dataset_table(dataset: Any) -> Table:
    events, split = dataset.events, dataset.split
    num_training = int((split.train_ends - events.offsets[:-1]).sum())
    header = ["Users", "Items", "Events", "Training events", "Queries"]
    counts = [events.num_users, events.num_items, events.num_events, num_training, len(events.query_texts)]
    return Table(header, [[f"{count:,}" for count in counts]])


def _identifier_section(report: Mapping[str, Any]) -> str:
    if "reconstruction_error_before" not in report.get("semantic", {}):  # a table that was not built from embeddings
        return ""
    variant = {"identifiers": summarize_identifiers([report]), "seconds": {}}
    return identifier_table({"order": ["this model"], "variants": {"this model": variant}}).markdown()


def _num_parameters(folder: Path) -> int:
    count = 0
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count
