"""What one pytest process knows: where its subjects come from, those that it has loaded, and its controls."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, no_type_check

import pytest

from nopos.claims.control import Subject
from nopos.claims.outcome import Controls
from nopos.errors import ConfigError, NoposError


@no_type_check  # its fields are checked, in words for users, when it is asked for
@dataclass(frozen=True)
class SubjectLoader:
    """A subject that a run can ask for, and how to get it.

    What `load` raises makes the tests of that subject fail.
    """

    name: str
    load: Callable[[], Subject]
    slow: bool = False
    """Whether its tests have the marker `slow`."""


@dataclass
class Run:
    """What one pytest process knows."""

    config: pytest.Config
    subjects: dict[str, Subject] = field(default_factory=dict)
    controls: Controls = field(default_factory=Controls)
    _answers: dict[int, Sequence[SubjectLoader] | None] = field(default_factory=dict)
    """What each provider named, by its identity; None if it left that to others."""
    _known: dict[str, SubjectLoader] = field(default_factory=dict)
    """All that was named."""

    def loaders(self, hook: Any) -> Sequence[SubjectLoader]:
        """The subjects that the nearest provider of a folder names, each provider being asked once.

        Args:
            hook: pytest's `ihook` of something in the folder.

        Raises:
            NoposError: two subjects of one name, in whatever folders, or what a provider objects to.
        """
        for provider in reversed(hook.pytest_nopos_subjects.get_hookimpls()):  # in the order in which pytest asks
            key = id(provider.plugin)
            if key not in self._answers:
                answer = self._asked(provider)
                new = [one for one in answer or () if self._known.get(one.name) is not one]
                require_named_once([*self._known, *(one.name for one in new)])
                self._known |= {one.name: one for one in new}
                self._answers[key] = answer
            if (loaders := self._answers[key]) is not None:
                return loaders
        return ()

    def _asked(self, provider: Any) -> Sequence[SubjectLoader] | None:
        try:
            with _capture_off(self.config):
                named: object = provider.function(**dict.fromkeys(provider.argnames, self.config))
        except NoposError:
            raise
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{line.filename}:{line.lineno}"
            raise ConfigError(f"pytest_nopos_subjects: {type(error).__name__}: {error} ({where})") from None
        return None if named is None else _loaders(named)

    def subject(self, name: str) -> Subject:
        """Load a subject the first time it is wanted, with its progress bar on the terminal.

        Raises:
            NoposError: what loading objects to, no subject, or one that has another name than its loader.
        """
        if name not in self.subjects:
            with _capture_off(self.config):
                loaded: object = self._known[name].load()
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


def _loaders(loaders: object) -> Sequence[SubjectLoader]:
    """What a provider has named, if it is what it must be."""
    if not isinstance(loaders, Sequence) or not all(isinstance(one, SubjectLoader) for one in loaders):
        raise ConfigError(f"pytest_nopos_subjects gives {loaders!r}; it must give a list of SubjectLoader")
    for loader in loaders:
        if not callable(loader.load):
            raise ConfigError(f"{loader.name}: load is {loader.load!r}; give the function that makes the subject")
    return loaders


def _capture_off(config: pytest.Config) -> AbstractContextManager[None]:
    manager = config.pluginmanager.getplugin("capturemanager")
    return nullcontext() if manager is None else manager.global_and_fixture_disabled()
