"""The controls of each size of a sweep, evaluated once in a run by all workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nopos.claims.outcome import OnControls
from nopos.model.config import ModelConfig
from nopos.populations import work
from nopos.populations.engine import Engine, each_done
from nopos.subjects.sizes import in_words


@dataclass(frozen=True, kw_only=True)
class EvaluatedControls:
    """What came out on the controls, by the size of the models that they are for."""

    known: Mapping[ModelConfig, OnControls]
    ledgers: Mapping[str, dict[str, Any]]
    """By the size in words."""
    failures: Mapping[ModelConfig, str]
    """Why nothing came out for the other sizes, in one line."""


def evaluated(engine: Engine, sizes: Sequence[ModelConfig]) -> EvaluatedControls:
    """Evaluate every claim on the controls of each size, of which each worker has a share.

    A size whose controls cannot be evaluated stops no other.

    Args:
        engine: that has nothing to do yet.
        sizes: of good models, each once.
    """
    known: dict[ModelConfig, OnControls] = {}
    ledgers: dict[str, dict[str, Any]] = {}
    failures: dict[ModelConfig, str] = {}
    wanted = [(size, share, engine.workers) for size in sizes for share in range(engine.workers)]
    shares = each_done(engine, work.evaluate_controls, wanted)
    for row, size in enumerate(sizes):
        of_size = shares[row * engine.workers : (row + 1) * engine.workers]
        why_not = [done.failure for done in of_size if done.failure is not None]
        if why_not:
            failures[size] = f"the controls of {in_words(size)} cannot be evaluated: {why_not[0]}"
        else:
            known[size], ledgers[in_words(size)] = work.joined([done.value for done in of_size])
    return EvaluatedControls(known=known, ledgers=ledgers, failures=failures)
