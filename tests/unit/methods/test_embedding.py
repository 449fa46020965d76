from __future__ import annotations

from dataclasses import replace

import torch

from nopos.methods.embedding import largest_spread_over_positions
from nopos.model.parameters import initial_parameters
from nopos.model.transformer import NoPosTransformer


def test_a_model_without_positions_writes_the_same_at_every_position(micro):
    assert largest_spread_over_positions(NoPosTransformer.initialised(micro, 0)) == 0.0


def test_the_spread_is_that_of_the_positions(micro):
    config = replace(micro, positions="learned")
    parameters = initial_parameters(config, 0) | {"embed.W_E": torch.zeros(7, 8), "pos_embed.W_pos": torch.zeros(6, 8)}
    parameters["pos_embed.W_pos"][2, 3] = 0.25
    assert largest_spread_over_positions(NoPosTransformer(config, parameters)) == 0.25
