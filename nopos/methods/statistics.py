"""Statistics of arrays and rankings; scipy's, where it has them.

scipy.stats takes most of a second to import, so it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def correlation(first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]) -> float:
    """Pearson's correlation over all entries of two arrays of one shape; 0 where one of them is constant."""
    from scipy.stats import pearsonr

    a, b = (values.double().flatten() for values in (first, second))
    return 0.0 if _constant(a) or _constant(b) else float(pearsonr(a.numpy(), b.numpy()).statistic)


def rank_correlation(
    first: Float[Tensor, "*shape"] | Sequence[float], second: Float[Tensor, "*shape"] | Sequence[float]
) -> float:
    """Spearman's correlation over all entries, equal values sharing their rank; 0 where one array is constant.

    It is the same to the last bit in whatever order the entries come.
    """
    a, b = _ranks(first), _ranks(second)
    norm = float(a @ a) * float(b @ b)
    return float(a @ b) / norm**0.5 if norm > 0 else 0.0


def _ranks(values: Float[Tensor, "*shape"] | Sequence[float]) -> Any:
    """Ranks around their mean, doubled: whole numbers, so that sums of their products are exact in any order."""
    from scipy.stats import rankdata

    flat = values.double().flatten().numpy() if isinstance(values, Tensor) else values
    return 2 * rankdata(flat) - (len(flat) + 1)


def interval(k: int, n: int) -> tuple[float, float]:
    """The exact (Clopper-Pearson) interval of 95 % of a share of which k of n were seen; of nothing it is anything."""
    if n == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    found = binomtest(k, n).proportion_ci(method="exact")
    return float(found.low), float(found.high)


def share_above(first: Sequence[float], second: Sequence[float]) -> float:
    """Share of pairs of which the value of the first is the larger, equal ones counting half (Mann, Whitney 1947)."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(first, second).statistic) / (len(first) * len(second))


def slope(values: Float[Tensor, "*shape"], on: Float[Tensor, "*shape"]) -> float:
    """The factor by which `on` comes nearest to `values` by least squares, without intercept; 0 where `on` is 0."""
    there = on.pow(2).sum()
    return ((values * on).sum() / there).item() if there > 0 else 0.0


def share_explained(predicted: Float[Tensor, "*#shape"], observed: Float[Tensor, "*#shape"]) -> float:
    """Share of the observed values' sum of squares that the prediction gets right.

    1 when it is right everywhere; 0 where there is nothing, or where more is missed than there is.
    """
    there, missed = observed.pow(2).sum().item(), (observed - predicted).pow(2).sum().item()
    return max(0.0, 1 - missed / there) if there > 0 else 0.0


def relative_range(values: Float[Tensor, " value"]) -> float:
    """Largest less smallest, over the size of the mean; 0 where all are zero."""
    size = values.mean().abs().clamp_min(torch.finfo(values.dtype).eps)
    return ((values.max() - values.min()) / size).item()


def _constant(values: Float[Tensor, " value"]) -> bool:
    return bool((values == values[0]).all())
