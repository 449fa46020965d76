from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nopos.model.data import held_out_tokens, mean_loss
from nopos.model.transformer import NoPosTransformer
from nopos.training import ensemble
from tests.support.micro import MICRO, noisy_parameters

CHANGES = {
    "two heads": {},
    "no causal mask": {"causal": False},
    "learned positions": {"positions": "learned"},
    "one layer": {"n_layers": 1},
    "three layers": {"n_layers": 3},
    "one head as wide as the model": {"n_heads": 1, "d_head": 8},
    "one head wider than the model": {"n_heads": 1, "d_head": 9},
    "one narrow head": {"n_heads": 1, "d_head": 3},
    "one wide head and learned positions": {"n_heads": 1, "d_head": 8, "positions": "learned"},
    "one wide head and no causal mask": {"n_heads": 1, "d_head": 8, "causal": False},
    "one layer with one wide head": {"n_layers": 1, "n_heads": 1, "d_head": 8},
}
EXACT = 1e-9


@pytest.fixture(params=CHANGES.values(), ids=CHANGES, scope="module")
def config(request):
    return replace(MICRO, **request.param)


@pytest.fixture(scope="module")
def members(config):
    """The parameters of three models in float64, none of them at its start."""
    parameters = [{name: value.double() for name, value in noisy_parameters(config, seed).items()} for seed in range(3)]
    if config.positions == "none":
        for member in parameters:
            member["pos_embed.W_pos"].zero_()
    return parameters


@pytest.fixture(scope="module")
def models(config, members):
    """The same as readable models."""
    return [NoPosTransformer(config, member) for member in members]


def tokens_for(config, bos):
    return torch.stack([held_out_tokens(config, 5, stream=stream, incl_bos_token=bos) for stream in range(3)])


def test_logits_and_losses_are_the_models(config, members, models):
    tokens = tokens_for(config, bos=True)
    stacked = ensemble.stack(members)
    ours, losses = ensemble.logits(config, stacked, tokens), ensemble.losses(config, stacked, tokens)
    for member in range(3):
        expected = models[member](tokens[member])
        assert (ours[member] - expected).abs().max() < EXACT
        assert losses[member].item() == pytest.approx(mean_loss(expected, tokens[member]).item(), abs=EXACT)


@pytest.mark.parametrize("bos", [True, False], ids=["BOS", "no BOS"])
@pytest.mark.parametrize(("target_offset", "shuffled"), [(1, False), (3, False), (1, True)])
@pytest.mark.parametrize("rows_at_once", [10**6, 12], ids=["whole", "in parts"])
def test_gradients_are_the_models(config, members, models, target_offset, shuffled, bos, rows_at_once, monkeypatch):
    """Alone and as one of three; with 12 rows at once five sequences of six go in three parts, the last odd."""
    monkeypatch.setattr(ensemble, "CACHED_ROWS", rows_at_once)
    tokens = tokens_for(config, bos)
    task = {"target_offset": target_offset, "shuffled": shuffled}
    together = ensemble.gradients(config, ensemble.stack(members), tokens, **task)
    for member, model in enumerate(models):
        model.zero_grad()
        loss = mean_loss(model(tokens[member]), tokens[member], **task)
        loss.backward()
        one = ensemble.stack([members[member]])
        alone = ensemble.gradients(config, one, tokens[member : member + 1], **task)
        for (losses, gradients), row in ((together, member), (alone, 0)):
            assert losses[row].item() == pytest.approx(loss.item(), abs=EXACT)
            assert gradients.keys() == members[member].keys()
            for name, parameter in model.named_parameters():
                expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                assert (gradients[name][row] - expected).abs().max() < EXACT, name


def test_what_was_given_is_left_alone(micro, noisy):
    stacked = ensemble.stack([noisy(micro, 0)])
    before = {name: value.clone() for name, value in stacked.items()}
    ensemble.gradients(micro, stacked, tokens_for(micro, bos=True)[:1])
    assert all(torch.equal(stacked[name], value) for name, value in before.items())
    assert not any(value.requires_grad or value.grad is not None for value in stacked.values())


@pytest.mark.parametrize("name", ["two heads", "one head as wide as the model", "one wide head and learned positions"])
def test_bfloat16_is_less_exact_and_near(micro, noisy, name):
    config = replace(micro, **CHANGES[name])
    stacked = ensemble.stack([noisy(config, 0)])
    if config.positions == "none":
        stacked["pos_embed.W_pos"].zero_()
    tokens = tokens_for(config, bos=True)[:1]
    exact_loss, exact = ensemble.gradients(config, stacked, tokens)
    rough_loss, rough = ensemble.gradients(config, stacked, tokens, precision="bfloat16")
    assert 0 < abs((rough_loss - exact_loss).item()) < 0.05
    assert all(gradient.dtype == torch.float32 for gradient in rough.values())
    directions = [torch.cat([gradient.flatten() for gradient in each.values()]) for each in (exact, rough)]
    assert 0.99 < torch.cosine_similarity(*directions, dim=0) < 0.999999
