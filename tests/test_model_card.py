"""Model cards: from folders and pipelines, with and without metrics, and the examples in model_cards/."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from gensar_hf import GenSARPipeline, JointRQVAE, JointRQVAEConfig, SASRecConfig, SASRecModel
from gensar_hf.model_card import DATA_SETS, DataFacts, model_card, write_model_card

ROOT = Path(__file__).parents[1]
METRICS = json.loads((ROOT / "results" / "ml-100k" / "metrics.json").read_text())
KIND = {
    "reconstruction_error_before": 0.5, "collision_rate_before": 0.01, "collision_rate_after": 0.0,
    "codebook_use_before": [1.0, 0.75], "perplexity_before": [3.0, 2.0], "distortion_before": 2.0,
    "distortion_after": 2.5,
}  # fmt: skip
REPORT = {
    "num_items": 9, "codebook_size": 4, "num_levels": 2, "num_shared_levels": 1, "semantic": KIND,
    "collaborative": KIND,
}  # fmt: skip


def test_the_card_of_a_pipeline_is_saved_with_it(pipelines, kind, tmp_path):
    pipe = GenSARPipeline(pipelines[kind].model, pipelines[kind].tokenizer)
    pipe.card = model_card(pipe, METRICS, data="ml-100k", identifiers=REPORT, stages={"rqvae": 12.4}, command="gensar")
    pipe.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.content == pipe.card
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == ("gensar-hf", "text-ranking", "other")
    assert {"gensar", "search", "llama" if kind == "causal" else "t5"} <= set(card.data.tags)
    values = {(each.task_type, each.metric_name): each.metric_value for each in card.data.eval_results}
    ndcg = METRICS["tasks"]["search"]["systems"]["GenSAR"]["NDCG@10"]["value"]
    assert len(values) == 10
    assert values["search", "NDCG@10 (bm25-hard-99)"] == pytest.approx(ndcg, abs=1e-4)
    for part in (
        "# GenSAR, MovieLens-100k",
        "over 12 items of MovieLens-100k",
        'history = [{"item_id": "film-0"}, {"item_id": "film-1"}]',
        'pipe.search("toy story", history, top_k=5)',
        f"({pipe.model.num_parameters():,} parameters)",
        "(random-99, 100 candidates, 943 requests)",
        "| this model | 2 (1) | 0.500 / 0.500 |",
        "| rqvae | 12 |",
        "The searches are synthetic",
    ):
        assert part in card.text


def test_a_card_shows_query_kinds_if_the_metrics_hold_them(events_pipe):
    values = {metric: {"value": 0.25, "low": 0.2, "high": 0.3} for metric in ("HR@1", "HR@10")}
    facts = {
        "num_requests": 5,
        "num_candidates": 12,
        "num_with_history": 1,
        "example": {"query": "alien", "title": "Alien"},
    }
    kinds = {"title": {**facts, "systems": {"GenSAR": values}}}
    shown = {"confidence": 0.95, "systems": ["GenSAR"], "failures": {}, "kinds": kinds}
    card = model_card(events_pipe, {**METRICS, "query_kinds": shown})
    table = "| GenSAR | **.250** / **.250** |"
    assert table in card
    assert card.index(table) < card.index("(random-99, 100 candidates, 943 requests)")
    assert len(ModelCard(card).data.eval_results) == 10
    assert "What a search finds" not in model_card(events_pipe, METRICS)


def test_a_folder_gets_its_card_without_metrics(model_dirs, tmp_path):
    folder = tmp_path / "model"
    folder.symlink_to(model_dirs["events"])
    text = write_model_card(folder, data=DataFacts("a shop", license="private")).read_text()
    (folder / "README.md").unlink()
    card = ModelCard(text)
    assert card.data.eval_results is None
    assert "This model was not evaluated." in text
    assert "**License of the data:** private" in text
    assert "{" not in text.replace('[{"item_id"', "").split("bibtex")[0].replace('{"item_id"', "")


def test_cards_of_the_other_models_follow_from_their_configuration(tmp_path):
    SASRecModel(SASRecConfig(num_items=7, hidden_size=8, num_heads=1)).save_pretrained(tmp_path / "sasrec")
    rqvae = JointRQVAE(JointRQVAEConfig(semantic_dim=6, collaborative_dim=4, codebook_size=4))
    rqvae.save_pretrained(tmp_path / "rqvae")
    sasrec_card = write_model_card(tmp_path / "sasrec", METRICS, data="ml-100k").read_text()
    assert "7 items" in sasrec_card
    assert len(ModelCard(sasrec_card).data.eval_results) == 5
    rqvae_card = model_card(tmp_path / "rqvae", identifiers=REPORT)
    assert "rq-vae" in ModelCard(rqvae_card).data.tags
    assert "| this model | 2 (1) |" in rqvae_card
    assert "Whoever publishes this model" in rqvae_card


def test_counts_are_those_of_the_dataset(events_pipe, tiny_split):
    class Dataset:
        events, split = tiny_split.events, tiny_split

    text = model_card(events_pipe, dataset=Dataset(), split="leave_one_out")
    assert "| 3 | 12 | 27 | 17 | 4 |" in text
    assert "Held out per user and task" in text
    assert "ann" not in text.split("## Data")[0]  # no user is in the example


@pytest.mark.parametrize("name", ["gensar", "joint_rqvae", "sasrec"])
def test_the_examples_are_valid_cards_with_the_published_metrics(name):
    card = ModelCard.load(ROOT / "model_cards" / f"{name}.md")
    assert card.data.library_name == "gensar-hf"
    assert card.data.license_name == DATA_SETS["ml-100k"].metadata["license_name"]
    assert "{{" not in card.content
    system = {"gensar": "GenSAR", "sasrec": "SASRec"}.get(name)
    for each in card.data.eval_results or []:
        metric, _, protocol = each.metric_name.partition(" ")
        measured = METRICS["tasks"][each.task_type]
        assert protocol == f"({measured['protocol']})"
        assert each.metric_value == round(measured["systems"][system][metric]["value"], 4)
