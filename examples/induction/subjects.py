"""The model under test, and the controls: models on which its claims must fail."""

from __future__ import annotations

from copy import deepcopy

import torch
from safetensors.torch import load_file

from analyses import answers_right
from model import AttentionOnly, Sizes
from nopos import Control, ModelSubject
from sequences import ONE_PERIOD, PERIODS, repeats, with_copy_of_another
from train import WEIGHTS

N_SEQUENCES = 128


def as_subject(name: str, model: AttentionOnly, *, description: str, periods: range = PERIODS) -> ModelSubject:
    """A model with sequences of its task that it has not been trained on."""
    tokens, drawn = repeats(N_SEQUENCES, periods, _held_out())
    return ModelSubject(
        name,
        {"model": model.eval()},
        {"tokens": tokens, "periods": drawn},
        solves_the_task=solves_the_task,
        record={"description": description},
    )


def solves_the_task(model: AttentionOnly, tokens: torch.Tensor, periods: torch.Tensor) -> bool:
    """Whether nine in ten answers are right."""
    return answers_right(model, tokens, periods) > 0.9


def induction() -> ModelSubject:
    """The model under test."""
    return as_subject("induction", _committed("induction"), description="trained by train.py with seed 0")


def _untrained() -> ModelSubject:
    return as_subject("untrained", AttentionOnly(Sizes(), seed=0), description="weights as drawn")


def _one_layer() -> ModelSubject:
    return as_subject("one layer", _committed("one_layer", n_layers=1), description="trained alike with one layer")


def _fixed_lag() -> ModelSubject:
    description = "trained on sequences of one period, with a last layer that writes nothing"
    return as_subject("fixed lag", _committed("fixed_lag"), description=description, periods=ONE_PERIOD)


def _another_sequence(subject: ModelSubject) -> ModelSubject:
    generator = _held_out()
    tokens, periods = repeats(N_SEQUENCES, PERIODS, generator)
    return ModelSubject(
        "another sequence",
        {"model": deepcopy(subject.model)},
        {"tokens": with_copy_of_another(tokens, periods, generator), "periods": periods},
        solves_the_task=solves_the_task,
        record={"description": f"{subject.name} on sequences that end with a copy of another one"},
    )


UNTRAINED = Control("untrained", "weights as drawn; it has learned nothing", _untrained, "broken")
ONE_LAYER = Control(
    "one layer", "trained alike with one layer; nothing reads what its heads moved", _one_layer, "broken"
)
ANOTHER_SEQUENCE = Control(
    "another sequence",
    "the same model on sequences whose end repeats another sequence; there is nothing to be found",
    _another_sequence,
    "other task",
)
FIXED_LAG = Control(
    "fixed lag",
    "trained on sequences of one period; layer 0 attends 15 back by position, whatever stands there",
    _fixed_lag,
    "other mechanism",
)


def _committed(name: str, n_layers: int = 2) -> AttentionOnly:
    model = AttentionOnly(Sizes(n_layers=n_layers), seed=0)
    model.load_state_dict(load_file(WEIGHTS / f"{name}.safetensors"))
    return model


def _held_out() -> torch.Generator:
    return torch.Generator().manual_seed(1_000_000)  # training's seeds are 1,000 and a model's
