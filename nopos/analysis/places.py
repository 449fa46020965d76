"""The place that layer 1 takes a slot for, and what moves it.

Layer 1 finds a slot by the score of its key. One query, the mean over late slots, is asked of every key; the slot whose
mean score comes nearest to a key's is the key's place. So a place is what layer 1 acts on, in slots, not what a probe
can read. Counts are driven by hand through layer 0's pattern, by the law of dilution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from nopos.analysis.attention import Scores
from nopos.analysis.counting import (
    COUNTER,
    VALUES,
    Whose,
    dilution_of_queries,
    erase_values,
    lawful_pattern,
    mean_value,
    median_dilution,
    true_counts,
)
from nopos.analysis.patching import SPACING, Answers, answers_at
from nopos.analysis.reading import Tokens, activations, require_slots
from nopos.analysis.replacement import NO_EDITS, Edit, activation_with, logits_with
from nopos.config import BOS
from nopos.errors import AnalysisError
from nopos.model import NoPosTransformer

LATE = 10
"""Queries from this slot on count as late: kernels of earlier ones are cut short by BOS."""
QUERIES, KEYS = "blocks.1.attn.hook_q", "blocks.1.attn.hook_k"


@dataclass(frozen=True)
class Places:
    """Places beside what an account of the model says they are."""

    said: Float[Tensor, "#batch slot"]
    found: Float[Tensor, "batch slot"]

    @property
    def error(self) -> float:
        """Root mean square of the difference over sequences and slots, in slots."""
        return (self.found - self.said).pow(2).mean().sqrt().item()


@dataclass(frozen=True)
class Ruler:
    """Which score of a key belongs to which place."""

    query: Float[Tensor, "head d_head"]
    """The mean over late slots."""
    marks: Float[Tensor, " slot"]
    """Mean score of each slot's key, from slot 1 on."""

    @torch.no_grad()
    def places(
        self, model: NoPosTransformer, tokens: Tokens, edits: Mapping[str, Edit] = NO_EDITS
    ) -> Float[Tensor, "batch pos"]:
        """The place of every slot after BOS, from 1 on; slot 0 is at place 0.

        Args:
            edits: what is replaced in the model while it reads, by hook point.
        """
        scores = _asked(activation_with(model, tokens, KEYS, edits), self.query)
        place = 1 + (scores[..., None] - self.marks).abs().argmin(dim=-1)
        place[:, 0] = 0
        return place.float()


@torch.no_grad()
def ruler(model: NoPosTransformer, tokens: Tokens) -> Ruler:
    """The ruler that a model's own queries and keys make.

    Raises:
        AnalysisError: no slot is late.
    """
    require_slots(tokens, LATE + 1)
    read = activations(model, tokens, [QUERIES, KEYS])
    query = read[QUERIES][:, LATE:].mean(dim=(0, 1))
    return Ruler(query, _asked(read[KEYS], query).mean(dim=0)[1:])


def places_after_a_second_bos(model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, slot: int) -> Places:
    """Put BOS into a slot and see where the later ones are.

    With two BOS the law's 2a/(2a+i-1) is a/(a+n) for a count n of (i-1)/2.

    Args:
        other_tokens: they make the ruler, here and below.

    Raises:
        AnalysisError: the slot is BOS's own, or no slot follows it.
    """
    _require_slot_to_change(slot, tokens)
    with_two = tokens.clone()
    with_two[:, slot] = BOS
    found = ruler(model, other_tokens).places(model, with_two)
    return Places(said=(true_counts(tokens)[None, slot + 1 :] - 1) / 2, found=found[:, slot + 1 :])


def places_with_bos_weighed(model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, factor: float) -> Places:
    """Let BOS weigh a factor more in layer 0, by its scores, and see where the slots are.

    By the law f·a/(f·a+i) is a/(a+n) for a count n of i/f. Slots are asked whose count is one of a slot after BOS.

    Raises:
        AnalysisError: the factor is not above zero, or moves every count out of the sequence.
    """
    last = tokens.shape[-1] - 1
    if not 1 / last <= factor <= last:
        raise AnalysisError(f"factor is {factor:g}; in sequences of {last + 1} it is 1/{last} to {last}")

    def weigh(scores: Scores) -> Scores:
        return torch.cat([scores[..., :1] + math.log(factor), scores[..., 1:]], dim=-1)

    found = ruler(model, other_tokens).places(model, tokens, {"blocks.0.attn.hook_attn_scores": weigh})
    said = true_counts(tokens) / factor
    asked = (said >= 1) & (said <= last)
    return Places(said=said[None, asked], found=found[:, asked])


def places_with_the_key_of_bos_elsewhere(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, twin: NoPosTransformer, slot: int
) -> Places:
    """Let BOS and another slot exchange their keys in layer 0, and see where the slots are.

    The value of BOS then gets 1/(i+1) in slots before the other, 1/(a+i) from it on, which is a/(a+n) for a count n of
    a·i, of a·(a+i-1). A place cannot lie beyond the last.

    Args:
        twin: the folded model, from which each token's dilution comes.

    Raises:
        AnalysisError: the slot is BOS's own, or no slot follows it.
    """
    _require_slot_to_change(slot, tokens)
    a, i = dilution_of_queries(twin, tokens).mean(dim=1), true_counts(tokens)

    def exchange(k: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        exchanged = k.clone()
        exchanged[:, 0], exchanged[:, slot] = k[:, slot], k[:, 0]
        return exchanged

    found = ruler(model, other_tokens).places(model, tokens, {"blocks.0.attn.hook_k": exchange})
    said = torch.where(i < slot, a * i, a * (a + i - 1)).clamp_max(tokens.shape[-1] - 1)
    return Places(said=said[:, 1:], found=found[:, 1:])


def places_with_values_erased(model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, whose: Whose) -> Places:
    """Give BOS, or every other token, the others' mean value in layer 0, and see how far slots are from themselves."""
    edits = {VALUES: erase_values(mean_value(model, other_tokens), whose)}
    found = ruler(model, other_tokens).places(model, tokens, edits)
    return Places(said=true_counts(tokens)[None, 1:], found=found[:, 1:])


def places_of_faked_counts(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, twin: NoPosTransformer, counts: tuple[int, ...]
) -> Places:
    """Tell every slot the same count, and see where the late ones are: at that count's place, if layer 1 goes by it.

    Args:
        twin: the folded model, from which each token's dilution comes.
        counts: those that are told, one after the other.

    Raises:
        AnalysisError: there is none, or one is no slot's count.
    """
    last = tokens.shape[-1] - 1
    if not counts or not all(1 <= count <= last for count in counts):
        raise AnalysisError(f"counts are {counts}; they must be one or more, from 1 to {last}")
    a, by = dilution_of_queries(twin, tokens), ruler(model, other_tokens)

    def found(count: int) -> Tensor:
        pattern = lawful_pattern(a, torch.full((tokens.shape[-1],), float(count)))
        return by.places(model, tokens, {COUNTER: lambda _: pattern})[:, LATE:]

    told = [torch.full((1, last + 1 - LATE), float(count)) for count in counts]
    return Places(said=torch.cat(told, dim=-1), found=torch.cat([found(count) for count in counts], dim=-1))


def shift_by_dilution(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, twin: NoPosTransformer, one_for_all: bool
) -> float:
    """How far a slot's place is off for its token's dilution `a`, in terms of i(a/m - 1) with the median token's m.

    Later layers that know the token and take what they are told for a/(a+i) find the count i when that is what they are
    told, and i·a/m when they are told m/(m+i). Layers that know no token take it for m/(m+i): they find i·m/a and i. So
    the slope between the tokens of a slot is 0 and, told one for all, 1 for the former, about -1 and 0 for the latter.

    Args:
        twin: the folded model, from which the dilutions come.
        one_for_all: tell them the median token's.
    """
    require_slots(tokens, 2 * LATE + 1)
    slots = slice(LATE, -LATE)  # a place cannot lie beyond the last
    pattern = lawful_pattern(dilution_of_queries(twin, tokens, one_for_all=one_for_all), true_counts(tokens))
    found = ruler(model, other_tokens).places(model, tokens, {COUNTER: lambda _: pattern})[:, slots]
    relative = (dilution_of_queries(twin, tokens) / median_dilution(twin).float()[:, None]).mean(dim=1)[:, slots]
    misread = true_counts(tokens)[slots] * (relative - 1)
    moved, by = found - found.mean(dim=0), misread - misread.mean(dim=0)
    return ((moved * by).sum() / by.pow(2).sum().clamp_min(torch.finfo(by.dtype).tiny)).item()


def answers_to_exchanged_counts(
    model: NoPosTransformer, tokens: Tokens, *, twin: NoPosTransformer
) -> tuple[Answers, Answers]:
    """Let the slots 1 and 2 before each of many queries exchange their counts: the answers before and after.

    `near` is the previous token, `far` the one 2 back.

    Args:
        twin: the folded model, from which each token's dilution comes.
    """
    a, counts = dilution_of_queries(twin, tokens), true_counts(tokens)
    queries = torch.arange(3, tokens.shape[-1], SPACING)
    exchanged = counts.clone()
    exchanged[queries - 1], exchanged[queries - 2] = counts[queries - 2], counts[queries - 1]

    def answers(counts: Float[Tensor, " query_pos"]) -> Answers:
        pattern = lawful_pattern(a, counts)
        return answers_at(logits_with(model, tokens, {COUNTER: lambda _: pattern}), tokens, queries, (1, 2))

    return answers(counts), answers(exchanged)


def _asked(
    k: Float[Tensor, "batch pos head d_head"], query: Float[Tensor, "head d_head"]
) -> Float[Tensor, "batch pos"]:
    return einsum(k, query, "batch pos head d_head, head d_head -> batch pos")


def _require_slot_to_change(slot: int, tokens: Tokens) -> None:
    if not 1 <= slot < tokens.shape[-1] - 1:
        raise AnalysisError(f"slot is {slot}; in sequences of {tokens.shape[-1]} it is 1 to {tokens.shape[-1] - 2}")
