"""What is known of each model of a sweep while it runs, and what an earlier run left of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from nopos.populations.folder import Folder
from nopos.populations.settings import Model
from nopos.training.fused import Kernel


@dataclass
class State:
    """What is known of each model, by its name."""

    models: list[Model]
    """In the order in which they were asked for."""
    kernels: dict[str, Kernel]
    """By the name of the setting."""
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the weights of those that are trained."""
    checked: set[str] = field(default_factory=set)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of those that failed: the index's line."""

    def to_train(self) -> list[Model]:
        """Those that are neither trained nor failed."""
        return [one for one in self.models if one.name not in self.digests and one.name not in self.failures]

    def to_check(self) -> list[Model]:
        """Those that are trained and neither checked nor failed."""
        trained = [one for one in self.models if one.name in self.digests]
        return [one for one in trained if one.name not in self.checked and one.name not in self.failures]

    def failed(self) -> list[dict[str, Any]]:
        """The lines of those that failed, in the order in which the models were asked for."""
        return [self.failures[one.name] for one in self.models if one.name in self.failures]

    def described(self) -> str:
        """How far it is, for the bar."""
        return f"{len(self.checked)} of {len(self.models)} models done, {len(self.failures)} failed"


def found_in(folder: Folder, models: list[Model], kernels: dict[str, Kernel], say: Callable[[str], None]) -> State:
    """What an earlier run left. A model's files decide, and what the index lacks of them is added to it.

    Of what failed, only what would fail the same way again stands.
    """
    state, noted = State(models, kernels), dict[tuple[str, str], dict[str, Any]]()
    for event in folder.events():
        noted[event["model"], event["event"]] = event
    for model in tqdm(models, desc="looking for what is there", unit="model", disable=None, leave=False):
        found, failure = folder.trained(model), noted.get((model.name, "failed"))
        if isinstance(found, str):
            say(f"{found}; it is made again")
        elif found is not None:
            state.digests[model.name] = found.sha256
            if (model.name, "trained") not in noted:
                folder.note({"model": model.name, "event": "trained", "sha256": found.sha256, "seconds": None})
            if folder.checked(model, found.sha256) is not None:
                state.checked.add(model.name)
                if (model.name, "checked") not in noted:
                    folder.note({"model": model.name, "event": "checked", "seconds": None})
        elif failure is not None and failure.get("final"):
            state.failures[model.name] = failure
    return state
