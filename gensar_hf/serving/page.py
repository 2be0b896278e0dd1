"""The page at `/`: a search box, what was clicked, and two rails that one model answers anew at each click."""

import asyncio
import json
import re
import shlex
import time
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, HTTPException

from gensar_hf.errors import InputError
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.serving.app import Server
from gensar_hf.serving.model_worker import ModelRequest

TOP_K = 8
ALL = "All"
_MAX_CLICKS = 50
_MAX_CHOICES = 30
_ATTRIBUTE_LENGTH = 30
_SEPARATORS = re.compile(r"\s*(?:[.,;|](?=\s|$)|>)\s*")

# One listener for all buttons, present and future. The name of an event is the button's `data-act`.
_ON_LOAD = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-act]');
  if (!button) return;
  element.setAttribute('aria-busy', 'true');
  trigger('act', {...button.dataset});
});
watch('value', () => element.removeAttribute('aria-busy'));
"""
_HEADER = """<header class="g-header"><h1>{name}</h1><p>One model recommends, searches and suggests queries among
{num_items:,} items. Click what you like: each click changes both lists. <a href="docs">REST API</a></p></header>"""


def add_page(app: FastAPI, server: Server) -> FastAPI:
    """Mount the page on an application that `create_app` has made."""
    page = Page(server)
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    theme = gr.themes.Base(
        font=["system-ui", "sans-serif"],  # none are downloaded
        font_mono=["ui-monospace", "monospace"],
        neutral_hue="gray",
        primary_hue="slate",
    )
    return gr.mount_gradio_app(app, page.blocks(), "/", css=css, theme=theme, show_error=False, footer_links=[])


class Attributes:
    """Short parts of the items' texts, such as genres, that several items share.

    Attributes:
        choices: those to filter by, the most frequent ones in alphabetical order.
    """

    def __init__(self, table: IdentifierTable) -> None:
        self.table = table
        counts = Counter(part for row in range(table.num_items) for part in set(self.of(row)))
        lowest, highest = max(3, table.num_items // 100), 0.9 * table.num_items
        self.frequent = [part for part, count in counts.most_common() if lowest <= count <= highest][:_MAX_CHOICES]
        self.choices = sorted(self.frequent) if len(self.frequent) > 1 else []
        self._items: dict[str, tuple[str, ...]] = {}

    def of(self, row: int) -> list[str]:
        """The attributes of an item: what its text says besides its title, as far as it is short."""
        if self.table.texts is None:
            return []
        title = self.table.titles[row] if self.table.titles is not None else ""
        parts = _SEPARATORS.split(self.table.texts[row].removeprefix(title))
        return [part for part in map(str.strip, parts) if 0 < len(part) <= _ATTRIBUTE_LENGTH]

    def items(self, attribute: str) -> tuple[str, ...]:
        """Ids of the items that have an attribute."""
        if attribute not in self._items:
            rows = [row for row, text in enumerate(self.table.texts or []) if attribute in text]
            self._items[attribute] = tuple(self.table.item_ids[row] for row in rows if attribute in self.of(row))
        return self._items[attribute]


class Page:
    """What the page shows. A visitor's clicks are events as the pipeline takes them.

    Args:
        server: answers the requests.
    """

    def __init__(self, server: Server) -> None:
        self.server, self.pipe = server, server.pipe
        self.attributes = Attributes(self.pipe.tokenizer.identifiers)
        self._examples: tuple[dict[str, list[str]], list[str]] | None = None

    def blocks(self) -> gr.Blocks:
        """The layout, and which function answers which event."""
        folder = Path(self.pipe.name_or_path or "GenSAR").absolute()
        name = folder.parent.name if folder.name == "model" else folder.name
        table = self.pipe.tokenizer.identifiers
        with gr.Blocks(title=f"GenSAR: {name}", analytics_enabled=False, fill_width=True) as blocks:
            gr.HTML(_HEADER.format(name=escape(name), num_items=table.num_available))
            clicks = gr.State([])
            with gr.Row(elem_classes="g-form"):
                query = gr.Textbox(
                    label="Search", placeholder="Type a query, then Enter", elem_id="query", scale=4, max_length=1000,
                    max_lines=1,
                )  # fmt: skip
                choice = gr.Dropdown(
                    [ALL, *self.attributes.choices], value=ALL, label="Only", elem_id="filter", scale=1,
                    visible=bool(self.attributes.choices),
                )  # fmt: skip
            board = gr.HTML(js_on_load=_ON_LOAD, elem_id="board", apply_default_css=False)
            with gr.Accordion("The same as a request", open=False, elem_id="requests"):
                code = gr.HTML(apply_default_css=False)
            inputs, outputs = [clicks, query, choice], [clicks, query, board, code]
            options: dict[str, Any] = {
                "concurrency_limit": None,
                "api_visibility": "private",
                "show_progress": "hidden",
            }
            board.act(self.act, inputs, outputs, **options)
            for listen in (query.submit, choice.input, blocks.load):
                listen(self.show, inputs, outputs, **options)
        return blocks

    # ---- events

    async def act(self, clicks: list[dict], query: str, choice: str, event: gr.EventData) -> tuple:
        """A button of the board: click an item, forget a click, start as an example, or search for a suggestion."""
        data = event._data if isinstance(event._data, dict) else {}
        act, known = data.get("act"), self.pipe.tokenizer.identifiers.rows()
        if act == "click" and data.get("item") in known:
            by_query = {"query": query} if data.get("rail") == "search" and query.strip() else {}
            clicks = [*clicks, {"item_id": data["item"], **by_query}][-_MAX_CLICKS:]
        elif act == "forget":
            clicks = [click for place, click in enumerate(clicks) if str(place) != data.get("place")]
        elif act == "clear":
            clicks = []
        elif act == "example":
            items = (await self.examples())[0].get(str(data.get("name")), [])
            clicks = [{"item_id": item} for item in items if item in known]
        elif act == "query":
            query = str(data.get("query", ""))
        return await self.show(clicks, query, choice)

    async def show(self, clicks: list[dict], query: str, choice: str) -> tuple:
        """Ask the model three times at once, and render the answers."""
        query = str(query or "")[:1000]
        if self.attributes.table is not self.pipe.tokenizer.identifiers:
            self.attributes = await asyncio.to_thread(Attributes, self.pipe.tokenizer.identifiers)
        among = self.attributes.items(choice) if choice in self.attributes.choices else None
        explained = (("explain", True),)
        asked = {
            "recommend": ModelRequest(
                "recommend", clicks, top_k=TOP_K, among=among, options=(("exclude_seen", True), *explained)
            ),
            "suggest": ModelRequest("suggest", clicks, top_k=3),
        }
        if query.strip():
            asked["search"] = ModelRequest("search", clicks, query, top_k=TOP_K, among=among, options=explained)
        start, problem = time.perf_counter(), ""
        found: dict[str, list] = {name: [] for name in asked}
        try:
            answers = await asyncio.gather(*[self.server.answers([request]) for request in asked.values()])
            found = {name: own.answers[0] for name, own in zip(asked, answers, strict=True)}
            await self.examples()
        except (InputError, HTTPException) as error:
            problem = str(getattr(error, "detail", error))
        took = 1000 * (time.perf_counter() - start)
        number = len(found["recommend"]) + len(found.get("search", []))
        status = problem or f"{number} items from one model in {took:.0f} ms"
        return clicks, query, self._board(clicks, query, found, status), self._code(clicks, query)

    async def examples(self) -> tuple[dict[str, list[str]], list[str]]:
        """Users to start as, and queries: what the model finds likely for somebody of whom nothing is known."""
        if self._examples is None:
            popular, queries = await asyncio.gather(
                self.server.answers([ModelRequest("recommend", [], top_k=4)]),
                self.server.answers([ModelRequest("suggest", [], top_k=3)]),
            )
            frequent = self.attributes.frequent if self.attributes.choices else []
            names = [name for name in frequent if not name.isdecimal()][:5]
            own = [ModelRequest("recommend", [], top_k=3, among=self.attributes.items(name)) for name in names]
            answers = [(await self.server.answers([request])).answers[0] for request in own]
            users = {name: [answer["item_id"] for answer in found] for name, found in zip(names, answers, strict=True)}
            if not users:
                users = {answer["title"] or answer["item_id"]: [answer["item_id"]] for answer in popular.answers[0]}
            titles = [answer["title"].lower() for answer in popular.answers[0][:2] if answer["title"]]
            self._examples = users, [*[answer["query"] for answer in queries.answers[0]], *titles]
        return self._examples

    # ---- rendering; everything that is not ours goes through `escape`

    def _board(self, clicks: list[dict], query: str, found: dict[str, list], status: str) -> str:
        users, queries = self._examples or ({}, [])
        chips = "".join(self._chip(place, click) for place, click in enumerate(clicks))
        if clicks:
            chips += '<li><button class="g-chip" data-act="clear">Clear all</button></li>'
            strip = f'<h2>You clicked</h2><ul class="g-chips">{chips}</ul>'
        else:
            examples = "".join(_button("example", name, name=name) for name in users)
            strip = f'<h2>No clicks yet. Start as somebody who likes</h2><ul class="g-chips">{examples}</ul>'
        texts = [answer["query"] for answer in found["suggest"]] if clicks else queries
        suggestions = "".join(_button("query", text, query=text) for text in texts)
        search = self._cards("search", found.get("search", []))
        if not query.strip():
            search = '<p class="g-empty">Type a query above, or choose a suggestion.</p>'
        title = f"Found for “{escape(query.strip())}”" if query.strip() else "Found"
        return f"""<div class="g-board"><section aria-label="Clicks">{strip}</section>
            <section aria-label="Queries"><h2>Searches to try</h2><ul class="g-chips">{suggestions}</ul></section>
            <p class="g-status" role="status">{escape(status)}</p>
            <div class="g-rails">
            <section id="recommended"><h2>For you</h2>{self._cards("recommend", found["recommend"])}</section>
            <section id="found"><h2>{title}</h2>{search}</section></div></div>"""

    def _chip(self, place: int, click: dict) -> str:
        title, searched = escape(self._title(click["item_id"])), ""
        if click.get("query"):
            searched = f' <span class="g-searched">“{escape(click["query"][:40])}”</span>'
        return (
            f'<li class="g-chip">{title}{searched}<button data-act="forget" data-place="{place}" '
            f'aria-label="Forget {title}">×</button></li>'
        )

    def _title(self, item_id: str) -> str:
        table = self.pipe.tokenizer.identifiers
        row = table.rows().get(item_id)
        return item_id if row is None or table.titles is None else table.titles[row] or item_id

    def _cards(self, rail: str, answers: list[dict]) -> str:
        largest = max((abs(value) for answer in answers for value in answer["parts"].values()), default=1.0) or 1.0
        cards = "".join(self._card(rail, answer, largest) for answer in answers)
        return f'<ol class="g-cards">{cards}</ol>' if cards else '<p class="g-empty">No item fits.</p>'

    def _card(self, rail: str, answer: dict, largest: float) -> str:
        item_id = answer["item_id"]
        row = self.pipe.tokenizer.identifiers.rows().get(item_id)
        attributes, identifiers = "", ""
        if row is not None and row < self.attributes.table.num_items:
            attributes, identifiers = " · ".join(self.attributes.of(row))[:90], self._identifiers(row)
        parts = "".join(
            f'<span class="g-part" style="--w:{100 * abs(value) / largest:.0f}%">{escape(name)} {_number(value)}</span>'
            for name, value in answer["parts"].items()
        )
        return (
            f'<li><button class="g-card" data-act="click" data-rail="{rail}" data-item="{escape(item_id)}">'
            f'<span class="g-title">{escape(self._title(item_id))}</span>'
            f'<span class="g-score">{_number(answer["score"])}</span>'
            f'<span class="g-attributes">{escape(attributes)}</span>{identifiers}'
            f'<span class="g-parts">{parts}</span></button></li>'
        )

    def _identifiers(self, row: int) -> str:
        """Both identifiers; a code has the same color wherever it occurs at its level."""
        table, rows = self.pipe.tokenizer.identifiers, []
        for name, codes in (("semantic", table.semantic_codes[row]), ("collaborative", table.collaborative_codes[row])):
            cells = []
            for level, code in enumerate(codes.tolist()):
                hue = (47 * level + 360 * code // table.codebook_size) % 360
                kind = " g-shared" if level < table.num_shared_levels else ""
                cells.append(f'<span class="g-code{kind}" style="--h:{hue}">{code}</span>')
            label = f"{name} identifier, the first {table.num_shared_levels} codes are shared"
            rows.append(f'<span class="g-id" title="{label}"><span class="g-kind">{name}</span>{"".join(cells)}</span>')
        return f'<span class="g-ids">{"".join(rows)}</span>'

    def _code(self, clicks: list[dict], query: str) -> str:
        settings, query = self.server.settings, query.strip()
        url = f"http://{settings.host}:{settings.port}/v1"
        bodies: dict[str, dict[str, Any]] = {"recommend": {"history": clicks, "top_k": TOP_K, "exclude_seen": True}}
        calls = [f"pipe.recommend(history, top_k={TOP_K}, exclude_seen=True)"]
        if query:
            bodies["search"] = {"query": query, "history": clicks, "top_k": TOP_K}
            calls.append(f"pipe.search({query!r}, history, top_k={TOP_K})")
        curls = [
            f"curl {url}/{kind} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
            for kind, body in bodies.items()
        ]
        python = [
            "from gensar_hf import GenSARPipeline",
            f"pipe = GenSARPipeline.from_pretrained({str(self.pipe.name_or_path)!r})",
            f"history = {clicks!r}",
            *calls,
        ]
        return f'<pre class="g-code-block">{escape(chr(10).join([*curls, "", *python]))}</pre>'


def _number(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")


def _button(act: str, text: str, **data: str) -> str:
    attributes = "".join(f' data-{name}="{escape(value)}"' for name, value in data.items())
    return f'<li><button class="g-chip" data-act="{act}"{attributes}>{escape(text)}</button></li>'
