import pytest

from gensar_hf.data import Behavior
from gensar_hf.generator.prompts import HISTORY_TASKS, PROMPTS, Task, all_instructions

KINDS = ("semantic", "collaborative")


@pytest.mark.parametrize("task", Task)
def test_every_task_has_several_wordings(task: Task) -> None:
    assert len(set(PROMPTS[task].templates)) == len(PROMPTS[task].templates) >= 2


def test_there_are_six_tasks_and_each_has_prompts() -> None:
    assert len(Task) == 6
    assert set(PROMPTS) == set(Task)


def test_no_wording_serves_two_tasks_or_two_kinds() -> None:
    """The words are all that tells the model which task is wanted."""
    wordings = [
        (task, template, kind)
        for task in Task
        for template in range(len(PROMPTS[task].templates))
        for kind in (KINDS if "{kind}" in PROMPTS[task].templates[template] else ("",))
    ]
    instructions = [PROMPTS[task].instruction(template, kind) for task, template, kind in wordings]
    assert len(set(instructions)) == len(instructions)


@pytest.mark.parametrize("task", [Task.DESCRIPTION_TO_IDENTIFIER, Task.IDENTIFIER_TO_DESCRIPTION])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tasks_that_know_both_identifiers_say_which(task: Task, kind: str) -> None:
    for template in range(len(PROMPTS[task].templates)):
        assert kind in PROMPTS[task].instruction(template, kind)


def test_no_brace_is_left_and_nothing_is_empty() -> None:
    instructions = all_instructions()
    for instruction in instructions:
        assert "{" not in instruction
        assert "}" not in instruction
        assert instruction == instruction.strip() != ""
    assert {PROMPTS[task].instruction(0, "semantic") for task in Task} <= set(instructions)


def test_inference_uses_the_first_wording_of_each_behavior() -> None:
    assert HISTORY_TASKS == {
        Behavior.RECOMMENDED_ITEM: Task.NEXT_RECOMMENDED_ITEM,
        Behavior.SEARCH_QUERY: Task.NEXT_QUERY,
        Behavior.SEARCHED_ITEM: Task.NEXT_SEARCHED_ITEM,
    }
    for task in HISTORY_TASKS.values():
        assert PROMPTS[task].instruction() == PROMPTS[task].templates[0]
