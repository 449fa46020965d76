"""The subjects on which claims must fail, each with a sentence on what it lacks.

The trained ones are committed; `fixtures/make_checkpoints.py` makes them again from the recipes here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nopos.claims.control import Control
from nopos.mechanism.count import PATTERN, median_dilution, pattern_of_counts
from nopos.methods.attention import average_bos_key
from nopos.methods.folding import fold_layer_norm
from nopos.methods.interventions import Edit
from nopos.model.config import ModelConfig
from nopos.model.damage import with_permuted_matrices
from nopos.model.data import generator
from nopos.model.handwritten import RELAY_CONFIG, relay_parameters
from nopos.model.hook_points import hook_point
from nopos.model.parameters import initial_parameters
from nopos.model.recipes import NOTEBOOK, SPRINT, Recipe
from nopos.storage import checkpoints, files, tensor_files
from nopos.storage.checkpoints import Checkpoint
from nopos.subjects.shipped import REFERENCE, checkpoint_path
from nopos.subjects.subject import Subject

LEAK = 1e-3

TRAINED: dict[str, Recipe] = {
    REFERENCE: NOTEBOOK,
    "two_back": replace(SPRINT, train=replace(SPRINT.train, target_offset=2, steps=800)),
    "learned_positions": replace(SPRINT, model=replace(SPRINT.model, positions="learned")),
    "shuffled_targets": replace(SPRINT, train=replace(SPRINT.train, shuffled_targets=True)),
    "no_causal_mask": replace(SPRINT, model=replace(SPRINT.model, causal=False)),
    "one_layer": replace(SPRINT, model=replace(SPRINT.model, n_layers=1)),
    "no_BOS": replace(SPRINT, train=replace(SPRINT.train, incl_bos_token=False)),
    "half_trained": replace(SPRINT, train=replace(SPRINT.train, steps=110)),
}
"""The recipe of each committed checkpoint; its seed is 0."""


def reference() -> Subject:
    """The committed no-position model, trained by the notebook's recipe."""
    return Subject(REFERENCE, _good_checkpoint())


def _trained(name: str) -> Callable[[], Subject]:
    return lambda: Subject(name.replace("_", " "), checkpoints.load(checkpoint_path(name)))


def _written(name: str, config: ModelConfig, parameters: Mapping[str, Tensor]) -> Subject:
    digest = files.sha256(tensor_files.serialise(parameters))
    return Subject(name, Checkpoint(config=config, parameters=dict(parameters), sha256=digest))


def _untrained() -> Subject:
    config = NOTEBOOK.model
    return _written("untrained", config, initial_parameters(config, 0))


def _relay() -> Subject:
    return _written("relay", RELAY_CONFIG, relay_parameters())


def _leaking_positions() -> Subject:
    good = _good_checkpoint()
    noise = torch.randn(good.parameters["pos_embed.W_pos"].shape, generator=generator("leaking W_pos", 0))
    return _written("leaking positions", good.config, good.parameters | {"pos_embed.W_pos": LEAK * noise})


def _permuted_weights() -> Subject:
    good = _good_checkpoint()
    permuted = with_permuted_matrices(good.config, good.parameters, generator("permuted weights", 0))
    return _written("permuted weights", good.config, permuted)


def _edited(name: str, hook_point: str, edit: Edit) -> Callable[[], Subject]:
    """The reference model with a standing edit."""
    return lambda: Subject(name, _good_checkpoint(), interventions={hook_point: edit})


def _good_checkpoint() -> Checkpoint:
    return checkpoints.load(checkpoint_path(REFERENCE))


def _content_alone(
    scores: Float[Tensor, "batch head query_pos key_pos"],
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """Each permitted score less its mean over the batch, which is all that it says of position."""
    return torch.where(scores.isfinite(), scores - scores.mean(dim=0), scores)


def _all_alike(
    scores: Float[Tensor, "batch head query_pos key_pos"],
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """The same score for every key that a query may see."""
    return torch.where(scores.isfinite(), 0.0, scores)


def _clock() -> Subject:
    good = reference()
    counts = torch.arange(good.config.n_ctx, dtype=torch.float32)
    a = median_dilution(good.folded).float()[None, :, None].expand(1, -1, len(counts))
    by_position = pattern_of_counts(a, counts)
    return Subject("clock", good.checkpoint, interventions={PATTERN: lambda _: by_position})


def _folded_without_a_bias() -> Subject:
    return Subject("folded without a bias", _good_checkpoint(), fold=_fold_dropping_a_bias)


def _fold_dropping_a_bias(config: ModelConfig, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bias = "blocks.1.ln2.b"
    return fold_layer_norm(config, {**parameters, bias: torch.zeros_like(parameters[bias])})


UNTRAINED = Control("untrained", "never saw a token; weights as drawn", _untrained, "broken")
HALF_TRAINED = Control(
    "half trained", "trained for 110 steps instead of 200; knows the task roughly", _trained("half_trained"), "broken"
)
SHUFFLED_TARGETS = Control(
    "shuffled targets",
    "trained to give the tokens of another sequence; nothing to learn",
    _trained("shuffled_targets"),
    "other task",
)
NO_CAUSAL_MASK = Control(
    "no causal mask",
    "trained without the causal mask; every position sees the same, nothing counts",
    _trained("no_causal_mask"),
    "broken",
)
ONE_LAYER = Control(
    "one layer", "trained with one layer; no layer reads what another has counted", _trained("one_layer"), "broken"
)
NO_BOS = Control(
    "no BOS",
    "trained without BOS, which is a token like no other to it; something else is counted",
    _trained("no_BOS"),
    "other task",
)
PERMUTED_WEIGHTS = Control(
    "permuted weights",
    "the reference model with the entries of each matrix in another order",
    _permuted_weights,
    "broken",
)
WITHOUT_BOS_KEY = Control(
    "without BOS key",
    "the reference model, but layer 0's key of BOS is the mean of the others; BOS gets no more than its share",
    _edited("without BOS key", hook_point(0, "attn.k"), average_bos_key),
    "near miss",
)
CONTENT_ALONE = Control(
    "content alone",
    "the reference model, but layer 1's scores are less their mean over the batch; no kernel over position",
    _edited("content alone", hook_point(1, "attn.attn_scores"), _content_alone),
    "near miss",
)
CLOCK = Control(
    "clock",
    "the reference model, but layer 0's attention is set by the number of the position; nothing is counted",
    _clock,
    "near miss",
)
UNIFORM_LAYER_1 = Control(
    "uniform layer 1",
    "the reference model, but layer 1 attends to all it may see alike",
    _edited("uniform layer 1", hook_point(1, "attn.attn_scores"), _all_alike),
    "near miss",
)
TWO_BACK = Control("two back", "trained to predict the token two back", _trained("two_back"), "other task")
LEARNED_POSITIONS = Control(
    "learned positions",
    "solves the task with a trained W_pos: one layer looks one position back by it, nothing counts",
    _trained("learned_positions"),
    "other mechanism",
)
RELAY = Control(
    "relay",
    "solves the task with weights by hand: layer 0 looks one position back by W_pos, layer 1 only at its own position",
    _relay,
    "other mechanism",
)
LEAKING_POSITIONS = Control(
    "leaking positions", f"the reference model with a W_pos of {LEAK:g} noise", _leaking_positions, "near miss"
)
FOLDED_WITHOUT_A_BIAS = Control(
    "folded without a bias",
    "the reference model with a folded model that lost one LayerNorm bias",
    _folded_without_a_bias,
    "damaged artefact",
)

CONTROLS = (
    UNTRAINED, HALF_TRAINED, SHUFFLED_TARGETS, TWO_BACK, NO_CAUSAL_MASK, ONE_LAYER, NO_BOS, LEARNED_POSITIONS, RELAY,
    PERMUTED_WEIGHTS, WITHOUT_BOS_KEY, CLOCK, CONTENT_ALONE, UNIFORM_LAYER_1, LEAKING_POSITIONS, FOLDED_WITHOUT_A_BIAS,
)  # fmt: skip
