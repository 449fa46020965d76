from __future__ import annotations

import pytest
import torch

from nopos.errors import CheckpointError
from nopos.model.config import ModelConfig
from nopos.model.parameters import initial_parameters
from nopos.storage.state_dicts import config_shown_by

MASK = "blocks.0.attn.mask"


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(n_layers=2, n_heads=2, d_model=8, d_head=4, d_mlp=12, d_vocab=7, n_ctx=6),
        ModelConfig(n_layers=1, n_heads=3, d_model=10, d_head=5, d_mlp=2, d_vocab=4, n_ctx=9),
    ],
)
def test_the_shapes_of_a_state_dict_show_its_sizes(config):
    state = initial_parameters(config, 0)
    assert config_shown_by(state, where="a.pt") == config
    assert config_shown_by(state | {MASK: torch.ones(6, 6).tril().bool()}, where="a.pt") == config


def test_the_mask_shows_whether_a_model_is_causal_and_without_one_it_is_unless_asked(micro):
    state = initial_parameters(micro, 0)
    assert not config_shown_by(state | {MASK: torch.ones(6, 6)}, where="a.pt").causal
    assert config_shown_by(state, where="a.pt").causal
    assert not config_shown_by(state, where="a.pt", bidirectional=True).causal
    assert config_shown_by(state | {MASK: torch.ones(6, 6).tril()}, where="a.pt", bidirectional=True).causal
    with pytest.raises(CheckpointError, match=r"^a.pt: blocks.0.attn.mask is no causal mask and not all true"):
        config_shown_by(state | {MASK: torch.eye(6)}, where="a.pt")
    with pytest.raises(CheckpointError, match=r"^a.pt: blocks.0.attn.mask is no ordinary dense tensor"):
        config_shown_by(state | {MASK: torch.ones(6, 6, device="meta")}, where="a.pt")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"embed.W_E": torch.zeros(7)}, r"embed.W_E is \[7\]; it must have 2 axes"),
        ({"embed.W_E": torch.zeros(1, 8)}, "d_vocab is 1; BOS and at least one other token need 2"),
        ({"blocks.0.attn.W_Q": torch.zeros(8, 8)}, r"blocks.0.attn.W_Q is \[8, 8\]; it must have 3 axes"),
    ],
    ids=["an axis missing", "no other token", "no axis of heads"],
)
def test_shapes_that_cannot_be_are_one_line(micro, change, problem):
    with pytest.raises(CheckpointError, match=f"^a.pt: {problem}$"):
        config_shown_by(initial_parameters(micro, 0) | change, where="a.pt")


@pytest.mark.parametrize("state", [{}, {"weight": torch.zeros(2)}])
def test_what_is_no_model_is_one_line(state):
    with pytest.raises(CheckpointError, match=r"^a.pt: has no embed.W_E; it must be a HookedTransformer state dict"):
        config_shown_by(state, where="a.pt")
