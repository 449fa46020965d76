"""How the previous token is got out of a blend that holds more of the current one.

What layer 1 writes of each token, what MLP 0 wrote of the current one in advance, and which neurons of MLP 1 answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from nopos.errors import AnalysisError, require_one_of
from nopos.methods.activation_patching import response_to_swapped_token, swap_tokens
from nopos.methods.activations import OtherTokens, Tokens, activation, require_count
from nopos.methods.attention import mean_weight_by_offset
from nopos.methods.circuits import copying_rank, full_ov_circuit, mean_reading, ov_circuit, ov_into_neurons
from nopos.methods.embedding import mean_by_token
from nopos.methods.interventions import Edit, activation_with, logits_with
from nopos.methods.metrics import logit_difference
from nopos.methods.statistics import correlation, slope
from nopos.model.config import BOS
from nopos.model.hook_points import EMBED, hook_point
from nopos.model.transformer import NoPosTransformer

Reader = Literal["MLP 1", "unembedding", "both"]
IN_ADVANCE = (EMBED, hook_point(0, "mlp_out"))
"""What writes of the current token before layer 1's attention adds it."""


def copying_share(folded: NoPosTransformer, other_tokens: OtherTokens, *, layer: int = 1) -> float:
    """Share of other logits that a token's own beats in a layer's full OV circuit, fed with what the layer reads.

    What every token adds alike to a logit is left out: it says nothing of which was attended to. So is BOS, which is
    never at two positions.
    """
    reading = mean_reading(folded, other_tokens, layer=layer)
    circuit = full_ov_circuit(folded, layer=layer, reading=reading)[:, BOS + 1 :, BOS + 1 :]
    return copying_rank(circuit - circuit.mean(dim=1, keepdim=True))


def neuron_response_correlation(
    folded: NoPosTransformer, tokens: Tokens, other_tokens: OtherTokens, *, offset: int, layer: int = 1
) -> float:
    """Correlation, over swaps of the token `offset` back and over neurons, of what the OV circuit predicts of a layer's
    neurons with how they respond, each neuron in units of its own response.
    """
    swaps = response_to_swapped_token(folded, tokens, other_tokens=other_tokens, layer=layer, offset=offset)
    reading = mean_reading(folded, other_tokens, layer=layer)
    circuit = ov_into_neurons(folded, layer=layer, reading=reading).sum(dim=0)  # [token neuron]
    unit = swaps.response.pow(2).mean(dim=0).sqrt().clamp_min(torch.finfo(swaps.response.dtype).tiny)  # [neuron]
    return correlation((circuit[swaps.after] - circuit[swaps.before]) / unit, swaps.response / unit)


@torch.no_grad()
def written_per_weight(
    model: NoPosTransformer,
    tokens: Tokens,
    *,
    other_tokens: OtherTokens,
    folded: NoPosTransformer,
    offsets: int,
    layer: int = 1,
) -> Float[Tensor, " offset"]:
    """How much of the OV circuit's difference of two tokens a layer writes, over its mean weight on their position.

    At one query of each sequence, for the own position and each before it: the residual that enters the layer there is
    patched with that of another token. No other position is changed, so what earlier layers spread of a token stays.
    The number is the slope of the change on that of the OV circuit; it is the same for all offsets where the layer
    writes each token by its weight.

    Args:
        other_tokens: as many as `tokens`; they give the tokens that are put in, and what the layer reads of each token.
        folded: the folded model, for the OV circuit.
        offsets: how many, from 0 on.
    """
    require_count("offsets", offsets, at_most=tokens.shape[-1] - 1)
    entering, leaving = hook_point(layer, "resid_pre"), hook_point(layer, "attn_out")
    reading = mean_reading(folded, other_tokens, layer=layer)
    circuit = ov_circuit(folded, layer=layer, reading=reading).sum(dim=0).float()  # [token d_model]
    weight = mean_weight_by_offset(model, tokens, layer=layer)
    row = torch.arange(len(tokens))
    query = offsets + row % (tokens.shape[-1] - offsets)
    written, residual = activation(model, tokens, leaving), activation(model, tokens, entering)

    def written_at(offset: int) -> float:
        position = query - offset
        swapped, patched = swap_tokens(tokens, other_tokens, position), residual.clone()
        patched[row, position] = activation(model, swapped, entering)[row, position]
        after = activation_with(model, tokens, leaving, {entering: lambda _: patched})
        before_and_after = tokens[row, position], swapped[row, position]
        of_before, of_after = (circuit[token] for token in before_and_after)
        return slope((after - written)[row, query], on=of_after - of_before)

    slopes = torch.tensor([written_at(offset) for offset in range(offsets)])
    return slopes / weight[:offsets].clamp_min(torch.finfo(weight.dtype).eps)


@torch.no_grad()
def written_of_tokens(
    model: NoPosTransformer, tokens: Tokens, *, components: Sequence[str] = IN_ADVANCE
) -> Float[Tensor, "d_vocab d_model"]:
    """What some components write of each token: their mean over the positions that hold it, less the mean of these over
    all but BOS.

    Zero for a token that is nowhere.
    """
    by_token = torch.stack([mean_by_token(model, tokens, hook_point=name) for name in components]).sum(dim=0)
    seen = tokens.unique()
    written = torch.zeros_like(by_token)
    written[seen] = by_token[seen] - by_token[seen[seen > BOS]].mean(dim=0)
    return written


@torch.no_grad()
def current_token_wins(
    model: NoPosTransformer,
    tokens: Tokens,
    *,
    other_tokens: OtherTokens,
    reader: Reader,
    own: bool,
    components: tuple[str, ...] = IN_ADVANCE,
    target_offset: int = 1,
) -> float:
    """Share of positions whose current token's logit beats the right one's without what was written of a token before
    layer 1.

    Positions where the two are one token are left out.

    Args:
        other_tokens: what is written of a token is taken over them.
        reader: which later part goes without it.
        own: take out what was written of the position's own token, or of that at another sequence's position.
        components: by which.
    """
    require_one_of("reader", reader, get_args(Reader), error=AnalysisError)
    taken = written_of_tokens(model, other_tokens, components=components)[tokens if own else tokens.roll(1, dims=0)]
    read_by_mlp, read_by_unembedding = hook_point(1, "resid_mid"), hook_point(1, "resid_post")

    def take(residual: Tensor) -> Tensor:
        return residual - taken

    edits: dict[Reader, dict[str, Edit]] = {
        "MLP 1": {read_by_mlp: take, read_by_unembedding: lambda residual: residual + taken},
        "unembedding": {read_by_unembedding: take},
        "both": {read_by_mlp: take},  # the unembedding reads the same stream
    }
    logits = logits_with(model, tokens, edits[reader])
    lead = logit_difference(logits, tokens, target_offset=target_offset)
    return (lead < 0)[tokens[:, target_offset:] != tokens[:, :-target_offset]].float().mean().item()
