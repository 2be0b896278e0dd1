"""HR@k with one target per request, as a module of the `evaluate` library.

It stands alone, so that its folder can be loaded, copied, or put on the Hub without the package.
"""

import datasets
import evaluate

_DESCRIPTION = """
HR@k, the hit rate: the share of requests whose target is among the first k items of the ranking. With one target per
request it is the same as Recall@k and Success@k.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `str` or `int`): the ranking of each request, item ids, the best first. It may be
        shorter than k, but names no item twice.
    references (`list` of `str` or `int`): the target of each request, an item id of the same kind.
    k (`int` or `list` of `int`, defaults to 10): how many items of each ranking are looked at.

Returns:
    `dict`: `hit_rate@k` (`float`, from 0 to 1) for each k.

Examples:
    >>> hit_rate = evaluate.load("metrics/hit_rate")
    >>> rankings = [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["c", "b"]]
    >>> hit_rate.compute(predictions=rankings, references=["a", "a", "a", "a"], k=[1, 2])
    {'hit_rate@1': 0.25, 'hit_rate@2': 0.5}
"""

_CITATION = """
@article{deshpande2004item,
  author = {Deshpande, Mukund and Karypis, George},
  title = {Item-based top-N recommendation algorithms},
  journal = {ACM Transactions on Information Systems},
  volume = {22},
  number = {1},
  pages = {143--177},
  year = {2004}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class HitRate(evaluate.Metric):
    """The share of requests whose target is among the first k items."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features(
                    {"predictions": datasets.List(datasets.Value(kind)), "references": datasets.Value(kind)}
                )
                for kind in ("string", "int64")
            ],
        )

    def _compute(self, predictions: list[list], references: list, k: int | list[int] = 10) -> dict[str, float]:
        ranks = target_ranks(predictions, references)
        lengths = k if isinstance(k, list | tuple) else [k]
        return {f"hit_rate@{length}": hit_rate(ranks, length) for length in lengths}


def target_ranks(predictions: list[list], references: list) -> list[float]:
    """Each target's place in its ranking, from 1; infinite where it is missing.

    Raises:
        ValueError: a ranking names an item twice.
    """
    for row, ranking in enumerate(predictions):
        if len(set(ranking)) < len(ranking):
            raise ValueError(f"predictions[{row}] names an item twice; a ranking holds each item once.")
    return [
        ranking.index(target) + 1 if target in ranking else float("inf")
        for ranking, target in zip(predictions, references, strict=True)
    ]


def hit_rate(ranks: list[float], k: int) -> float:
    """The share of ranks up to k."""
    if k < 1 or k != int(k):
        raise ValueError(f"`k` counts the items of a ranking and must be a whole number, at least 1; got {k}.")
    return sum(rank <= k for rank in ranks) / len(ranks)
