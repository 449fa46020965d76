"""What a subject can be made of; else one line that names the subject, what is wrong and what would be right."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nopos.claims.records import DESCRIBING
from nopos.errors import ClaimError


def require_models_and_data(name: object, models: object, data: object) -> None:
    """Look at what a subject is to be made of.

    Raises:
        ClaimError: the name is no text, models or data are not given by name, there is no `model`, a model is no torch
            model or has weights without values, or one name stands for two things.
    """
    if not isinstance(name, str) or not name:
        raise ClaimError(f"a subject's name is {_what(name)}; give a text that says which model it is")
    by_name = _by_name(name, "models", models, '{"model": model}')
    if "model" not in by_name:
        raise ClaimError(f"{name}: has {', '.join(by_name) or 'no models'}; one of its models must be called model")
    both = [one for one in _by_name(name, "data", data, '{"tokens": tokens}') if one in by_name]
    if both:
        raise ClaimError(f"{name}: {both[0]!r} is a model and data too; give each a name of its own")
    for one, model in by_name.items():
        if not isinstance(model, nn.Module):
            raise ClaimError(f"{name}: its model {one!r} is {_what(model)}; it must be a torch.nn.Module")
        if any(is_lazy(weights) for weights in (*model.parameters(), *model.buffers())):
            raise ClaimError(f"{name}: its model {one!r} has weights without values; run it once before")


def _by_name(name: str, which: str, given: object, right: str) -> Mapping[str, object]:
    if not isinstance(given, Mapping):
        raise ClaimError(f"{name}: {which} is {_what(given)}; give a dict, such as {right}")
    for one in given:
        if not isinstance(one, str) or not one.isidentifier():
            raise ClaimError(f"{name}: {which} has the name {one!r}; give names that a function's parameters can have")
    return given


def require_dense(name: str, one: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Look at the tensors of a model or of data: only dense ones with values can be compared and put back.

    Args:
        name: of the subject.
        one: the name of the model or of the data.
        tensors: each with where in it that is.

    Raises:
        ClaimError: one is sparse, nested, or on the meta device.
    """
    for where, tensor in tensors:
        within, there = ("has", f" ({where})") if where else ("is", "")
        problem = ""
        if tensor.is_nested:
            problem = f"a nested tensor{there}; give a list of tensors, as .unbind() does"
        elif tensor.layout is not torch.strided:
            problem = f"a sparse tensor{there}; make it dense, as .to_dense() does"
        elif tensor.is_meta:
            problem = f"a tensor on the meta device{there}, which has no values; load them onto the CPU"
        if problem:
            raise ClaimError(f"{name}: its {one!r} {within} {problem}")


def require_record(name: str, record: object) -> None:
    """Look at what a ledger is to say of a model.

    Raises:
        ClaimError: it is not given by name, says what a ledger has no field for, or is not in plain values.
    """
    if record is None:
        return
    if not isinstance(record, Mapping):
        raise ClaimError(
            f'{name}: record is {_what(record)}; give a dict, such as {{"description": "trained in March"}}'
        )
    for field, value in record.items():
        if field not in DESCRIBING:
            raise ClaimError(f"{name}: record has {field!r}; it may have {', '.join(DESCRIBING)}")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ClaimError(f"{name}: {field} of its record: {error}; give plain values that JSON has") from None


def require_answer(name: str, answer: object) -> bool:
    """The True or False that `solves_the_task` gives; one in a tensor or array is one too.

    Raises:
        ClaimError: it gives something else, such as the loss itself.
    """
    if isinstance(answer, Tensor | np.ndarray | np.generic) and np.prod(answer.shape) == 1:
        answer = answer.item()
    if not isinstance(answer, bool):
        raise ClaimError(
            f"{name}: solves_the_task gives {_what(answer)}; it must give True or False, as loss < 0.1 does"
        )
    return answer


def require_arguments(
    name: str, analysis: object, offered: Mapping[str, object], options: Mapping[str, object], *, what: str
) -> dict[str, object]:
    """What an analysis is called with: the options, and what else it asks for by the names of its parameters.

    Args:
        name: of the subject.
        analysis: a function.
        offered: the subject's models and data.
        options: that the claim gives.
        what: what a message calls the analysis.

    Raises:
        ClaimError: it is no function, asks for what there is not, or has no such option.
    """
    __tracebackhide__ = True
    if not callable(analysis):
        raise ClaimError(f"{name}: {what} is {_what(analysis)}; give a function that asks for {' or '.join(offered)}")
    try:
        signature = inspect.signature(analysis)
    except ValueError:  # as of functions that are written in C
        raise ClaimError(f"{name}: {what} does not show its parameters; wrap it in a function that does") from None
    arguments = {one: offered[one] for one in signature.parameters if one in offered} | dict(options)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        given = f", and the options are {', '.join(options)}" if options else ""
        raise ClaimError(f"{name}: {what}: {error}; the subject has {', '.join(offered)}{given}") from None
    return arguments


def called(analysis: object) -> str:
    """What a message calls an analysis."""
    return str(getattr(analysis, "__name__", type(analysis).__name__))


def _what(value: object) -> str:
    """A value as a message shows it: a short one itself, another by its type."""
    plain = value is None or isinstance(value, str | int | float)
    return repr(value) if plain else f"a value of type {type(value).__name__}"
