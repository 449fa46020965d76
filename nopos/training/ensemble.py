"""Many models at once on a leading `model` axis: logits, losses and gradients. One model is the case of one.

It computes what `NoPosTransformer` computes, shaped for training. What mathematics allows, and where it is used:

- LayerNorm's weight and bias go into the matrix that reads them, so rows are normalised without either.
- Without positions layer 0's queries, keys and values depend on the token alone: they are made for the vocabulary's
  `d_vocab` tokens, not for the batch's `batch * pos`, and looked up.
- With one head at least as wide as the model, W_Q W_K^T acts as one matrix and W_V W_O as another. The key bias adds
  the same to all scores of a query and falls out of the softmax: its gradient is 0, where the reference loop has
  rounding noise.
- The last layer's MLP and the logits exist only for positions that have something to predict.
- A batch's gradient is the sum of its parts', so some sequences at a time go forward and back: their activations stay
  in the cache, and never do all logits exist at once. What follows from the parameters alone is made once for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from nopos.model.config import LAYER_NORM_EPS, ModelConfig
from nopos.model.data import targets
from nopos.model.recipes import Precision
from nopos.training import fused
from nopos.training.fused import Kernel
from nopos.training.linear import linear

Stacked = Mapping[str, Float[Tensor, "model ..."]]

CACHED_ROWS = 4800
"""So many rows of a model (96 sequences of 50 tokens) go at once on a CPU: their activations stay near the cores."""


def stack(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Float[Tensor, "model ..."]]:
    """Parameters of several models on a leading `model` axis."""
    return {name: torch.stack([member[name] for member in members]) for name in members[0]}


def logits(
    config: ModelConfig, parameters: Stacked, tokens: Int[Tensor, "model batch pos"]
) -> Float[Tensor, "model batch pos d_vocab"]:
    """Each model's logits on its own tokens."""
    rows = _logits(config, _weights(config, parameters), tokens, first_position=0, precision="full")
    return rearrange(rows, "model (batch pos) d_vocab -> model batch pos d_vocab", batch=tokens.shape[1])


@torch.no_grad()
def losses(config: ModelConfig, parameters: Stacked, tokens: Int[Tensor, "model batch pos"]) -> Float[Tensor, " model"]:
    """Each model's mean loss in nats on the previous token, on its own tokens."""
    return _losses(config, _weights(config, parameters), tokens, targets(tokens), precision="full")


def parts(batch: int, pos: int, device: torch.device, precision: Precision) -> int:
    """In how many parts a model's batch goes forward and back."""
    cached = CACHED_ROWS * (2 if precision == "bfloat16" else 1)  # of half the bytes
    return 1 if device.type == "cuda" else min(batch, math.ceil(batch * pos / cached))


def gradients(
    config: ModelConfig,
    parameters: Stacked,
    tokens: Int[Tensor, "model batch pos"],
    *,
    target_offset: int = 1,
    shuffled: bool = False,
    precision: Precision = "full",
    kernel: Kernel = "torch",
) -> tuple[Float[Tensor, " model"], dict[str, Float[Tensor, "model ..."]]]:
    """Each model's mean loss in nats on its own tokens, and the gradient of that loss by parameter.

    A `W_pos` that is not used may be missing; where it is given, its gradient is zero.
    """
    wanted = targets(tokens, target_offset=target_offset, shuffled=shuffled)
    if kernel == "fused":
        return fused.losses_and_gradients(config, parameters, tokens, wanted, products_act=_products_act(config))
    parameters = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    made = _weights(config, parameters)
    losses, of_weights = _losses_and_gradients(config, made, tokens, wanted, precision=precision)
    of_parameters = torch.autograd.grad(
        list(made.values()), list(parameters.values()), list(of_weights.values()), materialize_grads=True
    )
    return losses, dict(zip(parameters, of_parameters, strict=True))


def _losses_and_gradients(
    config: ModelConfig,
    made: Mapping[str, Tensor],
    tokens: Int[Tensor, "model batch pos"],
    wanted: Int[Tensor, "model batch predicted"],
    *,
    precision: Precision,
) -> tuple[Float[Tensor, " model"], dict[str, Tensor]]:
    """Each model's mean loss, and its gradient by each weight, in parts of the batch."""
    weights = {name: value.detach().requires_grad_() for name, value in made.items()}
    _, batch, pos = tokens.shape
    of_parts, of_weights = list[Tensor](), list[tuple[Tensor, ...]]()
    count = parts(batch, pos, tokens.device, precision)
    for part, part_wanted in zip(tokens.tensor_split(count, dim=1), wanted.tensor_split(count, dim=1), strict=True):
        share = part.shape[1] / batch
        part_losses = _losses(config, weights, part, part_wanted, precision=precision) * share
        of_weights.append(torch.autograd.grad(part_losses.sum(), list(weights.values())))
        of_parts.append(part_losses.detach())
    summed = [sum(each[1:], start=each[0]) for each in zip(*of_weights, strict=True)]
    return sum(of_parts[1:], start=of_parts[0]), dict(zip(weights, summed, strict=True))


def _losses(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    tokens: Int[Tensor, "model batch pos"],
    wanted: Int[Tensor, "model batch predicted"],
    *,
    precision: Precision,
) -> Float[Tensor, " model"]:
    first_position = tokens.shape[-1] - wanted.shape[-1]
    predictions = _logits(config, weights, tokens, first_position=first_position, precision=precision)
    per_token = F.cross_entropy(predictions.flatten(0, 1), wanted.flatten(), reduction="none")
    return rearrange(per_token, "(model row) -> model row", model=len(tokens)).mean(dim=1)


def _logits(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    tokens: Int[Tensor, "model batch pos"],
    *,
    first_position: int,
    precision: Precision,
) -> Float[Tensor, "model row d_vocab"]:
    """Logits at the positions from `first_position` on, sequence after sequence.

    The residual stream, LayerNorms, softmaxes and the logits keep the parameters' dtype whatever the factors have.
    """
    _, batch, pos = tokens.shape
    flat = rearrange(tokens, "model batch pos -> model (batch pos)")
    rows = _look_up(weights["embed"], flat)  # [model row d_model], the residual stream
    factor = torch.bfloat16 if precision == "bfloat16" else rows.dtype
    factors = {name: value.to(factor) for name, value in weights.items() if name not in ("embed", "positions")}
    through = partial(_through, factors)

    if config.positions == "learned":
        rows = rows + repeat(
            weights["positions"][:, :pos], "model pos d_model -> model (batch pos) d_model", batch=batch
        )
    for layer in range(config.n_layers):
        block = f"blocks.{layer}"
        if _knows_only_tokens(config, layer):
            q, k, v = (_look_up(factors[f"{block}.{name}"], flat) for name in "qkv")
        else:
            read = _normalized(rows).to(factor)
            q, v = through(f"{block}.q", read), through(f"{block}.v", read)
            k = read if _products_act(config) else through(f"{block}.k", read)
        z = _attend(config, q, k, v, batch=batch)
        rows = rows + (z if _products_act(config) else through(f"{block}.o", z))
        if layer == config.n_layers - 1:
            by_position = rearrange(rows, "model (batch pos) d_model -> model batch pos d_model", batch=batch)
            rows = rearrange(by_position[:, :, first_position:], "model batch pos d_model -> model (batch pos) d_model")
        rows = rows + through(f"{block}.out", through(f"{block}.in", _normalized(rows).to(factor), relu=True))
    return through("unembed", _normalized(rows).to(factor)).to(rows.dtype)


def _through(factors: Mapping[str, Tensor], name: str, read: Tensor, *, relu: bool = False) -> Tensor:
    return linear(read, factors[f"{name}.W"], factors[f"{name}.b"], relu=relu)


def _attend(
    config: ModelConfig,
    q: Float[Tensor, "model row head_width"],
    k: Float[Tensor, "model row head_width"],
    v: Float[Tensor, "model row head_width"],
    *,
    batch: int,
) -> Float[Tensor, "model row head_width"]:
    """Softmax attention within each sequence; the queries come scaled."""
    apart = "model (batch pos) (head width) -> (model batch head) pos width"
    q, k, v = (rearrange(part, apart, batch=batch, head=config.n_heads) for part in (q, k, v))
    scores = torch.bmm(q, k.mT)
    if scores.dtype == torch.bfloat16:
        scores = scores.float()
    if config.causal:
        scores = scores + torch.full_like(scores[0], float("-inf")).triu(1)
    z = torch.bmm(scores.softmax(dim=-1).to(q.dtype), v)
    return rearrange(
        z, "(model batch head) pos width -> model (batch pos) (head width)", batch=batch, head=config.n_heads
    )


def _weights(config: ModelConfig, parameters: Stacked) -> dict[str, Tensor]:
    """What the rows of a batch meet: tables by token, or by a name NAME.W to multiply by and NAME.b to add."""
    weights = {"embed": parameters["embed.W_E"]}
    if config.positions == "learned":
        weights["positions"] = parameters["pos_embed.W_pos"]
    for layer in range(config.n_layers):
        block = f"blocks.{layer}"
        attention = _attention_weights(config, parameters, block)
        if _knows_only_tokens(config, layer):
            attention = _of_each_token(config, weights["embed"], attention)
        weights |= {f"{block}.{name}": value for name, value in attention.items()}
        W_in, b_in = parameters[f"{block}.mlp.W_in"], parameters[f"{block}.mlp.b_in"]
        weights[f"{block}.in.W"], weights[f"{block}.in.b"] = _reading(parameters, f"{block}.ln2", W_in, b_in)
        weights[f"{block}.out.W"] = parameters[f"{block}.mlp.W_out"]
        weights[f"{block}.out.b"] = parameters[f"{block}.mlp.b_out"]
    W_U, b_U = parameters["unembed.W_U"], parameters["unembed.b_U"]
    weights["unembed.W"], weights["unembed.b"] = _reading(parameters, "ln_final", W_U, b_U)
    return weights


def _attention_weights(config: ModelConfig, parameters: Stacked, block: str) -> dict[str, Tensor]:
    """Scaled queries, keys, values, output. Where products act, a key is the row itself, and there is no output."""
    W, b = dict[str, Tensor](), dict[str, Tensor]()
    for name in "QKV":
        heads, biases = parameters[f"{block}.attn.W_{name}"], parameters[f"{block}.attn.b_{name}"]
        side_by_side = rearrange(heads, "model head d_model d_head -> model d_model (head d_head)")
        W[name], b[name] = _reading(parameters, f"{block}.ln1", side_by_side, biases.flatten(1))
    W_O, b_O = parameters[f"{block}.attn.W_O"].flatten(1, 2), parameters[f"{block}.attn.b_O"]
    scale = config.d_head**-0.5
    if not _products_act(config):
        return {
            "q.W": scale * W["Q"], "q.b": scale * b["Q"], "k.W": W["K"], "k.b": b["K"],
            "v.W": W["V"], "v.b": b["V"], "o.W": W_O, "o.b": b_O,
        }  # fmt: skip
    W_K = scale * W["K"].mT
    # A query's pattern sums to 1, so what is added to every value is added to what it gathers.
    return {
        "q.W": W["Q"] @ W_K, "q.b": _times(b["Q"], W_K),
        "v.W": W["V"] @ W_O, "v.b": _times(b["V"], W_O) + b_O,
    }  # fmt: skip


def _of_each_token(
    config: ModelConfig, W_E: Float[Tensor, "model d_vocab d_model"], attention: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Tables of every token's query, key and value in place of the weights that make them."""
    read = _normalized(W_E)
    tables = {
        name: read
        if name == "k" and _products_act(config)
        else torch.baddbmm(attention[f"{name}.b"][:, None], read, attention[f"{name}.W"])
        for name in "qkv"
    }
    return tables | {name: value for name, value in attention.items() if name.startswith("o.")}


def _knows_only_tokens(config: ModelConfig, layer: int) -> bool:
    return layer == 0 and config.positions == "none"


def _products_act(config: ModelConfig) -> bool:
    return config.n_heads == 1 and config.d_head >= config.d_model


def _reading(
    parameters: Stacked, layer_norm: str, W: Float[Tensor, "model d_model d_out"], b: Float[Tensor, "model d_out"]
) -> tuple[Float[Tensor, "model d_model d_out"], Float[Tensor, "model d_out"]]:
    """The matrix and bias that read normalised rows as these read LayerNorm's output."""
    return parameters[f"{layer_norm}.w"][:, :, None] * W, b + _times(parameters[f"{layer_norm}.b"], W)


def _times(vector: Float[Tensor, "model d_in"], W: Float[Tensor, "model d_in d_out"]) -> Float[Tensor, "model d_out"]:
    return torch.bmm(vector[:, None], W)[:, 0]


def _normalized(rows: Float[Tensor, "model row d_model"]) -> Float[Tensor, "model row d_model"]:
    """LayerNorm without weight and bias."""
    return F.layer_norm(rows, rows.shape[-1:], eps=LAYER_NORM_EPS)


def _look_up(
    table: Float[Tensor, "model d_vocab width"], tokens: Int[Tensor, "model row"]
) -> Float[Tensor, "model row width"]:
    """Each token's entry of its model's table."""
    d_vocab = table.shape[1]
    first_entry = torch.arange(len(table), device=table.device)[:, None] * d_vocab
    entries = table.flatten(0, 1).index_select(0, (tokens + first_entry).flatten())
    return entries.view(*tokens.shape, -1)
