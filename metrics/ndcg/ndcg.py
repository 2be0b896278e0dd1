"""NDCG@k with one target per request, as a module of the `evaluate` library.

It stands alone, so that its folder can be loaded, copied, or put on the Hub without the package.
"""

import math

import datasets
import evaluate

_DESCRIPTION = """
NDCG@k with one target per request, its relevance 1: a target at place r of the ranking gains 1 / log2(r + 1) if r is at
most k, and nothing otherwise. The ideal ranking gains 1, so that no division is left; the result is the mean.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `str` or `int`): the ranking of each request, item ids, the best first. It may be
        shorter than k, but names no item twice.
    references (`list` of `str` or `int`): the target of each request, an item id of the same kind.
    k (`int` or `list` of `int`, defaults to 10): how many items of each ranking are looked at.

Returns:
    `dict`: `ndcg@k` (`float`, from 0 to 1) for each k.

Examples:
    >>> ndcg = evaluate.load("metrics/ndcg")
    >>> rankings = [["a", "b", "c"], ["b", "c", "a"], ["c", "b"], ["b"]]
    >>> ndcg.compute(predictions=rankings, references=["a", "a", "a", "a"], k=[1, 3])
    {'ndcg@1': 0.25, 'ndcg@3': 0.375}
"""

_CITATION = """
@article{jarvelin2002cumulated,
  author = {J{\\"a}rvelin, Kalervo and Kek{\\"a}l{\\"a}inen, Jaana},
  title = {Cumulated gain-based evaluation of {IR} techniques},
  journal = {ACM Transactions on Information Systems},
  volume = {20},
  number = {4},
  pages = {422--446},
  year = {2002}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Ndcg(evaluate.Metric):
    """The mean discounted gain of the targets among the first k items."""

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
        return {f"ndcg@{length}": ndcg(ranks, length) for length in lengths}


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


def ndcg(ranks: list[float], k: int) -> float:
    """The mean of 1 / log2(rank + 1) over all requests, where ranks beyond k count nothing."""
    if k < 1 or k != int(k):
        raise ValueError(f"`k` counts the items of a ranking and must be a whole number, at least 1; got {k}.")
    return sum(1 / math.log2(rank + 1) for rank in ranks if rank <= k) / len(ranks)
