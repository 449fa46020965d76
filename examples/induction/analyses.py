"""What is measured of a model: shares of its answers and of its attention, each between 0 and 1.

An analysis asks for `model`, `tokens` and `periods` by the names of its parameters; `subject.run` hands them to it.
To knock out attention is to set its scores to minus infinity before the softmax, so that the rest adds up to 1 again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from model import AttentionOnly
from nopos import NotMeasurableError
from sequences import answer_pos, has_answer, keeps_its_successor, rotation

Tokens = Int[Tensor, "batch pos"]
Periods = Int[Tensor, " batch"]


def answers_right(model: AttentionOnly, tokens: Tokens, periods: Periods) -> float:
    """Share of the answers that are the token which followed the previous occurrence of the query's token."""
    answered = has_answer(tokens, periods)
    return _share(_answers(model, tokens) == tokens.roll(-1, dims=1), answered)


def attention_back(model: AttentionOnly, tokens: Tokens, layer: int, distance: int) -> list[float]:
    """For each head of a layer, the mean of its attention to the token some positions back."""
    pattern = _pattern(model, tokens, layer)
    return pattern.diagonal(-distance, dim1=2, dim2=3).mean(dim=(0, 2)).tolist()


def answers_lost_by_distance(model: AttentionOnly, tokens: Tokens, periods: Periods, layer: int) -> dict[int, float]:
    """For each distance from 1: the share of right answers less what is left without a layer's attention there.

    All heads of the layer lose it at once: what one head no longer brings another could.
    """
    right, n_ctx = answers_right(model, tokens, periods), tokens.shape[1]
    lost = {}
    for distance in range(1, n_ctx):
        edges = torch.ones(n_ctx - distance, dtype=torch.bool).diag(-distance)
        with _knocked_out(model, layer, edges):
            lost[distance] = right - answers_right(model, tokens, periods)
    return lost


def answers_lost_without_head(model: AttentionOnly, tokens: Tokens, periods: Periods, layer: int, head: int) -> float:
    """The share of right answers less what is left when a head always writes the mean of what it writes."""

    def averaged(result: Float[Tensor, "batch head pos d_model"]) -> Float[Tensor, "batch head pos d_model"]:
        edited = result.clone()
        edited[:, head] = result[:, head].mean(dim=(0, 1))
        return edited

    with _edited(model.layer(layer).hook_result, averaged):
        left = answers_right(model, tokens, periods)
    return answers_right(model, tokens, periods) - left


def attention_to_answer(model: AttentionOnly, tokens: Tokens, periods: Periods) -> float:
    """Share of the last layer's attention, over its heads, that goes to the token after the previous occurrence.

    Raises:
        NotMeasurableError: there is one layer.
    """
    pattern = _pattern(model, tokens, _last_of_several(model))
    to_answer = _edges_to_answer(tokens, periods)
    n_queries = has_answer(tokens, periods).sum() * pattern.shape[1]
    return float(pattern.masked_fill(~to_answer, 0.0).sum() / n_queries)


def answers_lost_without_answer(model: AttentionOnly, tokens: Tokens, periods: Periods) -> float:
    """The share of right answers less what is left without the last layer's attention to the token that is right.

    Raises:
        NotMeasurableError: there is one layer.
    """
    with _knocked_out(model, _last_of_several(model), _edges_to_answer(tokens, periods)):
        left = answers_right(model, tokens, periods)
    return answers_right(model, tokens, periods) - left


def answers_by_content(model: AttentionOnly, tokens: Tokens, periods: Periods) -> float:
    """With the first copy rotated: share of the answers that are the token after the previous occurrence."""
    rotated = tokens.gather(1, rotation(tokens, periods))
    return _share(_answers(model, rotated) == tokens.roll(-1, dims=1), keeps_its_successor(tokens, periods))


def answers_by_lag(model: AttentionOnly, tokens: Tokens, periods: Periods) -> float:
    """With the first copy rotated: share of the answers that are the token at the lag of before."""
    rotated = tokens.gather(1, rotation(tokens, periods))
    at_lag = rotated.gather(1, answer_pos(tokens, periods))
    return _share(_answers(model, rotated) == at_lag, keeps_its_successor(tokens, periods))


def answers_by_key(model: AttentionOnly, tokens: Tokens, periods: Periods) -> float:
    """With the last layer's keys rotated: share of the answers that are the token to which the right key was moved.

    The keys' positions stay, and so do values and queries: what is patched is the residual stream that keys are made
    of, with that of another position of the first copy.

    Raises:
        NotMeasurableError: there is one layer.
    """
    moved = rotation(tokens, periods)

    def patched(residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return residual.gather(1, repeat(moved, "batch pos -> batch pos d_model", d_model=residual.shape[2]))

    with _edited(model.layer(_last_of_several(model)).hook_key_input, patched):
        answers = _answers(model, tokens)
    moved_to = moved.argsort(dim=1).gather(1, answer_pos(tokens, periods))
    return _share(answers == tokens.gather(1, moved_to), has_answer(tokens, periods))


@torch.no_grad()
def _answers(model: AttentionOnly, tokens: Tokens) -> Tokens:
    answers: Tokens = model(tokens).argmax(dim=-1)
    return answers


def _share(right: Bool[Tensor, "batch pos"], of: Bool[Tensor, "batch pos"]) -> float:
    return float(right[of].double().mean())


def _last_of_several(model: AttentionOnly) -> int:
    if len(model.layers) < 2:
        raise NotMeasurableError("has one layer; an answer is looked for in a layer that reads another one's output")
    return len(model.layers) - 1


def _edges_to_answer(tokens: Tokens, periods: Periods) -> Bool[Tensor, "batch 1 query_pos key_pos"]:
    """From each query that has an answer to the position after the previous occurrence of its token."""
    is_key = nn.functional.one_hot(answer_pos(tokens, periods), tokens.shape[1]).bool()
    edges = is_key & rearrange(has_answer(tokens, periods), "batch query_pos -> batch query_pos 1")
    return rearrange(edges, "batch query_pos key_pos -> batch 1 query_pos key_pos")


@torch.no_grad()
def _pattern(model: AttentionOnly, tokens: Tokens, layer: int) -> Float[Tensor, "batch head query_pos key_pos"]:
    seen: list[Tensor] = []

    def keep(pattern: Tensor) -> Tensor:
        seen.append(pattern)
        return pattern

    with _edited(model.layer(layer).hook_pattern, keep):
        model(tokens)
    return seen[0]


@contextmanager
def _knocked_out(model: AttentionOnly, layer: int, edges: Bool[Tensor, "*batch query_pos key_pos"]) -> Iterator[None]:
    with _edited(model.layer(layer).hook_scores, lambda scores: scores.masked_fill(edges, -torch.inf)):
        yield


@contextmanager
def _edited(place: nn.Module, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block what passes a place of the model is edited."""
    handle = place.register_forward_hook(lambda module, given, output: edit(output))
    try:
        yield
    finally:
        handle.remove()
