"""Test-only pytest fixtures: models small enough to train in milliseconds, and a cache of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nopos.methods.folding import fold_layer_norm, folded_config
from nopos.model.config import ModelConfig
from nopos.model.handwritten import relay_config
from nopos.model.parameters import initial_parameters
from nopos.model.recipes import Recipe, TrainConfig
from nopos.model.transformer import NoPosTransformer
from nopos.storage.checkpoints import Checkpoint

MICRO = ModelConfig(n_layers=2, n_heads=2, d_model=8, d_head=4, d_mlp=12, d_vocab=7, n_ctx=6)


@pytest.fixture
def micro() -> ModelConfig:
    """Two layers, two heads, no two sizes alike but those that must be."""
    return MICRO


@pytest.fixture
def tiny_recipe() -> Recipe:
    """A recipe that trains in a blink."""
    train = TrainConfig(steps=3, batch_size=4, warmup_steps=1, peak_lr=1e-3, stream="own")
    return Recipe(name="tiny", model=MICRO, train=train)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder that no other test shares."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("NOPOS_CACHE_DIR", str(folder))
    return folder


def same(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether two checkpoints have the same weights, to the last bit."""
    return all(torch.equal(value, second.parameters[name]) for name, value in first.parameters.items())


def noisy_parameters(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Initial parameters with noise on every one, so that no bias is zero and no LayerNorm the identity."""
    rng = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.5 * torch.randn(value.shape, generator=rng)
        for name, value in initial_parameters(config, seed).items()
    }


@pytest.fixture
def noisy() -> Callable[[ModelConfig, int], dict[str, Tensor]]:
    """`noisy_parameters`, for tests that need no place to import it from."""
    return noisy_parameters


def folded_of(model: NoPosTransformer) -> NoPosTransformer:
    """Its folded model, in float64."""
    return NoPosTransformer(folded_config(model.config), fold_layer_norm(model.config, model.parameter_tensors()))


def with_layer_1_attention(model: NoPosTransformer, **entries: float) -> NoPosTransformer:
    """The model with all entries of some parameters of layer 1's attention, given by name, at one number."""
    parameters = model.parameter_tensors()
    for name, entry in entries.items():
        parameters[f"blocks.1.attn.{name}"] = torch.full_like(parameters[f"blocks.1.attn.{name}"], entry)
    return NoPosTransformer(model.config, parameters)


RELAY_CONFIG = relay_config(ModelConfig())
LAW_CONFIG = replace(MICRO, n_heads=1, n_ctx=26)


@pytest.fixture
def law_model() -> NoPosTransformer:
    """A model with one head on which the law of dilution is exact."""
    return law_model_of(LAW_CONFIG)


def law_model_of(config: ModelConfig) -> NoPosTransformer:
    """A model on which the law of dilution is exact: layer 0's keys and values of all tokens but BOS are alike.

    Tokens differ in the order of the second half of their embedding, which LayerNorm keeps and layer 0's keys and
    values do not read. Its queries and MLPs do read it, so each token has a dilution of its own.
    """
    parameters = noisy_parameters(config, 0)
    half = config.d_model // 2
    rng = torch.Generator().manual_seed(1)
    shared, entries = torch.randn(half, generator=rng), torch.randn(half, generator=rng)
    for token in range(1, config.d_vocab):
        parameters["embed.W_E"][token] = torch.cat([shared, entries[torch.randperm(half, generator=rng)]])
    parameters["pos_embed.W_pos"].zero_()
    parameters["blocks.0.ln1.b"].zero_()
    for name in ("W_K", "W_V"):
        parameters[f"blocks.0.attn.{name}"][:, half:] = 0.0
    parameters["blocks.0.attn.W_O"] *= 5.0  # so that a count says more than a token
    return NoPosTransformer(config, parameters)
