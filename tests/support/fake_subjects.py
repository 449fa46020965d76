"""Test-only: subjects without a model, controls made of them, and claims about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nopos.claims.claim import Claim, claim, claim_of
from nopos.claims.control import Control, Kind
from nopos.errors import ClaimError


@dataclass
class Fake:
    """A plain object that is a subject: numbers by name, and whether it solves its task."""

    name: str = "good"
    numbers: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "share": 0.9})
    solves: bool = True

    def __getitem__(self, name: str) -> float:
        return self.numbers[name]

    def solves_the_task(self) -> bool:
        """As it was set when it was made."""
        return self.solves

    @contextmanager
    def proven_unchanged(self) -> Iterator[None]:
        """Hold the numbers to what they were."""
        before = dict(self.numbers)
        yield
        if self.numbers != before:
            raise ClaimError(f"{self.name}: a test changed its numbers")

    def record(self) -> dict[str, Any]:
        """What the ledger says of it."""
        return {"description": "a fake", "sha256": "ab" * 32, "config": self.numbers, "recipe": None, "seed": None}


def control(name: str = "bad", kind: Kind = "broken", *, solves: bool = False, **numbers: float) -> Control:
    """A control whose model has these numbers; by default both comparisons of LOW are false on it."""
    numbers = {"loss": 9.0, "share": 0.1} | numbers
    return Control(name, f"{name} in all things", lambda: Fake(name, numbers, solves), kind)


def low(subject, measure):
    """The loss is low."""
    assert measure("loss", subject["loss"], "nats") < 1.0
    assert measure("share", subject["share"]) > 0.5


def claimed(*controls: Control, body: Callable[..., None] = low, **marked_with: Any) -> Claim:
    """A claim with these controls; behavioural unless its mark has other evidence."""
    marked = claim(**{"evidence": "behavioural", "source": "here", "refuted_by": controls, **marked_with})(body)
    found = claim_of(marked)
    assert found is not None
    return found
