"""What is known without training: provable floors of the loss, and weights written by hand.

The floors are exact expectations in nats per predicted position, for the notebook's task: position 0 is BOS, the others
are uniform over d_vocab - 1 tokens, and positions 1 to n_ctx - 1 predict the token before them.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from nopos.errors import ConfigError
from nopos.model.config import ModelConfig
from nopos.model.parameters import parameter_shapes


def floor_without_tokens(config: ModelConfig) -> float:
    """No predictor that sees no earlier token can do better, even when it knows the position.

    Position 1's answer is always BOS and costs nothing; every other answer is uniform over d_vocab - 1 tokens.
    """
    predicted = config.n_ctx - 1
    return (predicted - 1) * math.log(config.d_vocab - 1) / predicted


def floor_without_causal_mask(config: ModelConfig) -> float:
    """No permutation-equivariant predictor can do better: it sees its own token and the multiset of all tokens.

    Positions are exchangeable to it, so the token before its own is equally likely to be any of the n_ctx - 1 other
    entries: the answer costs the entropy of a draw from them, BOS and n_ctx - 2 uniform tokens.
    """
    others = config.n_ctx - 1
    uniform = others - 1
    return math.log(others) - (config.d_vocab - 1) / others * _mean_n_log_n(uniform, config.d_vocab - 1)


def floor_of_one_causal_layer(config: ModelConfig) -> float:
    """No single causal attention layer without positions can do better, whatever follows it position by position.

    Position i sees its own token and the multiset of positions 0 to i. The token before it is equally likely to be any
    of the i - 1 entries that are neither BOS nor its own, so the answer costs the entropy of a draw from i - 1 uniform
    tokens.
    """
    predicted = config.n_ctx - 1
    total = sum(
        math.log(seen) - (config.d_vocab - 1) / seen * _mean_n_log_n(seen, config.d_vocab - 1)
        for seen in range(1, predicted)
    )
    return total / predicted


def _mean_n_log_n(draws: int, values: int) -> float:
    """E[n ln n] for n ~ Binomial(draws, 1 / values): how much repeats among uniform draws lower their entropy."""
    if values == 1:
        return draws * math.log(draws) if draws else 0.0
    log_p, log_q = -math.log(values), math.log1p(-1 / values)
    terms = (
        math.exp(_log_choose(draws, n) + n * log_p + (draws - n) * log_q) * n * math.log(n) for n in range(2, draws + 1)
    )
    return sum(terms, start=0.0)


def _log_choose(draws: int, n: int) -> float:
    """As logarithms: the number itself leaves the range of floats beyond a thousand draws."""
    return math.lgamma(draws + 1) - math.lgamma(n + 1) - math.lgamma(draws - n + 1)


SHARPNESS = 2e4
"""Nats by which the relay's attention prefers a position to another whose code is orthogonal to its own, about."""
LEAD = 12.0
"""Nats by which the relay's answer leads the token whose code is nearest to the right one's, about."""


def relay_config(sizes: ModelConfig) -> ModelConfig:
    """That of a relay of these sizes."""
    return replace(sizes, positions="learned", causal=True, normalization="LN")


def relay_parameters(config: ModelConfig) -> dict[str, Float[Tensor, ...]]:
    """Weights by hand that solve the task with positions, by another route than the no-position model's.

    The residual stream has four blocks of one width: token code, previous token's code, output code, position code;
    what is left of it is unused. Layer 0's first head looks one position back by its code and copies the token code
    into the second block; layer 1's looks at its own position and hands the second block on to the third, from which
    the unembedding reads. All else writes nothing. Token codes have mean zero and all codes norm one, so LayerNorm does
    little but scale.

    Args:
        config: of `relay_config`.

    Raises:
        ConfigError: there are too few layers or dimensions for it.
    """
    block = 4 * (min(config.d_model // 4, config.d_head) // 4)
    if config.n_layers < 2 or block < 4:
        sizes = f"{config.n_layers} layers, d_model {config.d_model} and d_head {config.d_head}"
        raise ConfigError(f"a relay has {sizes}; it needs 2 layers, d_model 16 and d_head 4 or more")
    token, previous, output, position = (slice(i * block, (i + 1) * block) for i in range(4))
    p = {
        name: torch.ones(shape) if name.endswith(".w") else torch.zeros(shape)
        for name, shape in parameter_shapes(config).items()
    }
    codes = _unit_codes(config.d_vocab, block)
    frequencies = _frequencies(config.n_ctx, block // 4)
    p["embed.W_E"][:, token] = codes
    p["pos_embed.W_pos"][:, position] = _waves(torch.arange(config.n_ctx)[:, None] * frequencies)
    sharpness = SHARPNESS * config.d_head**0.5 / config.d_model
    for layer, offset in ((0, 1), (1, 0)):
        attention = f"blocks.{layer}.attn"
        p[f"{attention}.W_Q"][0, position, :block] = sharpness * _turn(offset, frequencies)
        p[f"{attention}.W_K"][0, position, :block] = torch.eye(block)
        p[f"{attention}.W_V"][0, token if layer == 0 else previous, :block] = torch.eye(block)
        p[f"{attention}.W_O"][0, :block, previous if layer == 0 else output] = torch.eye(block)
    p["unembed.W_U"][output] = _gain(codes, config.d_model) * codes.T
    return p


def _unit_codes(count: int, width: int) -> Float[Tensor, "count width"]:
    rng = torch.Generator().manual_seed(0)
    codes = torch.randn(count, width, generator=rng)
    codes = codes - codes.mean(dim=-1, keepdim=True)
    return codes / codes.norm(dim=-1, keepdim=True)


def _gain(codes: Float[Tensor, "count width"], d_model: int) -> float:
    """By which the unembedding makes LEAD of the least difference of two codes, which have nearly all of the norm."""
    cosines = codes @ codes.T
    nearest = cosines.fill_diagonal_(-1.0).max().item()
    return LEAD / ((1 - nearest) * d_model**0.5)


def _frequencies(n_ctx: int, count: int) -> Float[Tensor, " frequency"]:
    """From half a turn over the whole context to nearly half a turn a position, so that no two positions look alike."""
    return math.pi * torch.tensor(n_ctx, dtype=torch.float32).reciprocal().pow(torch.linspace(1, 0.1, count))


def _waves(angles: Float[Tensor, "pos frequency"]) -> Float[Tensor, "pos wave"]:
    """Cosine and sine of each angle, and their negatives, so that the mean is zero: a unit vector."""
    parts = torch.stack([angles.cos(), angles.sin(), -angles.cos(), -angles.sin()], dim=-1)
    return rearrange(parts, "pos frequency part -> pos (frequency part)") / (2 * angles.shape[-1]) ** 0.5


def _turn(offset: int, frequencies: Float[Tensor, " frequency"]) -> Float[Tensor, "wave turned"]:
    """The matrix that takes the wave of position i to that of position i - offset."""
    turns = [(math.cos(angle), math.sin(angle)) for angle in (-offset * frequencies).tolist()]
    return torch.block_diag(*(torch.tensor([[c, s], [-s, c]]) for c, s in turns for _ in range(2)))
