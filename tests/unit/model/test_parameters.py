from __future__ import annotations

import pytest
import torch

from nopos.errors import CheckpointError
from nopos.model.config import ModelConfig
from nopos.model.parameters import initial_parameters, parameter_shapes, parameters_of, trainable


def test_the_notebooks_model_has_hooked_transformers_parameters():
    shapes = parameter_shapes(ModelConfig())
    assert shapes["blocks.1.attn.W_Q"] == (1, 64, 64)
    assert shapes["blocks.0.mlp.W_out"] == (256, 64)
    assert shapes["unembed.b_U"] == (300,)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 141_996
    assert len(shapes) == 2 + 2 * 16 + 2 + 2


def test_every_matrix_starts_normal_with_the_notebooks_spread():
    parameters = initial_parameters(ModelConfig(), 0)
    for name, value in parameters.items():
        leaf = name.split(".")[-1]
        if leaf == "w":
            assert (value == 1).all()
        elif leaf.startswith("b") or leaf == "W_pos":
            assert (value == 0).all()
        else:
            assert value.std().item() == pytest.approx(0.1, rel=0.05)
            assert abs(value.mean().item()) < 0.01


def test_a_seed_decides_the_weights():
    first, again, other = (initial_parameters(ModelConfig(), seed)["embed.W_E"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_learned_positions_change_no_other_weight():
    without, learned = (initial_parameters(ModelConfig(positions=positions), 0) for positions in ("none", "learned"))
    different = [name for name in without if not torch.equal(without[name], learned[name])]
    assert different == ["pos_embed.W_pos"]


def test_only_an_unused_W_pos_is_not_trained():
    config = ModelConfig()
    assert [name for name in parameter_shapes(config) if not trainable(name, config)] == ["pos_embed.W_pos"]
    assert trainable("pos_embed.W_pos", ModelConfig(positions="learned"))


def test_hooked_transformers_buffers_are_left_out(micro):
    state = initial_parameters(micro, 0)
    buffers = {"blocks.0.attn.mask": torch.ones(6, 6), "blocks.1.attn.IGNORE": torch.tensor(-torch.inf)}
    assert list(parameters_of({**buffers, **state}, micro, where="here")) == list(parameter_shapes(micro))


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: without(state, "embed.W_E"), "file: has no embed.W_E;"),
        (lambda state: {}, "file: has no embed.W_E and 37 more"),
        (lambda state: state | {"head.weight": torch.zeros(2)}, "file: holds head.weight, which"),
        (lambda state: state | {"unembed.b_U": torch.zeros(8)}, "file: unembed.b_U is [8]; this model needs [7]"),
        (lambda state: state | {"unembed.b_U": torch.zeros(7).double()}, "unembed.b_U is float64; it must be float32"),
        (lambda state: state | {"unembed.b_U": torch.full((7,), torch.nan)}, "unembed.b_U holds values that are not"),
        (lambda state: state | {"unembed.b_U": torch.full((7,), torch.inf)}, "unembed.b_U holds values that are not"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_one_line_that_names_the_parameter(micro, damage, message):
    with pytest.raises(CheckpointError) as caught:
        parameters_of(damage(initial_parameters(micro, 0)), micro, where="file")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
