"""Random sequences whose end repeats what stands just before it, and what can be changed in them.

A sequence of `n_ctx` tokens with the period p ends with two copies of the same p tokens. All tokens before the second
copy are different, so each token of the second copy has stood at exactly one earlier position, p positions back.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

N_CTX, D_VOCAB = 48, 64
"""Tokens in a sequence, and kinds of token."""
PERIODS = range(8, 25)
"""Of the sequences that a model learns from and is judged on; two copies of the longest fill a sequence."""
ONE_PERIOD = range(16, 17)
"""The special case that a fixed lag solves."""


def repeats(
    n_sequences: int, periods: range, generator: torch.Generator
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
    """Sequences and the period of each."""
    drawn = torch.randint(periods.start, periods.stop, (n_sequences,), generator=generator)
    distinct = _distinct(n_sequences, generator)
    pos = torch.arange(N_CTX)
    return distinct.gather(1, pos - _column(drawn) * _in_second_copy(distinct, drawn)), drawn


def has_answer(tokens: Int[Tensor, "batch pos"], periods: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
    """Whether the token at a position has stood before, and has a successor: all of the second copy but its last."""
    answered = _in_second_copy(tokens, periods)
    answered[:, -1] = False
    return answered


def answer_pos(tokens: Int[Tensor, "batch pos"], periods: Int[Tensor, " batch"]) -> Int[Tensor, "batch pos"]:
    """For a query at each position that has an answer, the position after its token's previous occurrence."""
    return (torch.arange(1, tokens.shape[1] + 1) - _column(periods)).clamp(min=0)


def with_copy_of_another(
    tokens: Int[Tensor, "batch pos"], periods: Int[Tensor, " batch"], generator: torch.Generator
) -> Int[Tensor, "batch pos"]:
    """The sequences with a second copy that is another sequence's: nothing in a sequence tells how it goes on."""
    other = _distinct(len(tokens), generator)[:, : tokens.shape[1]]
    return torch.where(_in_second_copy(tokens, periods), other, tokens)


def rotation(tokens: Int[Tensor, "batch pos"], periods: Int[Tensor, " batch"]) -> Int[Tensor, "batch pos"]:
    """For each position, the one whose content it gets when the first copy is rotated by half its length."""
    pos, period = torch.arange(tokens.shape[1]), _column(periods)
    start = tokens.shape[1] - 2 * period
    turned = start + (pos - start + period // 2) % period
    return torch.where((pos >= start) & (pos < start + period), turned, pos)


def keeps_its_successor(tokens: Int[Tensor, "batch pos"], periods: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
    """Which answers are still the same when the first copy is rotated: all but that of the token that ends it then."""
    in_copy = torch.arange(tokens.shape[1]) - (tokens.shape[1] - _column(periods))
    return has_answer(tokens, periods) & (in_copy != _column(periods) // 2 - 1)


def _distinct(n_sequences: int, generator: torch.Generator) -> Int[Tensor, "batch pos"]:
    """Sequences that hold no token twice."""
    return torch.rand(n_sequences, D_VOCAB, generator=generator).argsort(dim=1)[:, :N_CTX]


def _in_second_copy(tokens: Int[Tensor, "batch pos"], periods: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
    return torch.arange(tokens.shape[1]) >= tokens.shape[1] - _column(periods)


def _column(periods: Int[Tensor, " batch"]) -> Int[Tensor, "batch 1"]:
    return rearrange(periods, "batch -> batch 1")
