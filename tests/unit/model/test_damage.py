from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nopos.model.damage import (
    KINDS,
    OF_A_LAYER,
    matrices,
    mutants,
    noised,
    permuted,
    sign_flipped,
    with_permuted_matrices,
    zeroed,
)


def drawn(config, parameters, seed=0):
    return list(mutants(config, parameters, torch.Generator().manual_seed(seed)))


def rng():
    return torch.Generator().manual_seed(0)


def test_each_kind_of_damage_does_what_it_is_called():
    value = torch.arange(1.0, 13).reshape(3, 4)
    assert zeroed(value, rng())[1].abs().sum() == 0
    assert torch.equal(sign_flipped(value, rng())[1], -value)
    shuffled = permuted(value, rng())[1]
    assert not torch.equal(shuffled, value)
    assert torch.equal(shuffled.flatten().sort().values, value.flatten())
    how, noisy = noised(torch.randn(200, 200, generator=rng()), rng())
    size = float(how.split()[2])
    added = (noisy - torch.randn(200, 200, generator=rng())).std().item()
    assert added == pytest.approx(size, abs=0.01)
    assert 0.03 <= size <= 1


def test_every_matrix_gets_every_kind_and_each_mutant_has_damage_where_it_says(micro, noisy):
    parameters = noisy(micro, 0)
    made = drawn(micro, parameters)
    assert len({mutant.name for mutant in made}) == len(made)
    for mutant in made:
        changed = [name for name, value in mutant.parameters.items() if not torch.equal(value, parameters[name])]
        assert changed, mutant.name
        assert {name: value.shape for name, value in mutant.parameters.items()} == {
            name: value.shape for name, value in parameters.items()
        }
    of_matrices = made[: len(KINDS) * len(matrices(micro))]
    for number, mutant in enumerate(of_matrices):
        (changed,) = [name for name, value in mutant.parameters.items() if not torch.equal(value, parameters[name])]
        assert changed == matrices(micro)[number // len(KINDS)]
        assert mutant.name.startswith(changed)
    assert sum(mutant.stale_fold for mutant in made) == 3


def test_a_damaged_block_is_damaged_where_it_reads_and_where_it_writes_and_nowhere_else(micro, noisy):
    parameters = noisy(micro, 0)
    blocks = [mutant for mutant in drawn(micro, parameters) if "neurons of layer" in mutant.name]
    assert len(blocks) == 2 * 2 * len(KINDS)
    for mutant in blocks:
        size, layer = int(mutant.name.split()[0]), mutant.name.split("layer ")[1][0]
        W_in, W_out = f"blocks.{layer}.mlp.W_in", f"blocks.{layer}.mlp.W_out"
        changed = {name for name, value in mutant.parameters.items() if not torch.equal(value, parameters[name])}
        assert changed == {W_in, W_out}, mutant.name
        reads = (mutant.parameters[W_in] != parameters[W_in]).any(0).nonzero()[:, 0]
        writes = (mutant.parameters[W_out] != parameters[W_out]).any(1).nonzero()[:, 0]
        assert reads.tolist() == writes.tolist()
        assert len(reads) == size


def test_matrices_and_neurons_are_swapped_between_layers(micro, noisy):
    parameters = noisy(micro, 0)
    swapped = {mutant.name: mutant.parameters for mutant in drawn(micro, parameters) if "swapped" in mutant.name}
    for name in OF_A_LAYER:
        mutant = swapped[f"{name} swapped between layers 0 and 1"]
        assert torch.equal(mutant[f"blocks.0.{name}"], parameters[f"blocks.1.{name}"])
        assert torch.equal(mutant[f"blocks.1.{name}"], parameters[f"blocks.0.{name}"])
    (neurons,) = [mutant for name, mutant in swapped.items() if "neurons" in name]
    neuron_numbers = (neurons["blocks.0.mlp.b_in"] != parameters["blocks.0.mlp.b_in"]).nonzero()[:, 0]
    assert 4 <= len(neuron_numbers) <= 12
    for name, dim in (("W_in", 1), ("b_in", 0), ("W_out", 0)):
        for here, there in ((0, 1), (1, 0)):
            now, before = neurons[f"blocks.{here}.mlp.{name}"], parameters[f"blocks.{there}.mlp.{name}"]
            assert torch.equal(now.index_select(dim, neuron_numbers), before.index_select(dim, neuron_numbers))


def test_a_seed_decides_the_draws(micro, noisy):
    parameters = noisy(micro, 0)
    first, again, other = (drawn(micro, parameters, seed) for seed in (0, 0, 1))
    assert [mutant.name for mutant in first] == [mutant.name for mutant in again]
    assert [mutant.name for mutant in first] != [mutant.name for mutant in other]


def test_one_layer_has_nothing_to_swap_with(micro, noisy):
    config = replace(micro, n_layers=1)
    assert not any("swapped" in mutant.name for mutant in drawn(config, noisy(config, 0)))


def test_permuting_every_matrix_keeps_every_entry_and_no_matrix(micro, noisy):
    parameters = noisy(micro, 0)
    after = with_permuted_matrices(micro, parameters, rng())
    for name, value in parameters.items():
        assert torch.equal(after[name].flatten().sort().values, value.flatten().sort().values)
        assert torch.equal(after[name], value) is (name not in matrices(micro))
