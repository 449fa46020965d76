"""Every error that a user can meet: one line that names the input, what is wrong and what would be right."""

from __future__ import annotations


class NoposError(Exception):
    """Base of all errors raised on purpose. The command line prints it as one line and exits with 2."""


class ConfigError(NoposError):
    """A recipe, seed, size, option or device that cannot be."""


class CheckpointError(NoposError):
    """A checkpoint that is missing, damaged, of another shape, or not a checkpoint at all."""


class StorageError(NoposError):
    """A folder or file that cannot be written."""


class TrainingError(NoposError):
    """Training that went wrong, with the step at which it did."""


class AnalysisError(NoposError):
    """An analysis that this model or these options do not allow."""


class NotMeasurableError(AnalysisError):
    """A model that lacks what an analysis is about, such as a second layer."""


class WorkerError(NoposError):
    """Processes that do not do the work that they are given."""


class ClaimError(NoposError):
    """A claim that breaks a rule of claims: an error in the claim, never a verdict on a model."""


class DamagedCacheEntry(UserWarning):
    """A cached model failed verification; it was set aside and is trained again."""


def require_one_of(
    name: str, value: object, allowed: tuple[str, ...], *, error: type[NoposError] = ConfigError
) -> None:
    """Raise the error unless the value is one of the names."""
    if value not in allowed:
        raise error(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
