"""What is known without training: provable floors of the loss, and weights written by hand.

The floors are exact expectations in nats per predicted position, for the notebook's task: position 0 is BOS, the others
are uniform over d_vocab - 1 tokens, and positions 1 to n_ctx - 1 predict the token before them.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

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
    p = 1 / values
    terms = (math.comb(draws, n) * p**n * (1 - p) ** (draws - n) * n * math.log(n) for n in range(2, draws + 1))
    return sum(terms, start=0.0)


RELAY_CONFIG = ModelConfig(d_model=128, d_head=32, positions="learned")


def relay_parameters() -> dict[str, Float[Tensor, ...]]:
    """Weights by hand that solve the task with positions, by another route than the no-position model's.

    The residual stream has four blocks of 32: token code, previous token's code, output code, position code. Layer 0
    looks one position back by its code and copies the token code into the second block; layer 1 looks at its own
    position and hands the second block on to the third, from which the unembedding reads. The MLPs write nothing. Token
    codes have mean zero and all codes norm one, so LayerNorm does little but scale.
    """
    block = RELAY_CONFIG.d_model // 4
    token, previous, output, position = (slice(i * block, (i + 1) * block) for i in range(4))
    p = {
        name: torch.ones(shape) if name.endswith(".w") else torch.zeros(shape)
        for name, shape in parameter_shapes(RELAY_CONFIG).items()
    }
    codes = _unit_codes(RELAY_CONFIG.d_vocab, block)
    angles = torch.arange(RELAY_CONFIG.n_ctx)[:, None] * torch.linspace(0.1, 3.0, block // 2)  # [pos frequency]
    p["embed.W_E"][:, token] = codes
    p["pos_embed.W_pos"][:, position] = _waves(angles)
    sharpness = 300.0
    for layer, offset in ((0, 1), (1, 0)):
        attention = f"blocks.{layer}.attn"
        p[f"{attention}.W_Q"][0, position] = sharpness * _turn(offset, block)
        p[f"{attention}.W_K"][0, position] = torch.eye(block)
        p[f"{attention}.W_V"][0, token if layer == 0 else previous] = torch.eye(block)
        p[f"{attention}.W_O"][0, :, previous if layer == 0 else output] = torch.eye(block)
    p["unembed.W_U"][output] = 5.0 * codes.T
    return p


def _unit_codes(count: int, width: int) -> Float[Tensor, "count width"]:
    rng = torch.Generator().manual_seed(0)
    codes = torch.randn(count, width, generator=rng)
    codes = codes - codes.mean(dim=-1, keepdim=True)
    return codes / codes.norm(dim=-1, keepdim=True)


def _waves(angles: Float[Tensor, "pos frequency"]) -> Float[Tensor, "pos wave"]:
    """Cosine and sine of each angle, as a unit vector. Its mean is not exactly zero; scores do not depend on that."""
    pairs = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return rearrange(pairs, "pos frequency part -> pos (frequency part)") / angles.shape[-1] ** 0.5


def _turn(offset: int, width: int) -> Float[Tensor, "wave turned"]:
    """The matrix that takes the wave of position i to that of position i - offset."""
    angles = -offset * torch.linspace(0.1, 3.0, width // 2)
    blocks = [torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) for a in angles.tolist()]
    return torch.block_diag(*blocks)
