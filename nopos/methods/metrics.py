"""Metrics beside the loss, which can stay where it was while every answer changes (causal scrubbing's pitfall)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nopos.model.data import surprise, targets

Logits = Float[Tensor, "batch pos d_vocab"]


@dataclass(frozen=True)
class Readout:
    """What one forward pass answers at each position with something to predict, in the forms that metrics compare."""

    log_probs: Float[Tensor, "batch predicted d_vocab"]
    largest: Int[Tensor, "batch predicted"]
    """The token with the largest logit."""
    loss: float
    """Mean over all of them, in nats."""
    logit_difference: float
    """Likewise; see `logit_difference`."""

    @cached_property
    def probs(self) -> Float[Tensor, "batch predicted d_vocab"]:
        """The answer's probabilities."""
        return self.log_probs.exp()


def readout(logits: Logits, tokens: Int[Tensor, "batch pos"], target_offset: int = 1) -> Readout:
    """What logits answer about the token `target_offset` positions back."""
    predicted = logits[:, target_offset:]
    log_probs = predicted.log_softmax(dim=-1)
    return Readout(
        log_probs=log_probs,
        largest=largest(predicted),
        loss=surprise(log_probs, targets(tokens, target_offset=target_offset)).mean().item(),
        logit_difference=logit_difference(logits, tokens, target_offset=target_offset).mean().item(),
    )


def largest(logits: Float[Tensor, "*batch d_vocab"]) -> Int[Tensor, "*batch"]:
    """The token with the largest logit, the first of several; by numpy, whose search takes a third of torch's time."""
    return torch.from_numpy(np.asarray(logits.detach().cpu().numpy().argmax(axis=-1))).to(logits.device)


def per_token_kl(before: Readout, after: Readout) -> Float[Tensor, "batch predicted"]:
    """KL divergence in nats of the answers `before` from those `after`, at each position with something to predict.

    It is 0 where the two agree, and otherwise positive whatever the loss does.
    """
    return (before.log_probs - after.log_probs).mul_(before.probs).sum(dim=-1)  # in place: a third of the time


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


def answers_changed(before: Readout, after: Readout) -> float:
    """Share of positions with something to predict whose largest logit is another token's: blind to how sure it is."""
    return (before.largest != after.largest).float().mean().item()
