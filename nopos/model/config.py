"""What a model is: a frozen dataclass of its sizes, and how configs are compared and checked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, TypeVar, no_type_check, runtime_checkable

from nopos.errors import ConfigError, require_one_of

BOS = 0
LAYER_NORM_EPS = 1e-5


@runtime_checkable
class DataclassInstance(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Config = TypeVar("Config", bound=DataclassInstance)


@no_type_check  # its fields come from files and command lines; it checks them itself, in words for users
@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture; the defaults are the notebook's (step 2). Its ReLU and causal softmax have no field."""

    n_layers: int = 2
    n_heads: int = 1
    d_model: int = 64
    d_head: int = 64
    d_mlp: int = 256
    d_vocab: int = 300
    n_ctx: int = 50
    causal: bool = True
    positions: Literal["none", "learned"] = "none"
    normalization: Literal["LN", "LNPre"] = "LN"
    """`LNPre` centres and scales without a weight or a bias: what is left when they are folded."""

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx"):
            require_int(name, getattr(self, name), at_least=1)
        if self.d_vocab < 2:
            raise ConfigError(f"d_vocab is {self.d_vocab}; BOS and at least one other token need 2")
        require_bool("causal", self.causal)
        require_one_of("positions", self.positions, ("none", "learned"))
        require_one_of("normalization", self.normalization, ("LN", "LNPre"))


def changes(config: Config, since: Config) -> dict[str, Any]:
    """The fields in which a config differs from another of its kind, with its values."""
    values = ((item.name, getattr(config, item.name), getattr(since, item.name)) for item in fields(config))
    return {name: value for name, value, old in values if value != old}


def overrides(config: DataclassInstance) -> dict[str, Any]:
    """The fields that differ from their defaults, so that a new field changes no old hash."""
    return changes(config, type(config)())


def content_hash(value: Any) -> str:
    """16 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def require_int(name: str, value: object, *, at_least: int) -> None:
    """Raise ConfigError unless the value is an integer that is large enough."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {at_least}")


def require_seed(seed: object) -> None:
    """Raise ConfigError unless the value is an integer from 0 to 2^63 - 1."""
    require_int("seed", seed, at_least=0)
    if isinstance(seed, int) and seed >= 2**63:
        raise ConfigError("seed is too large; it must be below 2^63")


def require_bool(name: str, value: object) -> None:
    """Raise ConfigError unless the value is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it must be true or false")
