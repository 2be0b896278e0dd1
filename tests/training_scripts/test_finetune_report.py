from finetune_report import markdown_tables


def test_figures_before_and_after_stand_group_by_group_with_their_difference():
    metrics = ("HR@1", "HR@5", "HR@10", "NDCG@10")

    def figures(value):
        return {metric: {"value": value, "low": value - 0.05, "high": value + 0.15} for metric in metrics}

    group = {
        "protocol": "random-99", "num_requests": 1234, "num_items": 5, "num_users": 67,
        "systems": {"before": figures(0.25), "after": figures(0.5)}, "difference": figures(0.25),
    }  # fmt: skip
    result = {
        "systems": ["before", "after"], "groups": ["known items", "new items"], "part": "test", "steps": 300,
        "parameters": 1_000_000, "trained_parameters": 54_321, "known_items": 90, "new_items": 7,
        "tasks": {"recommendation": {"new items": group}, "search": {}},
    }  # fmt: skip
    written = markdown_tables(result)
    assert written.startswith(
        "54,321 numbers trained beside the model's 1,000,000, for 300 steps; 90 known items, 7 new"
    )
    assert "(random-99)**" in written
    assert "| new items (1,234 requests, 5 items, 67 users) |" in written
    assert "| before | .250 ± .100 |" in written
    assert "| after | .500 ± .100 |" in written
    assert "| difference | +0.250 (+0.200 … +0.400) |" in written
    assert "known items (" not in written
    assert "Search" not in written
    assert "(random-99, validation)" in markdown_tables({**result, "part": "validation"})
