from __future__ import annotations

import pytest
import torch

from nopos import checkpoints
from nopos.analysis.folding import largest_log_prob_gap
from nopos.controls import (
    CONTROLS,
    FOLDED_WITHOUT_A_BIAS,
    HALF_TRAINED,
    LEAK,
    LEAKING_POSITIONS,
    LEARNED_POSITIONS,
    RELAY,
    TRAINED,
    TWO_BACK,
    UNTRAINED,
    reference,
)
from nopos.data import held_out_tokens, mean_loss
from nopos.model import NoPosTransformer
from nopos.parameters import initial_parameters
from nopos.shipped import checkpoint_path


@pytest.mark.parametrize("name", TRAINED)
def test_a_committed_checkpoint_is_of_the_recipe_that_it_says(name):
    loaded = checkpoints.load(checkpoint_path(name))
    assert (loaded.config, loaded.train, loaded.seed) == (TRAINED[name].model, TRAINED[name].train, 0)
    assert len(loaded.losses) == TRAINED[name].train.steps


def test_no_other_checkpoint_is_committed():
    assert {path.stem for path in checkpoint_path("reference").parent.glob("*.safetensors")} == set(TRAINED)


def test_names_differ_and_each_says_what_it_lacks():
    names = [control.name for control in CONTROLS]
    assert len(set(names)) == len(names)
    assert all(len(control.lacks) > 20 for control in CONTROLS)
    assert [control.build().name for control in CONTROLS] == names


def loss_by_offset(control, offset):
    subject = control.build()
    return mean_loss(subject.model(subject.tokens), subject.tokens, target_offset=offset).item()


def test_two_back_predicts_two_back_and_not_the_previous_token():
    assert loss_by_offset(TWO_BACK, 2) < 0.1
    assert loss_by_offset(TWO_BACK, 1) > 5


def test_half_trained_knows_the_task_roughly():
    assert 0.1 < HALF_TRAINED.build().loss < 2.0


def test_learned_positions_solves_the_task_with_a_W_pos():
    subject = LEARNED_POSITIONS.build()
    assert subject.loss < 0.01
    assert subject.model.pos_embed.W_pos.abs().max() > 0.1


def test_untrained_is_as_drawn():
    weights = UNTRAINED.build().checkpoint.parameters
    assert all(
        torch.equal(value, weights[name]) for name, value in initial_parameters(TRAINED["reference"].model, 0).items()
    )


def test_leaking_positions_differ_from_the_reference_in_W_pos_alone():
    good, leaking = reference().checkpoint.parameters, LEAKING_POSITIONS.build().checkpoint.parameters
    assert [name for name in good if not torch.equal(good[name], leaking[name])] == ["pos_embed.W_pos"]
    assert leaking["pos_embed.W_pos"].std().item() == pytest.approx(LEAK, rel=0.05)
    assert LEAKING_POSITIONS.build().solves_the_task()


def test_the_damaged_twin_belongs_to_a_good_model():
    damaged, good = FOLDED_WITHOUT_A_BIAS.build(), reference()
    assert damaged.loss == good.loss
    gap = largest_log_prob_gap(damaged.model, damaged.tokens, twin=damaged.folded, dtype=torch.float64)
    assert gap > 1e-3


def test_the_relay_solves_the_task():
    assert RELAY.build().solves_the_task()


@pytest.fixture
def one_thread():
    """As the committed models were trained: with more, rounding differs between runs and training makes it grow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRAINED if name != "reference"])
def test_a_control_trained_again_by_sprint_comes_out_alike(one_thread, name):
    """Weights drift apart with the machine's rounding; what the control can do does not."""
    committed, again = checkpoints.load(checkpoint_path(name)), checkpoints.train(TRAINED[name], 0, torch.device("cpu"))
    tokens = held_out_tokens(committed.config, 256)
    losses = []
    for one in (committed, again):
        logits = NoPosTransformer(one.config, one.parameters)(tokens)
        losses.append(mean_loss(logits, tokens, target_offset=one.train.target_offset).item())
    assert again.losses[:20] == pytest.approx(committed.losses[:20], rel=1e-3)
    assert losses[1] == pytest.approx(losses[0], rel=0.5, abs=1e-4)
