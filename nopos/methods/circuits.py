"""QK and OV circuits over the vocabulary, from a folded model (notebook, step 6).

The notebook ignores LayerNorm and the biases, and shows layer 1's OV circuit through `W_in[0]` (slip 3). A folded model
has LayerNorm's weights and biases in its matrices; only its scale is left. Where there are no positions layer 0 reads
nothing but tokens, so that scale is known, and the QK circuit *is* the scores. In layer 1 the circuits are those of the
direct path from the embedding, up to a positive factor for each token, since the real scale depends on all that was
written since.
"""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from nopos.errors import AnalysisError
from nopos.methods.activations import OtherTokens
from nopos.methods.embedding import mean_by_token
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer

Reading = Float[Tensor, "token d_model"]
"""What a layer reads for each token."""


@torch.no_grad()
def normalized_embedding(folded: NoPosTransformer) -> Float[Tensor, "d_vocab d_model"]:
    """Each token as layer 0 reads it.

    Raises:
        AnalysisError: the model is not folded.
    """
    _require_folded(folded)
    every_token = folded.embed.W_E[None]  # [batch token d_model], as if the vocabulary were one sequence
    read: Tensor = folded.block(0).ln1(every_token)
    return read[0]


@torch.no_grad()
def mean_reading(
    folded: NoPosTransformer, other_tokens: OtherTokens, *, layer: int
) -> Float[Tensor, "d_vocab d_model"]:
    """What a layer's attention reads for each token, in the mean over the positions that hold it.

    Raises:
        AnalysisError: the model is not folded, or has no such layer.
    """
    _require_folded(folded)
    return mean_by_token(folded, other_tokens, hook_point=hook_point(layer, "ln1.normalized"))


@torch.no_grad()
def qk_circuit(folded: NoPosTransformer, *, layer: int) -> Float[Tensor, "head query_token key_token"]:
    """Scores between tokens, biases and division by sqrt(d_head) included: layer 0's own, or the direct path's."""
    attention, embedding = folded.block(layer).attn, normalized_embedding(folded)
    project = "token d_model, head d_model d_head -> head token d_head"
    q = einsum(embedding, attention.W_Q, project) + attention.b_Q[:, None]
    k = einsum(embedding, attention.W_K, project) + attention.b_K[:, None]
    scores = einsum(q, k, "head query_token d_head, head key_token d_head -> head query_token key_token")
    return scores / attention.scale


@torch.no_grad()
def ov_circuit(
    folded: NoPosTransformer, *, layer: int, reading: Reading | None = None
) -> Float[Tensor, "head token d_model"]:
    """What attending to each token writes to the residual stream.

    Args:
        reading: what the layer reads for each token; by default the direct path, `normalized_embedding`.
    """
    _require_folded(folded)
    attention = folded.block(layer).attn
    return einsum(
        normalized_embedding(folded) if reading is None else reading,
        attention.W_V,
        attention.W_O,
        "token d_in, head d_in d_head, head d_head d_model -> head token d_model",
    )


@torch.no_grad()
def ov_into_neurons(
    folded: NoPosTransformer, *, layer: int, reading: Reading | None = None, mlp_layer: int | None = None
) -> Float[Tensor, "head token neuron"]:
    """What attending to each token adds to the neurons of the same layer's MLP, up to LayerNorm's scale.

    `mlp_layer` names another layer's MLP. The notebook shows layer 1's attention through layer 0's MLP, which layer 1
    does not feed.
    """
    reader = folded.block(layer if mlp_layer is None else mlp_layer).mlp
    written = ov_circuit(folded, layer=layer, reading=reading)
    return einsum(written, reader.W_in, "head token d_model, d_model neuron -> head token neuron")


def neuron_lines(
    circuit: Float[Tensor, "head token neuron"], *, rng: torch.Generator, count: int = 5
) -> tuple[Int[Tensor, " line"], Float[Tensor, "head token line"]]:
    """Some neurons drawn from the generator, and their columns of `ov_into_neurons`, as the notebook plots them."""
    neurons = torch.randperm(circuit.shape[-1], generator=rng)[:count]
    return neurons, circuit[..., neurons]


@torch.no_grad()
def full_ov_circuit(
    folded: NoPosTransformer, *, layer: int, reading: Reading | None = None
) -> Float[Tensor, "head token d_vocab"]:
    """What attending to each token adds to the logits directly, up to LayerNorm's scale, over their mean."""
    logits = einsum(
        ov_circuit(folded, layer=layer, reading=reading),
        folded.unembed.W_U,
        "head token d_model, d_model d_vocab -> head token d_vocab",
    )
    return logits - logits.mean(dim=-1, keepdim=True)


def copying_rank(circuit: Float[Tensor, "head token d_vocab"]) -> float:
    """Share of logits that a token's own beats in its row of `full_ov_circuit`: 1 when every head copies every token.

    It is one half in the mean when the circuit knows nothing of tokens.
    """
    own = circuit.diagonal(dim1=-2, dim2=-1)[..., None]
    return ((own > circuit).sum(dim=-1) / (circuit.shape[-1] - 1)).mean().item()


def _require_folded(model: NoPosTransformer) -> None:
    if model.config.normalization != "LNPre":
        raise AnalysisError("circuits are read off a folded model; this one has LayerNorms with weights: fold it first")
