"""One real user's history in titles, and what the model answers."""

from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from stages import DATA, MODEL, RESULTS, damage_reported, load_data

from gensar_hf.data import RECOMMENDATION, SEARCH
from gensar_hf.evaluation.generator_scorer import request_history
from gensar_hf.pipeline import GenSARPipeline

NUM_EVENTS_SHOWN = 8


def show_answers(console: Console, run_dir: Path) -> None:
    """Print a test user's last events, recommendations, results for the user's own next query, suggested queries."""
    _, events, split = load_data(run_dir)
    with damage_reported(run_dir / MODEL):
        pipe = GenSARPipeline.from_pretrained(run_dir / MODEL)
    table = pipe.tokenizer.identifiers
    task = SEARCH if len(split.test[SEARCH]) else RECOMMENDATION
    if len(split.test[task]) == 0:
        console.print(f"There are no held-out requests in {run_dir / DATA}, so there is no user to show.")
        return
    requests = split.test[task]
    history = request_history(requests, 0)
    titles = table.titles or table.item_ids
    lines = [_event_line(entry, titles, table) for entry in history[-NUM_EVENTS_SHOWN:]]
    user = events.user_ids[int(requests.users[0])]
    console.print(Panel("\n".join(lines), title=f"User {user}, the last {len(lines)} of {len(history)} events"))
    recommended = pipe.recommend(history, top_k=5, exclude_seen=True)
    console.print(Panel(_answer_lines(recommended), title="recommend(history, top_k=5, exclude_seen=True)"))
    if task == SEARCH:
        query = requests.query_texts[0]
        found = Panel(
            _answer_lines(pipe.search(query, history, top_k=5)),
            title=f'search("{query}", history, top_k=5)',
            subtitle=f"clicked in truth: {titles[table.index_of(events.item_ids[requests.target_items[0]])]}",
        )
        console.print(found)
        suggested = pipe.suggest_queries(history, top_k=3)
        lines = [f"{answer['score']:8.2f}  {answer['query']}" for answer in suggested]
        console.print(Panel("\n".join(lines), title="suggest_queries(history, top_k=3)"))
    else:
        console.print("The log holds no searches, so there was nothing to learn search from.")
    console.print("The same in Python:")
    asked = f', pipe.search("{requests.query_texts[0]}", history)' if task == SEARCH else ""
    for line in (
        f'from gensar_hf import GenSARPipeline; pipe = GenSARPipeline.from_pretrained("{run_dir / MODEL}")',
        f"history = {history[-2:]}  # oldest first",
        f"pipe.recommend(history, top_k=5){asked}",
    ):
        console.print("    " + line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"The model is in {run_dir / MODEL}, tables and a figure in {run_dir / RESULTS}.")


def _event_line(entry: dict, titles: list[str], table) -> str:
    if "item_id" not in entry:
        return f"searched for   “{entry['query']}”"
    did = "found          " if entry.get("query") else "clicked        "
    return did + titles[table.index_of(entry["item_id"])]


def _answer_lines(answers: list[dict]) -> str:
    return "\n".join(f"{answer['score']:8.2f}  {answer['title'] or answer['item_id']}" for answer in answers)
