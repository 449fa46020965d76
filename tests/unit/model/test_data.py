from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nopos.errors import ConfigError
from nopos.model.config import ModelConfig
from nopos.model.data import (
    NOTEBOOK_STREAM_SEED,
    generator,
    held_out_tokens,
    mean_loss,
    notebook_batches,
    per_token_loss,
    targets,
    training_batches,
)
from nopos.model.recipes import NOTEBOOK, SPRINT
from nopos.subjects import notebook


def test_the_notebooks_stream_gives_the_printed_batch():
    assert next(notebook_batches(ModelConfig(), 2)).tolist() == notebook.first_batch()


def test_the_loss_gives_the_printed_losses_on_the_logits_drawn_after_that_batch():
    rng = torch.Generator().manual_seed(NOTEBOOK_STREAM_SEED)
    torch.randint(1, 300, (2, 50), generator=rng)
    tokens = torch.arange(5)[None, :]
    logits = torch.randn(1, 5, 10, generator=rng)
    logits[0, torch.arange(1, 5), torch.arange(4)] = 10.0
    per_token, mean = notebook.example_losses()
    assert [round(value, 4) for value in per_token_loss(logits, tokens)[0].tolist()] == per_token
    assert round(mean_loss(logits, tokens).item(), 4) == mean


def test_the_stream_is_the_one_that_follows_the_global_seed():
    ours = notebook_batches(ModelConfig(), 3)
    with torch.random.fork_rng():
        torch.manual_seed(NOTEBOOK_STREAM_SEED)
        for _ in range(3):
            theirs = torch.randint(1, 300, (3, 50))
            theirs[:, 0] = 0
            assert torch.equal(next(ours), theirs)


def test_no_stream_touches_the_global_random_state():
    before = torch.get_rng_state()
    next(notebook_batches(ModelConfig(), 2))
    next(training_batches(ModelConfig(), SPRINT.train, 0))
    held_out_tokens(ModelConfig(), 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("bos", [True, False])
def test_position_0_is_bos_unless_it_is_left_out(bos):
    tokens = next(notebook_batches(ModelConfig(d_vocab=3), 200, incl_bos_token=bos))
    assert (tokens[:, 0] == 0).all().item() is bos
    assert (tokens[:, 1:] > 0).all()
    assert set(tokens[:, 1:].flatten().tolist()) == {1, 2}


@pytest.mark.parametrize("train", [NOTEBOOK.train, SPRINT.train], ids=["notebook", "own"])
def test_training_without_bos_has_none(train):
    tokens = next(training_batches(ModelConfig(), replace(train, incl_bos_token=False), 0))
    assert (tokens > 0).all()
    assert (next(training_batches(ModelConfig(), train, 0))[:, 0] == 0).all()


def test_a_seed_decides_its_own_stream_and_not_the_notebooks():
    def first(train, seed):
        return next(training_batches(ModelConfig(), train, seed))

    assert torch.equal(first(SPRINT.train, 1), first(SPRINT.train, 1))
    assert not torch.equal(first(SPRINT.train, 1), first(SPRINT.train, 2))
    assert torch.equal(first(NOTEBOOK.train, 1), first(NOTEBOOK.train, 2))


def test_held_out_sequences_are_in_no_training_stream():
    """Slip 1: the notebook evaluates on the tokens that it trains on."""
    held_out = {tuple(row) for stream in (0, 1) for row in held_out_tokens(ModelConfig(), 256, stream=stream).tolist()}
    assert len(held_out) == 512
    for train in (NOTEBOOK.train, SPRINT.train):
        batches = training_batches(ModelConfig(), train, 0)
        trained = {tuple(row) for _ in range(50) for row in next(batches).tolist()}
        assert not held_out & trained


def test_no_sequence_of_the_notebooks_stream_comes_twice_so_a_step_is_no_epoch():
    """Slip 5: the notebook calls steps epochs, as if its data came to an end and began again."""
    batches = notebook_batches(ModelConfig(), NOTEBOOK.train.batch_size)
    rows = [tuple(row) for _ in range(50) for row in next(batches).tolist()]
    assert len(set(rows)) == len(rows) == 50 * 256


def test_each_purpose_has_its_own_draws():
    draws = {purpose: torch.rand(4, generator=generator(purpose, 0)).tolist() for purpose in ("weights", "tokens")}
    assert draws["weights"] != draws["tokens"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("seed", [-1, 1.0, True, "0", 2**63])
def test_a_seed_that_is_none_is_an_error(seed):
    with pytest.raises(ConfigError, match="seed is "):
        generator("weights", seed)


@pytest.mark.parametrize("offset", [1, 2, 5])
def test_the_target_lies_the_offset_back(offset):
    tokens = torch.randint(0, 9, (4, 8), generator=generator("test", 0))
    logits = torch.full((4, 8, 9), -100.0)
    for position in range(offset, 8):
        logits[torch.arange(4), position, tokens[:, position - offset]] = 100.0
    losses = per_token_loss(logits, tokens, target_offset=offset)
    assert losses.shape == (4, 8 - offset)
    assert losses.max() == 0
    assert mean_loss(logits, tokens.flip(1), target_offset=offset) > 50


def test_shuffled_targets_are_those_of_the_sequence_before_in_the_batch():
    tokens = torch.arange(12).reshape(3, 4)
    assert targets(tokens, shuffled=True).tolist() == [[8, 9, 10], [0, 1, 2], [4, 5, 6]]
    assert targets(tokens, target_offset=2, shuffled=True).tolist() == [[8, 9], [0, 1], [4, 5]]
    together = torch.stack([tokens, tokens + 100])  # [model batch pos]
    assert torch.equal(targets(together, shuffled=True)[1], targets(tokens + 100, shuffled=True))
    assert targets(tokens).tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]
