from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict

import pytest
import torch

from nopos.model.config import ModelConfig
from nopos.model.data import held_out_tokens, mean_loss
from nopos.model.handwritten import (
    floor_of_one_causal_layer,
    floor_without_causal_mask,
    floor_without_tokens,
    relay_parameters,
)
from nopos.model.transformer import NoPosTransformer
from tests.support.micro import RELAY_CONFIG


def best_possible_loss(config, sees):
    """By enumeration of all sequences: the loss of the best predictor of the token before, given what it sees."""
    counts = defaultdict(Counter)
    for rest in itertools.product(range(1, config.d_vocab), repeat=config.n_ctx - 1):
        sequence = (0, *rest)
        for position in range(1, config.n_ctx):
            counts[sees(sequence, position)][sequence[position - 1]] += 1
    total = sum(sum(answers.values()) for answers in counts.values())
    lost = sum(-n * math.log(n / sum(answers.values())) for answers in counts.values() for n in answers.values())
    return lost / total


@pytest.mark.parametrize(("d_vocab", "n_ctx"), [(3, 5), (4, 4), (5, 5)])
@pytest.mark.parametrize(
    ("floor", "sees"),
    [
        (floor_without_tokens, lambda sequence, position: position),
        (floor_without_causal_mask, lambda sequence, position: (sequence[position], tuple(sorted(sequence)))),
        (
            floor_of_one_causal_layer,
            lambda sequence, position: (sequence[position], tuple(sorted(sequence[: position + 1]))),
        ),
    ],
)
def test_a_floor_is_what_the_best_predictor_reaches(d_vocab, n_ctx, floor, sees):
    config = ModelConfig(d_vocab=d_vocab, n_ctx=n_ctx)
    assert floor(config) == pytest.approx(best_possible_loss(config, sees), rel=1e-12)


def test_the_floors_of_the_notebooks_task():
    floors = [
        floor(ModelConfig()) for floor in (floor_without_tokens, floor_without_causal_mask, floor_of_one_causal_layer)
    ]
    assert floors == pytest.approx([5.58411, 3.78840, 2.81864], abs=5e-6)


def test_the_relay_solves_the_task():
    model, tokens = NoPosTransformer(RELAY_CONFIG, relay_parameters(RELAY_CONFIG)), held_out_tokens(RELAY_CONFIG, 64)
    logits = model(tokens)
    assert (logits[:, 1:].argmax(-1) == tokens[:, :-1]).all()
    assert 0 < mean_loss(logits, tokens).item() < 0.01


def test_the_relay_is_the_same_each_time():
    first, second = relay_parameters(RELAY_CONFIG), relay_parameters(RELAY_CONFIG)
    assert all(torch.equal(first[name], second[name]) for name in first)
