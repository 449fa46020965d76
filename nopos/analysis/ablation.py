"""Replace an activation by its mean (notebook, step 7), with the two means named apart.

`per_position_mean` averages over the batch, as the notebook does: it erases content and keeps position.
`global_mean` averages over the batch and position: it erases both. Scores and patterns have two positions, so for them
it is the mean by distance; a pattern's rows are renormalised over the keys that a query may see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nopos.analysis.replacement import loss_with
from nopos.model import NoPosTransformer, permitted_keys

Kind = Literal["per_position_mean", "global_mean"]


def per_position_mean(activation: Float[Tensor, "batch ..."]) -> Float[Tensor, "1 ..."]:
    """Mean over the batch alone."""
    return reduce(activation, "batch ... -> 1 ...", "mean")


def global_mean(activation: Float[Tensor, "batch pos ..."]) -> Float[Tensor, "1 1 ..."]:
    """Mean over the batch and position."""
    return reduce(activation, "batch pos ... -> 1 1 ...", "mean")


def mean_by_distance(
    activation: Float[Tensor, "batch head query_pos key_pos"], permitted: Bool[Tensor, "query_pos key_pos"]
) -> Float[Tensor, "1 head query_pos key_pos"]:
    """Each permitted entry replaced by the mean over all permitted entries at its distance; the others stay."""
    position = torch.arange(activation.shape[-1], device=activation.device)
    distance = position[:, None] - position[None, :] + len(position) - 1  # [query_pos key_pos], not negative
    entries = reduce(activation, "batch head query_pos key_pos -> head query_pos key_pos", "mean")
    flat_distance = distance[permitted]
    counts = torch.bincount(flat_distance, minlength=2 * len(position) - 1)
    sums = entries.new_zeros(entries.shape[0], len(counts)).index_add(1, flat_distance, entries[:, permitted])
    return torch.where(permitted, (sums / counts.clamp_min(1))[:, distance], entries)[None]


def mean_of(
    name: str, activation: Float[Tensor, "batch ..."], kind: Kind, permitted: Bool[Tensor, "query_pos key_pos"]
) -> Float[Tensor, "1 ..."]:
    """The mean of one hook point's activation, of the kind asked for, with the axes left to broadcast."""
    if kind == "per_position_mean":
        return per_position_mean(activation)
    if name.endswith("hook_attn_scores"):
        return mean_by_distance(activation, permitted)
    if name.endswith("hook_pattern"):
        by_distance = mean_by_distance(activation, permitted)
        return by_distance / by_distance.sum(dim=-1, keepdim=True)
    return global_mean(activation)


@torch.no_grad()
def ablated_losses(
    model: NoPosTransformer,
    tokens: Int[Tensor, "batch pos"],
    *,
    mean_tokens: Int[Tensor, "batch pos"],
    kind: Kind,
    hook_points: Sequence[str],
) -> dict[str, float]:
    """Loss in nats for each hook point when its activation is replaced by its mean.

    Args:
        tokens: what the loss is measured on.
        mean_tokens: what the means are taken over: others, so that no mean has seen the tokens it replaces.
    """
    _, cache = model.run_with_cache(mean_tokens, names_filter=list(hook_points))
    pos = mean_tokens.shape[-1]
    permitted = permitted_keys(model.config, pos)
    means = {name: mean_of(name, cache[name], kind, permitted) for name in hook_points}
    return {name: loss_with(model, tokens, name, _constant(mean)) for name, mean in means.items()}


def kendall_tau(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Kendall's tau-b of two rankings of the same names: 1 when they agree, -1 when one is the other reversed."""
    names = list(first)
    order = [torch.tensor([ranking[name] for name in names], dtype=torch.float64) for ranking in (first, second)]
    a, b = ((values[:, None] - values[None, :]).sign() for values in order)
    return ((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()).item()


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda activation: value
