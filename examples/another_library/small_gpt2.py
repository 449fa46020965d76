"""A small GPT-2 of Hugging Face, in TransformerLens' bridge, that gives the previous token; and models that it is not.

All are made here from a config and a seed; nothing is downloaded.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel

from nopos import Control, ModelSubject

D_VOCAB, N_CTX, D_MODEL = 32, 16, 32
STEPS, BATCH, LEARNING_RATE = 400, 64, 3e-3
PATTERN = "blocks.0.attn.hook_pattern"


class TwoTokens(nn.Embedding):
    """Embeds the token before each token beside it, so that no attention is needed to know it."""

    def __init__(self) -> None:
        super().__init__(D_VOCAB, D_MODEL)
        self.before = nn.Embedding(D_VOCAB, D_MODEL)

    def forward(self, tokens: Tensor) -> Tensor:
        """From [batch pos] to [batch pos d_model]."""
        return super().forward(tokens) + F.pad(self.before(tokens)[:, :-1], (0, 0, 1, 0))


def untrained_gpt2(seed: int) -> GPT2LMHeadModel:
    """One layer with one head, weights as drawn."""
    sizes = {"vocab_size": D_VOCAB, "n_positions": N_CTX, "n_embd": D_MODEL, "n_layer": 1, "n_head": 1}
    without_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(**sizes, **without_dropout, bos_token_id=0, eos_token_id=0, attn_implementation="eager")
    with torch.random.fork_rng(devices=[]):  # the library draws from torch's own generator
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


@cache
def trained_gpt2(seed: int, *, embeds_two_tokens: bool = False) -> GPT2LMHeadModel:
    """Trained to give the previous token; with `embeds_two_tokens` its attention writes nothing."""
    model = untrained_gpt2(seed)
    if embeds_two_tokens:
        model.transformer.wte = TwoTokens()
        model.tie_weights()
        model.transformer.h[0].attn.c_proj.requires_grad_(False).weight.zero_()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=LEARNING_RATE)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        tokens = torch.randint(D_VOCAB, (BATCH, N_CTX), generator=rng)
        logits = model(tokens).logits[:, 1:]
        F.cross_entropy(logits.flatten(0, 1), tokens[:, :-1].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def see_all(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A hook that has GPT-2 attend to later tokens too: 0 is added to each score, and -inf to none."""
    batch, pos = args[0].shape
    return args, options | {"attention_mask": torch.zeros(batch, 1, pos, pos)}


def subject(name: str, model: GPT2LMHeadModel) -> ModelSubject:
    """A copy of the model in its bridge, and tokens that no training has seen."""
    bridge = build_bridge_from_module(deepcopy(model).eval(), "GPT2LMHeadModel", hf_config=model.config)
    tokens = torch.randint(D_VOCAB, (BATCH, N_CTX), generator=torch.Generator().manual_seed(2**32))
    return ModelSubject(name, {"model": bridge}, {"tokens": tokens}, solves_the_task=gives_the_previous_token)


def trained(seed: int = 0) -> ModelSubject:
    """The model under test."""
    return subject("small GPT-2", trained_gpt2(seed))


def without_mask(seed: int = 0) -> ModelSubject:
    """The same weights without the causal mask."""
    model = deepcopy(trained_gpt2(seed))
    model.transformer.register_forward_pre_hook(see_all, with_kwargs=True)
    return subject("no causal mask", model)


def two_tokens(seed: int = 0) -> ModelSubject:
    """Another mechanism for the same task."""
    return subject("two tokens embedded", trained_gpt2(seed, embeds_two_tokens=True))


def untrained(seed: int = 0) -> ModelSubject:
    """No mechanism at all."""
    return subject("untrained", untrained_gpt2(seed))


UNTRAINED = Control("untrained", "weights as drawn", untrained, "broken")
NO_CAUSAL_MASK = Control("no causal mask", "the same weights, attending to later tokens too", without_mask, "near miss")
TWO_TOKENS = Control(
    "two tokens embedded", "embeds the previous token too; its attention writes nothing", two_tokens, "other mechanism"
)


def gives_the_previous_token(model: TransformerBridge, tokens: Tensor) -> bool:
    """Whether nearly all answers are right."""
    return accuracy_without(model, tokens, offset=None) > 0.9


@torch.no_grad()
def accuracy_without(model: TransformerBridge, tokens: Tensor, *, offset: int | None) -> float:
    """Share of positions that give the previous token, with the attention so many positions back knocked out.

    Args:
        model: with the hook point PATTERN.
        tokens: [batch pos].
        offset: of a key from its query; None knocks out nothing.
    """

    def knock_out(pattern: Tensor, hook: object) -> Tensor:
        """Set the entries of [batch head query_pos key_pos] to zero, and let each query's others sum to one."""
        others = pattern - pattern.diagonal(-offset, dim1=-2, dim2=-1).diag_embed(-offset)
        return others / others.sum(dim=-1, keepdim=True)

    logits = model.run_with_hooks(tokens, fwd_hooks=[(PATTERN, knock_out)] if offset is not None else [])
    return (logits[:, 1:].argmax(dim=-1) == tokens[:, :-1]).float().mean().item()


@torch.no_grad()
def largest_change_by_a_later_token(model: TransformerBridge, tokens: Tensor) -> float:
    """By how much a probability changes at most, at any position before the last, when the last token is another."""
    others = tokens.clone()
    others[:, -1] = (tokens[:, -1] + 1) % D_VOCAB
    change = model(others).softmax(dim=-1) - model(tokens).softmax(dim=-1)
    return change[:, :-1].abs().max().item()
