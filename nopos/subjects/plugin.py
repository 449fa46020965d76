"""The pytest provider of this project's subjects: options that name models, and the hook that gives them.

A project's conftest.py needs the one line `pytest_plugins = ["nopos.subjects.plugin"]`. Torch is imported when the
run starts, not when pytest reads its options.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest

from nopos.claims.control import Subject
from nopos.claims.run import SubjectLoader, is_worker
from nopos.subjects.shipped import REFERENCE

pytest_plugins = ["nopos.claims.plugin"]

SLOW_TESTS = ({"slow"}, {"slow", "claim"}, {"slow", "claim", "requested"})
"""The markers of a slow test that asks for a subject: of one that is no claim, and of claims."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nopos", "findings about models, as tests that can fail")
    group.addoption(
        "--nopos-checkpoint",
        action="append",
        default=[],
        metavar="FILE",
        help="a model to check: ours, or a HookedTransformer state dict (.safetensors, .pt, .pth); repeatable",
    )
    group.addoption(
        "--nopos-bidirectional",
        action="store_true",
        help="files of state dicts without a mask are of models that see later positions too (default: causal)",
    )
    group.addoption(
        "--nopos-recipe", metavar="NAME", help="check a model trained by this recipe, cached or trained now"
    )
    group.addoption("--nopos-seed", type=int, metavar="N", help="seed of the model of --nopos-recipe (default: 0)")
    group.addoption(
        "--nopos-device", metavar="D", help="where to train: cpu or cuda (default: CUDA where there is one)"
    )
    group.addoption("--nopos-retrain", action="store_true", help="train again what the cache holds")


def pytest_nopos_subjects(config: pytest.Config) -> Sequence[SubjectLoader]:
    """The models that the command line names; else the reference model and, when slow tests are wanted, trained ones.

    Named models are loaded here, so that a mistake ends the run in one line.
    """
    option = config.getoption
    files, recipe, seed, device = (option(f"nopos_{name}") for name in ("checkpoint", "recipe", "seed", "device"))
    slow = _slow_wanted(option("markexpr"))
    retrain: bool = option("nopos_retrain")
    if not slow and not files and not retrain and (recipe, seed, device) == (None, None, None):
        return [SubjectLoader(REFERENCE, _reference)]
    from nopos.storage.checkpoints import device_named
    from nopos.subjects import loaders

    loaders.require_possible(recipe=recipe, seed=seed, device=device, retrain=retrain, slow=slow and not files)
    retrain = retrain and not is_worker(config)  # under xdist the first process forgets for all
    if files or recipe is not None:
        if retrain and recipe is not None:
            loaders.forget(recipe, seed or 0, device_named(device))
        bidirectional: bool = option("nopos_bidirectional")
        named = loaders.named_subjects(files, recipe=recipe, seed=seed, device=device, bidirectional=bidirectional)
        return [SubjectLoader(subject.name, partial(_known, subject)) for subject in named]
    if retrain:
        for of, number in loaders.SLOW_MODELS:
            loaders.forget(of, number, device_named(device))
    return [SubjectLoader(REFERENCE, _reference), *loaders.slow_loaders(device_named(device))]


def _reference() -> Subject:
    from nopos.subjects.controls import reference

    return reference()


def _known(subject: Subject) -> Subject:
    return subject


def _slow_wanted(markers: str) -> bool:
    """Whether an expression in pytest's `-m` names the marker slow and selects a test that has it.

    Without the name none is wanted: `pytest` and `pytest -m requested` check the reference model alone.
    """
    # Private, but what is asked is what pytest selects, and this is where pytest decides it.
    from _pytest.mark.expression import Expression

    try:
        expression = Expression.compile(markers)
    except SyntaxError:  # of which pytest complains when it selects the tests
        return False
    named = "slow" in expression.idents()
    return named and any(expression.evaluate(partial(_has, marks)) for marks in SLOW_TESTS)


def _has(marks: set[str], name: str, /, **_: str | int | bool | None) -> bool:
    return name in marks
