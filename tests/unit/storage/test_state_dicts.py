from __future__ import annotations

import pytest
import torch

from nopos.model.config import ModelConfig
from nopos.model.parameters import initial_parameters
from nopos.storage.state_dicts import config_shown_by


def test_the_shapes_of_a_state_dict_show_its_sizes(micro):
    state = initial_parameters(micro, 0)
    assert micro != ModelConfig()
    assert config_shown_by(state) == micro
    assert config_shown_by(state | {"blocks.0.attn.mask": torch.ones(6, 6)}) == micro


@pytest.mark.parametrize(
    "change",
    [{"unembed.b_U": torch.zeros(9)}, {"embed.W_E": torch.zeros(7)}, {"more": torch.zeros(1)}],
    ids=["two sizes of one axis", "an axis missing", "an unknown weight"],
)
def test_shapes_that_do_not_agree_show_nothing(micro, change):
    assert config_shown_by(initial_parameters(micro, 0) | change) == ModelConfig()


def test_what_is_no_model_shows_nothing():
    assert config_shown_by({}) == ModelConfig()
    assert config_shown_by({"weight": torch.zeros(2)}) == ModelConfig()
