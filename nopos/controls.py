"""The subjects on which claims must fail, each with a sentence on what it lacks.

The trained ones are committed; `fixtures/make_checkpoints.py` makes them again from the recipes here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nopos import checkpoints, storage
from nopos.analysis.folding import fold_layer_norm
from nopos.checkpoints import Checkpoint
from nopos.config import NOTEBOOK, SPRINT, ModelConfig, Recipe
from nopos.data import generator
from nopos.parameters import initial_parameters
from nopos.shipped import checkpoint_path
from nopos.subject import Subject
from nopos.theory import RELAY_CONFIG, relay_parameters

LEAK = 1e-3

REFERENCE = "reference"
TRAINED: dict[str, Recipe] = {
    REFERENCE: NOTEBOOK,
    "two_back": replace(SPRINT, train=replace(SPRINT.train, target_offset=2, steps=800)),
    "learned_positions": replace(SPRINT, model=replace(SPRINT.model, positions="learned")),
    "half_trained": replace(SPRINT, train=replace(SPRINT.train, steps=110)),
}
"""The recipe of each committed checkpoint; its seed is 0."""


@dataclass(frozen=True)
class Control:
    """A subject on which the claims that name it must fail."""

    name: str
    lacks: str
    build: Callable[[], Subject]
    another_mechanism: bool = False
    """Whether it is meant to solve the task, by another mechanism than the reference model's."""


def reference() -> Subject:
    """The committed no-position model, trained by the notebook's recipe."""
    return Subject(REFERENCE, checkpoints.load(checkpoint_path(REFERENCE)))


def _trained(name: str) -> Callable[[], Subject]:
    return lambda: Subject(name.replace("_", " "), checkpoints.load(checkpoint_path(name)))


def _written(name: str, config: ModelConfig, parameters: Mapping[str, Tensor]) -> Subject:
    digest = storage.sha256(storage.serialise(parameters))
    return Subject(name, Checkpoint(config=config, parameters=dict(parameters), sha256=digest))


def _untrained() -> Subject:
    config = NOTEBOOK.model
    return _written("untrained", config, initial_parameters(config, 0))


def _relay() -> Subject:
    return _written("relay", RELAY_CONFIG, relay_parameters())


def _leaking_positions() -> Subject:
    good = checkpoints.load(checkpoint_path(REFERENCE))
    noise = torch.randn(good.parameters["pos_embed.W_pos"].shape, generator=generator("leaking W_pos", 0))
    return _written("leaking positions", good.config, good.parameters | {"pos_embed.W_pos": LEAK * noise})


def _folded_without_a_bias() -> Subject:
    return Subject("folded without a bias", checkpoints.load(checkpoint_path(REFERENCE)), fold=_fold_dropping_a_bias)


def _fold_dropping_a_bias(config: ModelConfig, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bias = "blocks.1.ln2.b"
    return fold_layer_norm(config, {**parameters, bias: torch.zeros_like(parameters[bias])})


UNTRAINED = Control("untrained", "never saw a token; weights as drawn", _untrained)
HALF_TRAINED = Control(
    "half trained", "trained for 110 steps instead of 200; knows the task roughly", _trained("half_trained")
)
TWO_BACK = Control("two back", "trained to predict the token two back", _trained("two_back"))
LEARNED_POSITIONS = Control(
    "learned positions",
    "solves the task with a trained W_pos: one layer looks one slot back by position, nothing counts",
    _trained("learned_positions"),
    another_mechanism=True,
)
RELAY = Control(
    "relay",
    "solves the task with weights by hand: layer 0 looks one slot back by position, layer 1 only at its own slot",
    _relay,
    another_mechanism=True,
)
LEAKING_POSITIONS = Control(
    "leaking positions", f"the reference model with a W_pos of {LEAK:g} noise", _leaking_positions
)
FOLDED_WITHOUT_A_BIAS = Control(
    "folded without a bias", "the reference model with a twin that lost one LayerNorm bias", _folded_without_a_bias
)

CONTROLS = (
    UNTRAINED, HALF_TRAINED, TWO_BACK, LEARNED_POSITIONS, RELAY, LEAKING_POSITIONS, FOLDED_WITHOUT_A_BIAS,
)  # fmt: skip
