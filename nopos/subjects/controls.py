"""The subjects on which claims must fail, each of the size of the subject under test, with a sentence on what it lacks.

Those that are trained are committed for the notebook's size; `fixtures/make_checkpoints.py` makes them again from the
recipes in `sizes`. A good model is here the reference model, or of another size one by `sprint`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from nopos.claims.control import Control, Kind
from nopos.claims.control import Subject as AnySubject
from nopos.errors import ClaimError
from nopos.mechanism.count import PATTERN, median_dilution, pattern_of_counts
from nopos.methods.attention import average_bos_key
from nopos.methods.folding import fold_layer_norm
from nopos.methods.interventions import Edit
from nopos.model.config import ModelConfig
from nopos.model.damage import with_permuted_matrices
from nopos.model.data import generator
from nopos.model.handwritten import relay_config, relay_parameters
from nopos.model.hook_points import hook_point
from nopos.model.parameters import initial_parameters
from nopos.storage import checkpoints, files, tensor_files
from nopos.storage.checkpoints import Checkpoint
from nopos.subjects.shipped import REFERENCE, checkpoint_path
from nopos.subjects.sizes import described, good_model, size_of, trained
from nopos.subjects.subject import Subject

LEAK = 1e-3

OfSize = Callable[[str, ModelConfig], Subject]
"""Makes a subject of that name and size."""


def reference() -> Subject:
    """The committed no-position model, trained by the notebook's recipe."""
    return Subject(REFERENCE, checkpoints.load(checkpoint_path(REFERENCE)))


def _control(name: str, lacks: str, of_size: OfSize, kind: Kind) -> Control:
    """A control that subjects of one size share."""

    def build(subject: AnySubject) -> Subject:
        if not isinstance(subject, Subject):
            raise ClaimError(f"{subject.name} is not a model of nopos's kind; name controls of its own kind")
        return of_size(name, size_of(subject.config))

    return Control(name, lacks, build, kind, made_for=described)


def _trained(name: str, size: ModelConfig) -> Subject:
    return Subject(name, trained(name.replace(" ", "_"), size))


def _written(name: str, config: ModelConfig, parameters: Mapping[str, Tensor]) -> Subject:
    digest = files.sha256(tensor_files.serialise(parameters))
    return Subject(name, Checkpoint(config=config, parameters=dict(parameters), sha256=digest))


def _untrained(name: str, size: ModelConfig) -> Subject:
    return _written(name, size, initial_parameters(size, 0))


def _relay(name: str, size: ModelConfig) -> Subject:
    config = relay_config(size)
    return _written(name, config, relay_parameters(config))


def _leaking_positions(name: str, size: ModelConfig) -> Subject:
    good = trained(REFERENCE, size)
    noise = torch.randn(good.parameters["pos_embed.W_pos"].shape, generator=generator("leaking W_pos", 0))
    return _written(name, size, good.parameters | {"pos_embed.W_pos": LEAK * noise})


def _permuted_weights(name: str, size: ModelConfig) -> Subject:
    permuted = with_permuted_matrices(size, trained(REFERENCE, size).parameters, generator("permuted weights", 0))
    return _written(name, size, permuted)


def _edited(hook_point: str, edit: Edit) -> OfSize:
    """A good model with a standing edit."""
    return lambda name, size: Subject(name, good_model(size), interventions={hook_point: edit})


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


def _clock(name: str, size: ModelConfig) -> Subject:
    good = good_model(size)
    counts = torch.arange(size.n_ctx, dtype=torch.float32)
    a = median_dilution(Subject(name, good).folded).float()[None, :, None].expand(1, -1, len(counts))
    by_position = pattern_of_counts(a, counts)
    return Subject(name, good, interventions={PATTERN: lambda _: by_position})


def _folded_without_a_bias(name: str, size: ModelConfig) -> Subject:
    return Subject(name, trained(REFERENCE, size), fold=_fold_dropping_a_bias)


def _fold_dropping_a_bias(config: ModelConfig, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bias = f"blocks.{config.n_layers - 1}.ln2.b"
    return fold_layer_norm(config, {**parameters, bias: torch.zeros_like(parameters[bias])})


UNTRAINED = _control("untrained", "never saw a token; weights as drawn", _untrained, "broken")
HALF_TRAINED = _control(
    "half trained", "trained for 110 steps instead of 200; knows the task roughly", _trained, "broken"
)
SHUFFLED_TARGETS = _control(
    "shuffled targets",
    "trained to give the tokens of another sequence; nothing to learn",
    _trained,
    "other task",
)
NO_CAUSAL_MASK = _control(
    "no causal mask",
    "trained without the causal mask; every position sees the same, nothing counts",
    _trained,
    "broken",
)
ONE_LAYER = _control("one layer", "trained with one layer; no layer reads what another has counted", _trained, "broken")
NO_BOS = _control(
    "no BOS",
    "trained without BOS, which is a token like no other to it; something else is counted",
    _trained,
    "other task",
)
PERMUTED_WEIGHTS = _control(
    "permuted weights",
    "a good model with the entries of each matrix in another order",
    _permuted_weights,
    "broken",
)
WITHOUT_BOS_KEY = _control(
    "without BOS key",
    "a good model, but layer 0's key of BOS is the mean of the others; BOS gets no more than its share",
    _edited(hook_point(0, "attn.k"), average_bos_key),
    "near miss",
)
CONTENT_ALONE = _control(
    "content alone",
    "a good model, but layer 1's scores are less their mean over the batch; no kernel over position",
    _edited(hook_point(1, "attn.attn_scores"), _content_alone),
    "near miss",
)
CLOCK = _control(
    "clock",
    "a good model, but layer 0's attention is set by the number of the position; nothing is counted",
    _clock,
    "near miss",
)
UNIFORM_LAYER_1 = _control(
    "uniform layer 1",
    "a good model, but layer 1 attends to all it may see alike",
    _edited(hook_point(1, "attn.attn_scores"), _all_alike),
    "near miss",
)
TWO_BACK = _control("two back", "trained to predict the token two back", _trained, "other task")
LEARNED_POSITIONS = _control(
    "learned positions",
    "solves the task with a trained W_pos: one layer looks one position back by it, nothing counts",
    _trained,
    "other mechanism",
)
RELAY = _control(
    "relay",
    "solves the task with weights by hand: layer 0 looks one position back by W_pos, layer 1 only at its own position",
    _relay,
    "other mechanism",
)
LEAKING_POSITIONS = _control(
    "leaking positions", f"a good model with a W_pos of {LEAK:g} noise", _leaking_positions, "near miss"
)
FOLDED_WITHOUT_A_BIAS = _control(
    "folded without a bias",
    "a good model with a folded model that lost one LayerNorm bias",
    _folded_without_a_bias,
    "damaged artefact",
)

CONTROLS = (
    UNTRAINED, HALF_TRAINED, SHUFFLED_TARGETS, TWO_BACK, NO_CAUSAL_MASK, ONE_LAYER, NO_BOS, LEARNED_POSITIONS, RELAY,
    PERMUTED_WEIGHTS, WITHOUT_BOS_KEY, CLOCK, CONTENT_ALONE, UNIFORM_LAYER_1, LEAKING_POSITIONS, FOLDED_WITHOUT_A_BIAS,
)  # fmt: skip
