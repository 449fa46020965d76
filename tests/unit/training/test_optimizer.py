from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nopos.model.config import ModelConfig
from nopos.model.parameters import initial_parameters
from nopos.model.recipes import TrainConfig
from nopos.training.ensemble import stack
from nopos.training.optimizer import Optimizer, orthogonalized

SETTINGS = TrainConfig(peak_lr=1e-2, weight_decay=0.3, max_grad_norm=0.5)
MUON = replace(SETTINGS, optimizer="muon", muon_lr=3e-2, momentum=0.8)


def normal(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients_like(parameters, seed, scale=1.0):
    return {name: scale * normal(value.shape, seed + row) for row, (name, value) in enumerate(parameters.items())}


def moved(config, settings, gradients_of, members, steps):
    start = stack([initial_parameters(config, seed) for seed in members])
    optimizer = Optimizer({name: value.clone() for name, value in start.items()}, settings)
    for step in range(steps):
        optimizer.step(gradients_of(start, step), 1.0)
    return start, optimizer.parameters


@pytest.mark.parametrize("scale", [1e-3, 10.0], ids=["unclipped", "clipped"])
def test_adamw_is_torchs_with_each_model_clipped_by_its_own_norm(micro, scale):
    steps = 4
    every = [
        gradients_like(stack([initial_parameters(micro, s) for s in (0, 1)]), 100 * step, scale)
        for step in range(steps)
    ]
    _, ours = moved(micro, SETTINGS, lambda _, step: every[step], (0, 1), steps)
    for member in (0, 1):
        theirs = {name: torch.nn.Parameter(value) for name, value in initial_parameters(micro, member).items()}
        adamw = torch.optim.AdamW(theirs.values(), lr=1e-2, betas=SETTINGS.betas, weight_decay=0.3)
        for step in range(steps):
            for name, parameter in theirs.items():
                parameter.grad = every[step][name][member].clone()
            torch.nn.utils.clip_grad_norm_(theirs.values(), SETTINGS.max_grad_norm)
            adamw.step()
        for name, parameter in theirs.items():
            assert torch.allclose(ours[name][member], parameter, atol=1e-6), name


@pytest.mark.parametrize("shape", [(8, 8), (8, 20), (20, 8)], ids=str)
def test_orthogonalised_matrices_have_singular_values_near_one_and_the_same_singular_vectors(shape):
    matrices = normal((2, 3, *shape), 0)
    result = orthogonalized(matrices)
    assert result.shape == matrices.shape
    singular = torch.linalg.svdvals(result)
    assert ((singular > 0.3) & (singular < 1.3)).all()
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    in_their_basis = U.mT @ result @ Vh.mT
    off_diagonal = in_their_basis - torch.diag_embed(in_their_basis.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-4


def test_orthogonalising_does_not_depend_on_scale_or_on_what_is_beside():
    matrices = normal((2, 3, 8, 20), 0)
    assert torch.allclose(orthogonalized(matrices), orthogonalized(1000 * matrices), atol=1e-4)
    assert torch.equal(orthogonalized(matrices)[1:, 2:], orthogonalized(matrices[1:, 2:]))


def test_muon_moves_the_matrices_inside_the_blocks_as_torchs_does_and_the_rest_by_adamw():
    """torch orthogonalises in bfloat16, so a step is compared with its length, not to the last digit."""
    config = ModelConfig(n_layers=2, n_heads=1, d_model=8, d_head=8, d_mlp=20, d_vocab=7, n_ctx=6)
    settings = replace(MUON, max_grad_norm=1e9)
    every = [gradients_like(stack([initial_parameters(config, 0)]), 100 * step) for step in range(3)]
    start, ours = moved(config, settings, lambda _, step: every[step], (0,), 3)
    _, by_adamw = moved(config, replace(settings, optimizer="adamw"), lambda _, step: every[step], (0,), 3)
    for name, value in start.items():
        if not (name.startswith("blocks.") and ".W_" in name):
            assert torch.equal(ours[name], by_adamw[name]), name
            continue
        parameter = torch.nn.Parameter(value.clone().view(value.shape[-2:]))
        theirs = torch.optim.Muon([parameter], lr=3e-2, weight_decay=0.3, momentum=0.8)
        for gradients in every:
            parameter.grad = gradients[name].view(parameter.shape)
            theirs.step()
        expected = parameter.detach().view(value.shape)
        assert (ours[name] - expected).norm() < 0.03 * (expected - value).norm(), name


def test_heads_are_matrices_of_their_own(micro):
    """A gradient in one head moves no other, but for the decay."""
    start = stack([initial_parameters(micro, 0)])
    gradients = {name: torch.zeros_like(value) for name, value in start.items()}
    gradients["blocks.0.attn.W_Q"][0, 0] = normal((8, 4), 0)
    _, ours = moved(micro, replace(MUON, weight_decay=0.0), lambda *_: gradients, (0,), 1)
    change = (ours["blocks.0.attn.W_Q"] - start["blocks.0.attn.W_Q"]).abs().amax(dim=(2, 3))[0]
    assert change[0] > 1e-3
    assert change[1] == 0


def test_the_factor_scales_every_rate(micro):
    start = stack([initial_parameters(micro, 0)])
    gradients = gradients_like(start, 0)
    lengths = {}
    for factor in (0.0, 0.5, 1.0):
        optimizer = Optimizer({name: value.clone() for name, value in start.items()}, MUON)
        optimizer.step(gradients, factor)
        lengths[factor] = {name: (optimizer.parameters[name] - start[name]).norm().item() for name in start}
    for name in start:
        assert lengths[0.0][name] == 0
        assert lengths[0.5][name] == pytest.approx(0.5 * lengths[1.0][name], rel=1e-3)
