"""Where a pytest session's subjects come from: its options, checked before any work, and what they name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nopos.errors import ConfigError

if TYPE_CHECKING:
    from nopos.claims import Outcome
    from nopos.controls import Control
    from nopos.subject import Subject

SLOW_SPRINT_SEEDS = (100, 101)
"""Seeds of the sprint models that the slow tier trains; no bound was set from them."""


@dataclass(frozen=True)
class Source:
    """A subject that the session can ask for."""

    name: str
    load: Callable[[], Subject]
    slow: bool = False


@dataclass
class Session:
    """What one pytest process knows: its sources, the subjects it has loaded, and the outcomes on controls by claim."""

    config: pytest.Config
    sources: dict[str, Source] = field(default_factory=dict)
    subjects: dict[str, Subject] = field(default_factory=dict)
    controls: dict[str, Subject] = field(default_factory=dict)
    on_controls: dict[str, dict[str, Outcome]] = field(default_factory=dict)

    def start(self) -> None:
        """Settle which subjects there are; load those that the command line names, so that a mistake ends the run.

        Raises:
            NoposError: an option that cannot be, or a named subject that cannot be loaded.
        """
        _check_options(self.config)
        for source in _sources(self.config):
            if source.name in self.sources:
                raise ConfigError(f"{source.name}: is named twice; name each model once")
            self.sources[source.name] = source
        if _named(self.config):
            for name in self.sources:
                self.subject(name)

    def subject(self, name: str) -> Subject:
        """Load a subject the first time it is wanted, with its progress bar on the terminal."""
        if name not in self.subjects:
            with _capture_off(self.config):
                self.subjects[name] = self.sources[name].load()
        return self.subjects[name]

    def control(self, control: Control) -> Subject:
        """Build a control the first time it is wanted."""
        if control.name not in self.controls:
            self.controls[control.name] = control.build()
        return self.controls[control.name]


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of xdist's workers."""
    return hasattr(config, "workerinput")


def _check_options(config: pytest.Config) -> None:
    option = config.getoption
    if option("nopos_device") is not None:
        from nopos.checkpoints import device_named

        device_named(option("nopos_device"))
    if option("nopos_seed") is not None and option("nopos_recipe") is None:
        raise ConfigError("seed is given without a recipe; name the recipe too, or leave the seed out")
    if option("nopos_json") is not None and not is_worker(config):
        from nopos.storage import require_place

        require_place(Path(option("nopos_json")), what="ledger", holding={"schema", "subjects"})


def _sources(config: pytest.Config) -> list[Source]:
    """The subjects that the command line names, else the reference model and, when slow tests are wanted, sprints."""
    option = config.getoption
    if _named(config):
        sources = [Source(name, partial(_load_file, name)) for name in option("nopos_checkpoint")]
        if option("nopos_recipe") is not None:
            sources.append(_recipe_source(config, option("nopos_recipe"), option("nopos_seed") or 0))
        return sources
    marks = option("markexpr")
    slow_wanted = "slow" in marks and "not slow" not in marks
    sprints = [_recipe_source(config, "sprint", seed, slow=True) for seed in SLOW_SPRINT_SEEDS if slow_wanted]
    return [Source("reference", _load_reference), *sprints]


def _named(config: pytest.Config) -> bool:
    return bool(config.getoption("nopos_checkpoint")) or config.getoption("nopos_recipe") is not None


def _load_reference() -> Subject:
    from nopos.controls import reference

    return reference()


def _load_file(name: str) -> Subject:
    from nopos import checkpoints
    from nopos.subject import Subject

    return Subject(name, checkpoints.load(Path(name)))


def _recipe_source(config: pytest.Config, recipe: str, seed: int, *, slow: bool = False) -> Source:
    """A model from the cache or trained; with `--nopos-retrain` the first process takes it out of the cache."""
    from nopos import cache, checkpoints
    from nopos.config import recipe_named

    wanted, device = recipe_named(recipe), checkpoints.device_named(config.getoption("nopos_device"))
    if config.getoption("nopos_retrain") and not is_worker(config):
        cache.forget(wanted, seed, device)

    def load() -> Subject:
        from nopos.subject import Subject

        return Subject(f"{recipe} seed {seed}", cache.load_or_train(wanted, seed, device))

    return Source(f"{recipe} seed {seed}", load, slow)


def _capture_off(config: pytest.Config) -> AbstractContextManager[None]:
    manager = config.pluginmanager.getplugin("capturemanager")
    return nullcontext() if manager is None else manager.global_and_fixture_disabled()
