"""Model cards of a finished run: model/README.md, rqvae/README.md and collaborative/README.md, filled from its files.

    python training_scripts/write_cards.py training_scripts/configs/ml-100k.yaml
    python training_scripts/write_cards.py --output_dir runs/mine

`run_pipeline.py` does this at its end. Give the options that the run was made with: the command stands in the cards.
"""

import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import encode_items
import evaluate
import prepare_data
import train_generator
import train_rqvae
import train_sasrec
from console import main
from settings import Settings
from stages import COLLABORATIVE, DATA, MODEL, RESULTS, RQVAE, SEMANTIC, damage_reported

from gensar_hf.errors import InputError
from gensar_hf.evaluation.comparison import identifier_figures
from gensar_hf.evaluation.comparison_report import identifier_table, markdown_table
from gensar_hf.evaluation.report import markdown_report
from gensar_hf.files import STAGE_FILE, read_json
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.model_card import card_data, eval_results, write_card

SCRIPTS = (prepare_data, encode_items, train_sasrec, train_rqvae, train_generator, evaluate)
TEMPLATES = Path(__file__).parents[1] / "model_cards"
PACKAGES = ("gensar-hf", "torch", "transformers", "sentence-transformers", "huggingface_hub", "numpy")

# What is known of the data sets that the package loads by name.
DATA_SETS: dict[str, dict[str, str]] = {
    "ml-100k": {
        "data_name": "MovieLens-100k",
        "data_description": "100,000 ratings of films by 943 people (Harper and Konstan, TiiS 2015), taken as clicks. "
        "It has no searches: a seeded share of the clicks became search clicks, with a query made from the film's "
        "genres and decade.",
        "data_licence": "GroupLens' terms of use: research, no commercial use without permission, no redistribution "
        "of the data; https://files.grouplens.org/datasets/movielens/ml-100k-README.txt.",
        "data_limits": "Its searches are made, not typed, and say little about real queries.",
    },
    "amazon": {
        "data_name": "Amazon reviews",
        "data_description": "Reviews taken as clicks (McAuley et al., SIGIR 2015; Ni et al., EMNLP 2019).",
        "data_licence": "none stated by its authors, who ask for a citation; made for research.",
        "data_limits": "A review is not a click, and its queries were made from category paths.",
    },
}
OWN_DATA = {
    "data_name": "the log it was trained on",
    "data_description": "A log of clicks and queries, and a table of items.",
    "data_licence": "that of the log; whoever publishes this model has to say it here.",
    "data_limits": "",
}


def write_cards(settings: Settings) -> list[Path]:
    """Fill the cards of all models of the run that are finished.

    Raises:
        InputError: a stage before the cards is not finished.
    """
    run_dir = settings.run_dir
    values = _values(settings)
    metrics = read_json(run_dir / RESULTS / "metrics.json")
    data_id = values["data_id"]
    architecture = read_json(run_dir / MODEL / "config.json")["model_type"]
    written = []
    for stage, template, name, tags in (
        (MODEL, "gensar.md", "GenSAR", ["gensar", "t5" if architecture == "gensar" else architecture]),
        (RQVAE, "joint_rqvae.md", "Joint RQ-VAE", ["rq-vae"]),
        (COLLABORATIVE, "sasrec.md", "SASRec", ["sasrec", "sequential-recommendation"]),
    ):
        title = f"{name}, {values['data_name']}"
        results = eval_results(metrics, name, data_id, values["data_name"])
        own = {"title": title, "num_parameters": f"{_stage(run_dir, stage)['details'].get('parameters', 0):,}"}
        if stage == RQVAE:
            own["num_parameters"] = f"{_num_weights(run_dir / RQVAE):,}"
        written.append(
            write_card(run_dir / stage, TEMPLATES / template, card_data(title, tags, results), **values, **own)
        )
    return written


def data_set_facts(data_id: str) -> dict[str, str]:
    """What cards say of a data set; of a user's own log what its owner has to say."""
    return DATA_SETS.get(data_id, OWN_DATA)


def _values(settings: Settings) -> dict[str, Any]:
    """What the templates name, whichever model they are of."""
    run_dir = settings.run_dir
    data, rqvae = _stage(run_dir, DATA)["details"], _stage(run_dir, RQVAE)
    data_id = settings[DATA][0].dataset
    identifiers = {"identifiers": identifier_figures([rqvae["details"]]), "seconds": {"rqvae": rqvae["seconds"]}}
    rows = [
        [stage, f"{_stage(run_dir, stage)['seconds']:.0f}"]
        for stage in (SEMANTIC, COLLABORATIVE, RQVAE, MODEL, RESULTS)
    ]
    return {
        **data_set_facts(data_id),
        "example": _example(run_dir),
        "part": settings[RESULTS][0].part,
        "split": settings[DATA][0].split,
        "data_id": data_id,
        "version": version("gensar-hf"),
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "command": f"python training_scripts/run_pipeline.py {shlex.join(sys.argv[1:])}".rstrip(),
        "num_items": f"{data['items']:,}",
        "num_users": f"{data['users']:,}",
        "num_events": f"{data['events']:,}",
        "num_training_events": f"{data['training events']:,}",
        "num_queries": f"{data['queries']:,}",
        "encoder": read_json(run_dir / SEMANTIC / "config.json")["model"],
        "identifiers": identifier_table({"order": ["this model"], "variants": {"this model": identifiers}}),
        "results": markdown_report(read_json(run_dir / RESULTS / "metrics.json")).rstrip(),
        "stages": markdown_table(["Stage", "Seconds"], rows),
    }


def _example(run_dir: Path) -> dict[str, str]:
    """A history and a query as Python, made of two items of the catalogue: no person's events go into a card."""
    with damage_reported(run_dir / MODEL):
        table = IdentifierTable.load(run_dir / MODEL)
    history = [{"item_id": item_id} for item_id in table.item_ids[:2]]
    query = (table.titles or ["a query"])[0].lower()
    return {name: json.dumps(value, ensure_ascii=False) for name, value in (("history", history), ("query", query))}


def _stage(run_dir: Path, stage: str) -> dict[str, Any]:
    if not (run_dir / stage / STAGE_FILE).is_file():
        raise InputError(f"Stage {stage} of {run_dir} is not finished; a card is written after the evaluation.")
    return read_json(run_dir / stage / STAGE_FILE)


def _num_weights(folder: Path) -> int:
    from gensar_hf import JointRQVAE

    with damage_reported(folder):
        return JointRQVAE.from_pretrained(folder).num_parameters()


def run(settings: Settings) -> None:
    """Write the cards and name them."""
    for path in write_cards(settings):
        print(path)


if __name__ == "__main__":
    main(run, __doc__, [script.SECTION for script in SCRIPTS])
