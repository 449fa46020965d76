"""Metrics of answers that do not change with how sure a model is of them.

The loss can stay where it was while every answer changes, and a mean over all positions hides what happens at the
first ones. So a claim asks for the share of answers that change, and for the tenth of the positions with the most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nopos.errors import AnalysisError
from nopos.model.data import targets

Logits = Float[Tensor, "batch pos d_vocab"]
TENTHS = 10


@dataclass(frozen=True)
class Readout:
    """What one forward pass answers at each position with something to predict."""

    logits: Float[Tensor, "batch predicted d_vocab"]
    """Less their mean over the vocabulary, which no answer depends on."""
    largest: Int[Tensor, "batch predicted"]
    """The token with the largest logit."""
    right: Bool[Tensor, "batch predicted"]
    """Where that is the token to predict."""


def readout(logits: Logits, tokens: Int[Tensor, "batch pos"], target_offset: int = 1) -> Readout:
    """What logits answer about the token `target_offset` positions back."""
    predicted = logits[:, target_offset:]
    answers = largest(predicted)
    right = answers == targets(tokens, target_offset=target_offset)
    return Readout(predicted - predicted.mean(dim=-1, keepdim=True), answers, right)


def largest(logits: Float[Tensor, "*batch d_vocab"]) -> Int[Tensor, "*batch"]:
    """The token with the largest logit, the first of several; by numpy, whose search takes a third of torch's time."""
    return torch.from_numpy(np.asarray(logits.detach().cpu().numpy().argmax(axis=-1))).to(logits.device)


def logits_changed(before: Readout, after: Readout) -> float:
    """Root mean square of the change of logits, over that of the logits themselves: 0 where they are the same, about
    1.4 where they have nothing to do with each other.
    """
    there = before.logits.pow(2).sum()
    return ((after.logits - before.logits).pow(2).sum() / there).sqrt().item() if there > 0 else 0.0


def logit_difference(
    logits: Logits, tokens: Int[Tensor, "batch pos"], *, target_offset: int = 1
) -> Float[Tensor, "batch predicted"]:
    """The logit of the token to predict less the current token's, at each position with something to predict.

    The current token is what the right answer has to win against: it is what layer 1 attends to most.
    """
    answers = logits[:, target_offset:]
    wanted, current = tokens[:, : tokens.shape[-1] - target_offset], tokens[:, target_offset:]
    of_wanted, of_current = (answers.gather(-1, which[..., None])[..., 0] for which in (wanted, current))
    return of_wanted - of_current


def lead(
    logits: Logits, tokens: Int[Tensor, "batch pos"], *, target_offset: int = 1
) -> Float[Tensor, "batch predicted"]:
    """By how much the logit of the token to predict exceeds the largest other; negative where the answer is wrong."""
    wanted = targets(tokens, target_offset=target_offset)[..., None]
    predicted = logits[:, target_offset:]
    others = predicted.scatter(-1, wanted, -torch.inf)
    return predicted.gather(-1, wanted)[..., 0] - others.amax(dim=-1)


def by_tenth(by_position: Float[Tensor, " predicted"], *, pos: int) -> Float[Tensor, " tenth"]:
    """Means over each tenth of a context; the first is of fewer positions, since some have nothing to predict.

    Args:
        by_position: at the last positions of the context.
        pos: how many positions the context has.

    Raises:
        AnalysisError: a tenth has no position.
    """
    first = pos - len(by_position)
    if pos <= TENTHS * first:
        raise AnalysisError(f"sequences have {pos} positions; for tenths of them it must be over {TENTHS * first}")
    tenth = TENTHS * torch.arange(first, pos) // pos
    sums = torch.zeros(TENTHS, dtype=by_position.dtype).index_add(0, tenth, by_position)
    return sums / tenth.bincount(minlength=TENTHS)
