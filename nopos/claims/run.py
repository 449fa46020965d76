"""What one pytest process knows: where its subjects come from, those that it has loaded, and its controls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import pytest

from nopos.claims.control import Subject
from nopos.claims.outcome import Controls
from nopos.errors import ConfigError


@dataclass(frozen=True)
class SubjectLoader:
    """A subject that a run can ask for, and how to get it.

    A provider that knows of a mistake before any work raises a NoposError from its hook; what `load` raises makes the
    tests of that subject fail.
    """

    name: str
    load: Callable[[], Subject]
    slow: bool = False
    """Whether its tests have the marker `slow`."""


@dataclass
class Run:
    """What one pytest process knows."""

    config: pytest.Config
    loaders: dict[str, SubjectLoader] = field(default_factory=dict)
    subjects: dict[str, Subject] = field(default_factory=dict)
    controls: Controls = field(default_factory=Controls)

    def start(self) -> None:
        """Ask the providers which subjects there are.

        Raises:
            NoposError: two subjects of one name, or what a provider objects to.
        """
        with _capture_off(self.config):
            provided: list[Sequence[SubjectLoader]] = self.config.hook.pytest_nopos_subjects(config=self.config)
        loaders = [loader for of_one in provided for loader in of_one]
        require_named_once([loader.name for loader in loaders])
        self.loaders = {loader.name: loader for loader in loaders}

    def subject(self, name: str) -> Subject:
        """Load a subject the first time it is wanted, with its progress bar on the terminal.

        Raises:
            NoposError: what loading objects to, no subject, or one that has another name than its loader.
        """
        if name not in self.subjects:
            with _capture_off(self.config):
                loaded: object = self.loaders[name].load()
            if not isinstance(loaded, Subject):
                kind = type(loaded).__name__
                raise ConfigError(
                    f"its loader gives a value of type {kind}; it must give a subject, as ModelSubject is"
                )
            if loaded.name != name:
                raise ConfigError(f"its loader gives a model called {loaded.name!r}; give both one name")
            self.subjects[name] = loaded
        return self.subjects[name]


def require_named_once(names: Sequence[str], *, as_what: Callable[[str], Hashable] = str) -> None:
    """Raise ConfigError if two names stand for one model, `as_what` being what a name stands for."""
    first: dict[Hashable, str] = {}
    for name in names:
        model = as_what(name)
        if model in first:
            also = f", also as {first[model]}" if first[model] != name else ""
            raise ConfigError(f"{name}: is named twice{also}; name each model once")
        first[model] = name


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of xdist's workers."""
    return hasattr(config, "workerinput")


def _capture_off(config: pytest.Config) -> AbstractContextManager[None]:
    manager = config.pluginmanager.getplugin("capturemanager")
    return nullcontext() if manager is None else manager.global_and_fixture_disabled()
