"""The six training tasks and their instructions.

Each task has one frozen table of templates. An encoder input is an instruction followed by events: the user's history,
a query, an item's text or an identifier. The instruction comes first, so that every event of a history can be a
training target that sees the instruction and all earlier events (see `examples.py`).
"""

from dataclasses import dataclass
from enum import StrEnum

from gensar_hf.data import Behavior


class Task(StrEnum):
    """The training tasks (GenSAR, training tasks; the last one is from the authors' code)."""

    NEXT_RECOMMENDED_ITEM = "next_recommended_item"
    NEXT_QUERY = "next_query"
    NEXT_SEARCHED_ITEM = "next_searched_item"
    DESCRIPTION_TO_IDENTIFIER = "description_to_identifier"
    IDENTIFIER_TO_DESCRIPTION = "identifier_to_description"
    AD_HOC_SEARCH = "ad_hoc_search"


HISTORY_TASKS = {
    Behavior.RECOMMENDED_ITEM: Task.NEXT_RECOMMENDED_ITEM,
    Behavior.SEARCH_QUERY: Task.NEXT_QUERY,
    Behavior.SEARCHED_ITEM: Task.NEXT_SEARCHED_ITEM,
}


@dataclass(frozen=True)
class Prompts:
    """The instructions of one task.

    Attributes:
        templates: several wordings; training draws one per example, inference uses the first. `{kind}` is the kind of
            identifier, `semantic` or `collaborative`, in the two tasks that have both.
    """

    templates: tuple[str, ...]

    def instruction(self, template: int = 0, kind: str = "") -> str:
        """One template, filled in."""
        return self.templates[template].format(kind=kind)


PROMPTS: dict[Task, Prompts] = {
    Task.NEXT_RECOMMENDED_ITEM: Prompts(
        (
            "recommend the item clicked next:",
            "what will this user like next?",
            "given these events, suggest one more item:",
        )
    ),
    Task.NEXT_QUERY: Prompts(
        (
            "write the query typed next:",
            "what will this user look for next?",
            "given these events, guess the next search:",
        )
    ),
    Task.NEXT_SEARCHED_ITEM: Prompts(
        (
            "find the item clicked for the last query:",
            "which result will this user open?",
            "given these events and the query, pick a result:",
        )
    ),
    Task.DESCRIPTION_TO_IDENTIFIER: Prompts(
        (
            "{kind} identifier of the item described:",
            "name this item by its {kind} codes:",
        )
    ),
    Task.IDENTIFIER_TO_DESCRIPTION: Prompts(
        (
            "describe the item with this {kind} identifier:",
            "what do these {kind} codes stand for?",
        )
    ),
    Task.AD_HOC_SEARCH: Prompts(
        (
            "find an item for the query:",
            "which item answers this search?",
        )
    ),
}


def all_instructions() -> list[str]:
    """Every instruction in every wording, for training a tokenizer."""
    return [
        prompts.instruction(template, kind)
        for prompts in PROMPTS.values()
        for template in range(len(prompts.templates))
        for kind in ("semantic", "collaborative")
    ]
