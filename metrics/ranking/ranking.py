"""HR@k and NDCG@k with one target per request, as a module of the `evaluate` library.

The folder does not need the package: it can be loaded, copied, or put on the Hub by itself.
"""

import math

import datasets
import evaluate

_DESCRIPTION = """
Ranking metrics with one target per request. HR@k, the hit rate, is the fraction of requests whose target is among the
first k items of the ranking; it equals Recall@k and Success@k. In NDCG@k a target at rank r gains 1 / log2(r + 1) if r
is at most k, and 0 otherwise; the ideal ranking gains 1, and the result is the mean.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `str` or `int`): the ranking of each request, item ids, the best first. It may be
        shorter than k, and has each item once.
    references (`list` of `str` or `int`): the target of each request, an item id of the same type.
    k (`int` or `list` of `int`, defaults to 10): lengths of the list.

Returns:
    `dict`: `hit_rate@k` and `ndcg@k` (`float`, from 0 to 1) for each k.

Examples:
    >>> ranking = evaluate.load("metrics/ranking")
    >>> rankings = [["a", "b", "c"], ["b", "c", "a"], ["c", "b"], ["b"]]
    >>> ranking.compute(predictions=rankings, references=["a", "a", "a", "a"], k=3)
    {'hit_rate@3': 0.5, 'ndcg@3': 0.375}
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
class Ranking(evaluate.Metric):
    """HR@k and NDCG@k of rankings with one target each."""

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
        results = {}
        for length in k if isinstance(k, list | tuple) else [k]:
            if length < 1 or length != int(length):
                raise ValueError(f"`k` is the length of a list and must be a whole number, at least 1; got {length}.")
            hits = [rank for rank in ranks if rank <= length]
            results[f"hit_rate@{length}"] = len(hits) / len(ranks)
            results[f"ndcg@{length}"] = sum(1 / math.log2(rank + 1) for rank in hits) / len(ranks)
        return results


def target_ranks(predictions: list[list], references: list) -> list[float]:
    """Rank of each target in its ranking, from 1; infinite if it is missing.

    Raises:
        ValueError: a ranking has an item twice.
    """
    for row, ranking in enumerate(predictions):
        if len(set(ranking)) < len(ranking):
            raise ValueError(f"A ranking must have each item once; predictions[{row}] has an item twice.")
    return [
        ranking.index(target) + 1 if target in ranking else math.inf
        for ranking, target in zip(predictions, references, strict=True)
    ]
