"""How the previous token is got out of a blend that holds more of the current one.

What layer 1 writes of each token, what MLP 0 wrote of the current one in advance, and which neurons of MLP 1 answer.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from nopos.analysis.attention import mean_weight_by_offset
from nopos.analysis.attribution import unembedding
from nopos.analysis.circuits import ov_circuit
from nopos.analysis.codes import RESIDUAL
from nopos.analysis.embedding import mean_by_token
from nopos.analysis.metrics import logit_difference
from nopos.analysis.reading import Tokens, activation, activations, require_as_many, require_count, require_one_of
from nopos.analysis.replacement import Edit, Effect, activation_with, effect_of, logits_with
from nopos.data import targets
from nopos.model import NoPosTransformer

NEURONS_1 = "blocks.1.mlp.hook_post"
READ_BY_MLP_1, READ_BY_UNEMBEDDING = "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"
Reader = Literal["MLP 1", "unembedding", "both"]
Whom = Literal["right", "wrong"]
Contributions = Float[Tensor, "batch predicted neuron"]


@torch.no_grad()
def written_per_weight(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, twin: NoPosTransformer, offsets: int
) -> Float[Tensor, " offset"]:
    """How much of the OV circuit's difference of two tokens layer 1 writes, over its mean weight on their slot.

    At one query of each sequence, for the own slot and each before it: the slot's residual after layer 0 is replaced by
    that with another token in it. No other slot is changed, so what layer 0 spreads of a token stays. The number is the
    slope of the change on that of the OV circuit; it is the same for all offsets where layer 1 writes each token by its
    weight.

    Args:
        other_tokens: as many as `tokens`; they give the tokens that are put in, and what layer 1 reads of each token.
        twin: the folded model, for the OV circuit.
        offsets: how many, from 0 on.
    """
    require_as_many(other_tokens, tokens)
    require_count("offsets", offsets, at_most=tokens.shape[-1] - 1)
    reading = mean_by_token(twin, other_tokens, hook_point="blocks.1.ln1.hook_normalized")
    circuit = ov_circuit(twin, layer=1, reading=reading).sum(dim=0).float()  # [token d_model]
    weight = mean_weight_by_offset(model, tokens, layer=1)
    tiny, row = torch.finfo(torch.float32).eps, torch.arange(len(tokens))
    query = offsets + row % (tokens.shape[-1] - offsets)
    written, residual = activation(model, tokens, "blocks.1.hook_attn_out"), activation(model, tokens, RESIDUAL)

    def slope(offset: int) -> Tensor:
        slot = query - offset
        swapped, patched = tokens.clone(), residual.clone()
        swapped[row, slot] = other_tokens[row, slot]
        patched[row, slot] = activation(model, swapped, RESIDUAL)[row, slot]
        after = activation_with(model, tokens, "blocks.1.hook_attn_out", {RESIDUAL: lambda _: patched})
        change, by = (after - written)[row, query], circuit[swapped[row, slot]] - circuit[tokens[row, slot]]
        return (change * by).sum() / by.pow(2).sum().clamp_min(tiny)

    return torch.stack([slope(offset) / weight[offset].clamp_min(tiny) for offset in range(offsets)])


@torch.no_grad()
def written_of_tokens(model: NoPosTransformer, tokens: Tokens) -> Float[Tensor, "d_vocab d_model"]:
    """What MLP 0 writes of each token: its mean over the slots that hold it, less the mean of these over all but BOS.

    Zero for a token that no slot holds.
    """
    by_token = mean_by_token(model, tokens, hook_point="blocks.0.hook_mlp_out")
    seen = tokens.unique()
    written = torch.zeros_like(by_token)
    written[seen] = by_token[seen] - by_token[seen[seen > 0]].mean(dim=0)
    return written


@torch.no_grad()
def current_token_wins(
    model: NoPosTransformer, tokens: Tokens, *, other_tokens: Tokens, reader: Reader, own: bool
) -> float:
    """Share of slots whose current token's logit beats the previous one's without what MLP 0 wrote of a token.

    Slots where the two are one token are left out.

    Args:
        other_tokens: what MLP 0 writes of a token is taken over them.
        reader: who misses it.
        own: take out what was written of the slot's own token, or of that in another sequence's slot.
    """
    require_one_of("reader", reader, get_args(Reader))
    taken = written_of_tokens(model, other_tokens)[tokens if own else tokens.roll(1, dims=0)]

    def take(residual: Tensor) -> Tensor:
        return residual - taken

    edits: dict[Reader, dict[str, Edit]] = {
        "MLP 1": {READ_BY_MLP_1: take, READ_BY_UNEMBEDDING: lambda residual: residual + taken},
        "unembedding": {READ_BY_UNEMBEDDING: take},
        "both": {READ_BY_MLP_1: take},  # the unembedding reads the same stream
    }
    lead = logit_difference(logits_with(model, tokens, edits[reader]), tokens)
    return (lead < 0)[tokens[:, 1:] != tokens[:, :-1]].float().mean().item()


@torch.no_grad()
def contributions(
    model: NoPosTransformer, tokens: Tokens, wanted: Int[Tensor, "batch predicted"] | None = None
) -> Contributions:
    """What each neuron of MLP 1 adds to a token's logit at each slot from 1 on, over what it adds to the mean logit.

    Args:
        wanted: whose logit; by default the previous token's.
    """
    wanted = targets(tokens) if wanted is None else wanted
    read = activations(model, tokens, [NEURONS_1, "ln_final.hook_scale"])
    W_U, _ = unembedding(model)
    W_out = model.block(1).mlp.W_out
    to_logits = einsum(
        W_out - W_out.mean(dim=-1, keepdim=True),
        W_U - W_U.mean(dim=-1, keepdim=True),
        "neuron d_model, d_model d_vocab -> neuron d_vocab",
    )
    active = read[NEURONS_1][:, 1:] / read["ln_final.hook_scale"][:, 1:]
    return active * rearrange(to_logits[:, wanted], "neuron batch predicted -> batch predicted neuron")


def neurons_for_half(added: Float[Tensor, "*answer neuron"]) -> Float[Tensor, "*answer"]:
    """How many neurons, those that add the most first, add half of what all do that add anything."""
    positive = added.clamp_min(0)
    largest_first = positive.sort(dim=-1, descending=True).values.cumsum(dim=-1)
    return 1 + (largest_first < positive.sum(dim=-1, keepdim=True) / 2).sum(dim=-1).to(added)


@torch.no_grad()
def effect_of_silencing_neurons(model: NoPosTransformer, tokens: Tokens, *, count: int, whom: Whom) -> Effect:
    """Effect of silencing, at each slot from 1 on, the neurons of MLP 1 that add the most to a token's logit there.

    Args:
        count: how many a slot.
        whom: the right answer's, or that of another sequence at the same slot, whose neurons are as large.
    """
    require_one_of("whom", whom, get_args(Whom))
    require_count("count", count, at_most=model.config.d_mlp)
    chosen = contributions(model, tokens, targets(tokens, shuffled=whom == "wrong")).topk(count, dim=-1).indices
    silent = torch.zeros(*tokens.shape, model.config.d_mlp, dtype=torch.bool)
    silent[:, 1:] = silent[:, 1:].scatter(-1, chosen, value=True)
    return effect_of(model, tokens, NEURONS_1, lambda post: post.masked_fill(silent, 0.0))
