"""The readable forward pass, with exactly the hook points that fire in the notebook's model and its parameter names.

The large arrays that no hook point has seen yet are added to in place: a copy takes as long as what is copied took.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

from nopos.errors import AnalysisError, ConfigError, NotMeasurableError
from nopos.model.config import LAYER_NORM_EPS, ModelConfig
from nopos.model.hook_points import layer_of, stop_after
from nopos.model.parameters import initial_parameters, parameter_shapes, trainable

T = TypeVar("T")


def permitted_keys(config: ModelConfig, pos: int) -> Bool[Tensor, "query_pos key_pos"]:
    """Whether a query may see a key, in sequences of `pos` tokens."""
    every = torch.ones(pos, pos, dtype=torch.bool)
    return every.tril() if config.causal else every


class Embed(nn.Module):
    """Each token's row of `W_E` [d_vocab d_model]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.zeros(config.d_vocab, config.d_model))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return self.W_E[tokens]


class PosEmbed(nn.Module):
    """Each position's row of `W_pos` [n_ctx d_model]: zero, unless positions are learned."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.W_pos = nn.Parameter(torch.zeros(config.n_ctx, config.d_model))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return self.W_pos[: tokens.shape[1]].expand(*tokens.shape, -1)


class LayerNorm(nn.Module):
    """Centre, divide by the standard deviation, then weight and bias unless they are folded away (`LNPre`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.folded = config.normalization == "LNPre"
        if not self.folded:
            self.w = nn.Parameter(torch.zeros(config.d_model))
            self.b = nn.Parameter(torch.zeros(config.d_model))
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        centred = residual - residual.mean(dim=-1, keepdim=True)
        scale = self.hook_scale((centred.pow(2).mean(dim=-1, keepdim=True) + LAYER_NORM_EPS).sqrt())  # [batch pos 1]
        normalized = centred / scale
        return self.hook_normalized(normalized if self.folded else normalized * self.w + self.b)


class Attention(nn.Module):
    """Softmax attention; `W_Q`, `W_K`, `W_V` are [head d_model d_head], `W_O` [head d_head d_model]."""

    permitted: Bool[Tensor, "query_pos key_pos"]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        n_heads, d_model, d_head = config.n_heads, config.d_model, config.d_head
        self.W_Q = nn.Parameter(torch.zeros(n_heads, d_model, d_head))
        self.b_Q = nn.Parameter(torch.zeros(n_heads, d_head))
        self.W_K = nn.Parameter(torch.zeros(n_heads, d_model, d_head))
        self.b_K = nn.Parameter(torch.zeros(n_heads, d_head))
        self.W_V = nn.Parameter(torch.zeros(n_heads, d_model, d_head))
        self.b_V = nn.Parameter(torch.zeros(n_heads, d_head))
        self.W_O = nn.Parameter(torch.zeros(n_heads, d_head, d_model))
        self.b_O = nn.Parameter(torch.zeros(d_model))
        self.register_buffer("permitted", permitted_keys(config, config.n_ctx), persistent=False)
        self.scale = d_head**0.5
        self.hook_k, self.hook_q, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_z, self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint(), HookPoint()

    def forward(self, normalized: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        project = "batch pos d_model, head d_model d_head -> batch pos head d_head"
        q = self.hook_q(einsum(normalized, self.W_Q, project) + self.b_Q)
        k = self.hook_k(einsum(normalized, self.W_K, project) + self.b_K)
        v = self.hook_v(einsum(normalized, self.W_V, project) + self.b_V)
        scores = einsum(q, k, "batch query_pos head d_head, batch key_pos head d_head -> batch head query_pos key_pos")
        pos = scores.shape[-1]
        scores = scores.div_(self.scale).masked_fill_(~self.permitted[:pos, :pos], -torch.inf)
        pattern = self.hook_pattern(self.hook_attn_scores(scores).softmax(dim=-1))
        z = self.hook_z(
            einsum(pattern, v, "batch head query_pos key_pos, batch key_pos head d_head -> batch query_pos head d_head")
        )
        return einsum(z, self.W_O, "batch pos head d_head, head d_head d_model -> batch pos d_model") + self.b_O


class MLP(nn.Module):
    """One hidden layer of ReLUs; `W_in` is [d_model d_mlp], `W_out` [d_mlp d_model]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.W_in = nn.Parameter(torch.zeros(config.d_model, config.d_mlp))
        self.b_in = nn.Parameter(torch.zeros(config.d_mlp))
        self.W_out = nn.Parameter(torch.zeros(config.d_mlp, config.d_model))
        self.b_out = nn.Parameter(torch.zeros(config.d_model))
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def forward(self, normalized: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        pre = self.hook_pre(
            einsum(normalized, self.W_in, "batch pos d_model, d_model d_mlp -> batch pos d_mlp").add_(self.b_in)
        )
        post = self.hook_post(pre.relu())
        return einsum(post, self.W_out, "batch pos d_mlp, d_mlp d_model -> batch pos d_model") + self.b_out


class TransformerBlock(nn.Module):
    """Attention and then an MLP, each reading the residual stream through its LayerNorm and adding to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln1, self.ln2 = LayerNorm(config), LayerNorm(config)
        self.attn, self.mlp = Attention(config), MLP(config)
        self.hook_attn_out, self.hook_mlp_out = HookPoint(), HookPoint()
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = HookPoint(), HookPoint(), HookPoint()

    def forward(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        resid_pre = self.hook_resid_pre(residual)
        resid_mid = self.hook_resid_mid(resid_pre + self.hook_attn_out(self.attn(self.ln1(resid_pre))))
        return self.hook_resid_post(resid_mid + self.hook_mlp_out(self.mlp(self.ln2(resid_mid))))


class Unembed(nn.Module):
    """Logits from the final LayerNorm; `W_U` is [d_model d_vocab]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.W_U = nn.Parameter(torch.zeros(config.d_model, config.d_vocab))
        self.b_U = nn.Parameter(torch.zeros(config.d_vocab))

    def forward(self, normalized: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        return einsum(normalized, self.W_U, "batch pos d_model, d_model d_vocab -> batch pos d_vocab").add_(self.b_U)


class NoPosTransformer(HookedRootModule):
    """The notebook's model (step 2) for any sizes. `run_with_hooks` and `run_with_cache` are TransformerLens' own."""

    def __init__(self, config: ModelConfig, parameters: Mapping[str, Tensor]) -> None:
        """Copy parameters that `initial_parameters` or a checkpoint gives; their dtype becomes the model's."""
        super().__init__()
        self.config = config
        self.embed, self.hook_embed = Embed(config), HookPoint()
        self.pos_embed, self.hook_pos_embed = PosEmbed(config), HookPoint()
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.ln_final = LayerNorm(config)
        self.unembed = Unembed(config)
        self.setup()  # type: ignore[no-untyped-call]
        self.to(parameters["embed.W_E"].dtype)
        self.load_state_dict(parameters, strict=True)
        self.pos_embed.W_pos.requires_grad_(trainable("pos_embed.W_pos", config))

    @classmethod
    def initialised(cls, config: ModelConfig, seed: int, *, scale: float = 0.8) -> NoPosTransformer:
        """A model at the start of training; see `initial_parameters`."""
        return cls(config, initial_parameters(config, seed, scale=scale))

    def block(self, layer: int) -> TransformerBlock:
        """The block of a layer.

        Raises:
            NotMeasurableError: there is no such layer.
        """
        if not 0 <= layer < self.config.n_layers:
            raise NotMeasurableError(f"layer is {layer}; this model's are 0 to {self.config.n_layers - 1}")
        block = self.blocks[layer]
        assert isinstance(block, TransformerBlock)
        return block

    def parameter_tensors(self) -> dict[str, Tensor]:
        """The parameters by name, detached and on the CPU, in the order of `parameter_shapes`."""
        state = self.state_dict()
        return {name: state[name].detach().cpu() for name in parameter_shapes(self.config)}

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_model"],
        *,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
    ) -> Float[Tensor, "batch pos d_out"]:
        """Logits at every position; or part of the way, as in HookedTransformer.

        Args:
            tokens: with `start_at_layer` the residual stream that enters that layer.
            start_at_layer: leave out the embedding and all layers before this one.
            stop_at_layer: return the residual stream that enters this layer, `n_layers` being what the last one leaves.

        Raises:
            ConfigError: the sequence is longer than `n_ctx`.
        """
        if tokens.shape[1] > self.config.n_ctx:
            raise ConfigError(f"a sequence has {tokens.shape[1]} tokens; this model takes at most {self.config.n_ctx}")
        if start_at_layer is None:
            residual = self.hook_embed(self.embed(tokens)) + self.hook_pos_embed(self.pos_embed(tokens))
        else:
            residual = tokens
        for block in self.blocks[start_at_layer or 0 : stop_at_layer]:
            residual = block(residual)
        if stop_at_layer is not None:
            return residual
        logits: Tensor = self.unembed(self.ln_final(residual))
        return logits

    @torch.no_grad()
    def logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of the model as it is, without a gradient."""
        logits: Tensor = self(tokens)
        return logits

    @torch.no_grad()
    def activations(
        self, tokens: Int[Tensor, "batch pos"], hook_points: Sequence[str]
    ) -> dict[str, Float[Tensor, "batch ..."]]:
        """What passes each hook point of the model as it is, which runs no further than to the last of them.

        Raises:
            AnalysisError: the model has no such hook point.
        """
        for name in hook_points:
            self.require_hook_point(name)
        _, cache = self.run_with_cache(tokens, names_filter=list(hook_points), stop_at_layer=stop_after(hook_points))
        return {name: cache[name] for name in hook_points}

    def of_weights(self, analysis: Callable[[NoPosTransformer], T]) -> T:
        """What an analysis reads off the weights alone; it is not written into, since a subject's model keeps it."""
        return analysis(self)

    def of_logits(
        self, tokens: Int[Tensor, "batch pos"], analysis: Callable[[Tensor, Tensor, int], T], target_offset: int
    ) -> T:
        """What an analysis reads off the logits of the model as it is; it is not written into either.

        Args:
            tokens: on which.
            analysis: of logits, tokens and the offset.
            target_offset: how many positions back the token lies that the model is to predict.
        """
        return analysis(self.logits(tokens), tokens, target_offset)

    def require_hook_point(self, name: str) -> None:
        """Raise AnalysisError unless the model has the hook point; NotMeasurableError if what it lacks is the layer."""
        if name not in self.hook_dict:
            layer = layer_of(name)
            error = AnalysisError if layer is None or layer < self.config.n_layers else NotMeasurableError
            raise error(
                f"there is no hook point {name!r}; names are as in {list(self.hook_dict)[-3]!r}, "
                f"and layers are 0 to {self.config.n_layers - 1}"
            )
