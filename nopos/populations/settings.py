"""Which models a sweep is of: settings are recipes times a grid of fields, models are settings times seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from nopos.errors import ConfigError
from nopos.model.config import ModelConfig
from nopos.model.recipes import Recipe, TrainConfig, recipe_named

PREFIX = "train."
LONGEST_NAME = 200
"""Characters of a model's name: most file systems take 255 with the ending."""
_SIZES = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx")
"""Fields of ModelConfig; without positions and with a causal mask is what all models of a sweep are."""
_DEFAULTS: dict[str, Any] = {f"{PREFIX}{field.name}": field.default for field in fields(TrainConfig)}
_DEFAULTS |= {name: getattr(ModelConfig(), name) for name in _SIZES}
_TRUTH = {"true": True, "false": False}

Value = Any
"""A number, a truth value, a word, or a pair of numbers."""
Grid = Mapping[str, Sequence[Value]]
"""By size of the model, or field of TrainConfig after `train.`, the values that it takes."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A way to train models, of which a sweep makes one for each seed."""

    name: str
    """The recipe's, and what the grid changes."""
    recipe: Recipe
    """The changed one, under the name of the recipe that it comes from."""
    grid: tuple[tuple[str, Value], ...]
    """What the grid changes: field and value."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model of a sweep, trained or not."""

    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        """Its name in ledgers and index, and that of its files."""
        return f"{self.setting.name}-seed-{self.seed}"


def settings_of(recipes: Sequence[str], grid: Grid) -> list[Setting]:
    """Each recipe with each combination of the grid's values, the last field changing fastest.

    Raises:
        ConfigError: a recipe that there is not, or that is named twice, or values that a config refuses.
    """
    for name in recipes:
        if recipes.count(name) > 1:
            raise ConfigError(f"recipe {name} is named twice; name it once")
    points = [tuple(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [_setting(recipe_named(name), point) for name in recipes for point in points]


def _setting(recipe: Recipe, point: tuple[tuple[str, Value], ...]) -> Setting:
    name = ",".join([recipe.name, *(f"{field.removeprefix(PREFIX)}={named(value)}" for field, value in point)])
    if len(name) > LONGEST_NAME:
        raise ConfigError(f"the setting {name[:40]}… has a name of {len(name)} characters; {LONGEST_NAME} are the most")
    try:
        model = replace(recipe.model, **{field: value for field, value in point if field in _SIZES})
        of_training = {field.removeprefix(PREFIX): value for field, value in point if field not in _SIZES}
        changed = replace(recipe, model=model, train=replace(recipe.train, **of_training))
    except ConfigError as error:
        raise ConfigError(f"the setting {name} cannot be: {error}") from None
    return Setting(name=name, recipe=changed, grid=point)


def models_of(settings: Sequence[Setting], seeds: Sequence[int]) -> list[Model]:
    """Every model, setting after setting."""
    return [Model(setting=setting, seed=seed) for setting in settings for seed in seeds]


def named(value: Value) -> str:
    """A value as a part of a file's name: 0.02, 0, adamw, 0.9_0.95; other values have other names."""
    if isinstance(value, tuple):
        return "_".join(named(part) for part in value)
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value).lower()


def grid_of(options: Sequence[str]) -> dict[str, tuple[Value, ...]]:
    """The grid that options such as `d_model=32,64` and `train.peak_lr=0.02,0.04` name, by field in their order.

    Raises:
        ConfigError: an option that is none, a field that there is not or that is given twice, no value, one of another
            type than the field, or one given twice.
    """
    grid: dict[str, tuple[Value, ...]] = {}
    for option in options:
        key, equals, texts = option.partition("=")
        if not equals:
            raise ConfigError(f"grid is {option!r}; it must be a field and its values, as train.peak_lr=0.02,0.04")
        _require_field(key)
        if key in grid:
            raise ConfigError(f"grid gives {key} twice; give all its values at once")
        grid[key] = _values(key, texts)
    return grid


def _require_field(key: str) -> None:
    if key in _DEFAULTS:
        return
    if key in {field.name for field in fields(ModelConfig)}:
        raise ConfigError(f"grid names {key}; of the model only sizes may vary: {', '.join(_SIZES)}")
    raise ConfigError(f"grid names {key!r}, which is no field; it must be one of {', '.join(_DEFAULTS)}")


def _values(key: str, texts: str) -> tuple[Value, ...]:
    values: list[Value] = []
    for text in texts.split(","):
        if not text.strip():
            raise ConfigError(f"grid gives {key} {texts!r}, which lacks a value; it must be values with commas between")
        value = _parsed(key, text.strip(), _DEFAULTS[key])
        if value in values:
            raise ConfigError(f"grid gives {key} the value {text} twice; give it once")
        values.append(value)
    return tuple(values)


def _parsed(key: str, text: str, default: Value) -> Value:
    """A value of the type of the field's default."""
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        kind = "true or false"
        if text.lower() in _TRUTH:
            return _TRUTH[text.lower()]
    elif isinstance(default, tuple):
        kind = "two numbers, as 0.9:0.95"
        parts = text.split(":")
        if len(parts) == len(default) and all(_is_number(part, float) for part in parts):
            return tuple(float(part) for part in parts)
    else:
        wanted = type(default)
        kind = "an integer" if wanted is int else "a number"
        if _is_number(text, wanted):
            return wanted(text)
    raise ConfigError(f"grid gives {key} the value {text!r}; it must be {kind}")


def _is_number(text: str, kind: type[int] | type[float]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True
