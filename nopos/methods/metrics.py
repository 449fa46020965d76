"""Metrics beside the loss, which can stay where it was while every answer changes (causal scrubbing's pitfall)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

Logits = Float[Tensor, "batch pos d_vocab"]


def per_token_kl(before: Logits, after: Logits, *, target_offset: int = 1) -> Float[Tensor, "batch predicted"]:
    """KL divergence in nats of the answers `before` from those `after`, at each position with something to predict.

    It is 0 where the two agree, and otherwise positive whatever the loss does.
    """
    p, q = (logits[:, target_offset:].log_softmax(dim=-1) for logits in (before, after))
    return (p.exp() * (p - q)).sum(dim=-1)


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


def answers_changed(before: Logits, after: Logits, *, target_offset: int = 1) -> float:
    """Share of positions with something to predict whose largest logit is another token's: blind to how sure it is."""
    changed = before[:, target_offset:].argmax(dim=-1) != after[:, target_offset:].argmax(dim=-1)
    return changed.float().mean().item()
