"""How models are trained: the settings as a frozen dataclass, and the two recipes by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args, no_type_check

from nopos.errors import ConfigError, require_one_of
from nopos.model.config import ModelConfig, require_bool, require_int

FAST_OPTIMIZERS = ("adamw", "muon")
"""Those that the fast trainer has."""
OTHER_OPTIMIZERS = ("adadelta", "adafactor", "adagrad", "adam", "adamax", "nadam", "radam", "rmsprop", "sgd")
"""Those of torch.optim by which the reference loop trains, and it alone."""

Precision = Literal["full", "bfloat16"]
"""Of the factors of matrix products in training: as they are, or rounded to bfloat16's 8 bits of mantissa."""


@no_type_check  # its fields come from files and command lines; it checks them itself, in words for users
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained; the defaults are the notebook's (step 4). Rates are AdamW's, durations are steps."""

    steps: int = 4000
    batch_size: int = 256
    peak_lr: float = 1e-4
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up the rate stays at its peak, or falls to zero along half a cosine."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    stream: Literal["notebook", "own"] = "notebook"
    """Training tokens: the notebook's one stream, or a stream of the model's own, drawn from its seed."""
    target_offset: int = 1
    """How many positions back the token to predict lies; 1 is the previous token."""
    shuffled_targets: bool = False
    """Each sequence is asked for the tokens of another, so that there is nothing to learn but how often tokens come."""
    incl_bos_token: bool = True
    optimizer: str = "adamw"
    """One of FAST_OPTIMIZERS or OTHER_OPTIMIZERS. `muon` moves the matrices inside the blocks by orthogonalised
    momentum, and the rest by AdamW."""
    muon_lr: float = 0.02
    """Peak rate of Muon's matrices."""
    momentum: float = 0.95
    """Muon's, and that of `sgd` and `rmsprop`."""
    precision: Precision = "full"
    label_smoothing: float = 0.0
    """Share of what is to be predicted that is spread evenly over the vocabulary."""
    target_noise: float = 0.0
    """Share of the tokens to predict that are others instead, drawn anew for each sequence."""
    initial_scale: float = 0.8
    """Standard deviation of every matrix at the start, times sqrt(d_model)."""

    def __post_init__(self) -> None:
        require_int("steps", self.steps, at_least=1)
        require_int("batch_size", self.batch_size, at_least=1)
        require_int("warmup_steps", self.warmup_steps, at_least=0)
        require_int("target_offset", self.target_offset, at_least=1)
        require_bool("shuffled_targets", self.shuffled_targets)
        require_bool("incl_bos_token", self.incl_bos_token)
        require_one_of("schedule", self.schedule, ("constant", "cosine"))
        require_one_of("stream", self.stream, ("notebook", "own"))
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON has no tuples
        require_one_of("optimizer", self.optimizer, (*FAST_OPTIMIZERS, *OTHER_OPTIMIZERS))
        require_one_of("precision", self.precision, get_args(Precision))
        for name in ("peak_lr", "muon_lr", "max_grad_norm", "initial_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value}; it must be finite and above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"weight_decay is {self.weight_decay}; it must be finite and not below 0")
        for name in ("momentum", "label_smoothing", "target_noise"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigError(f"{name} is {value}; it must be from 0 up to, not including, 1")
        if self.why_by_the_loop is not None and self.precision != "full":
            raise ConfigError(
                f"precision is {self.precision}; the reference loop, by which this trains, has full alone"
            )
        betas = list(self.betas)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas is {self.betas}; it must be two numbers from 0 up to, not including, 1")
        if self.shuffled_targets and self.batch_size < 2:
            raise ConfigError("batch_size is 1; shuffled targets need another sequence to take them from")
        if self.schedule == "cosine" and self.steps <= self.warmup_steps:
            raise ConfigError(f"steps is {self.steps}; a cosine needs more than the {self.warmup_steps} warm-up steps")

    @property
    def why_by_the_loop(self) -> str | None:
        """Why the reference loop trains this and the fast trainer cannot; None if that can."""
        if self.optimizer not in FAST_OPTIMIZERS:
            return f"optimizer is {self.optimizer}"
        for name in ("label_smoothing", "target_noise"):
            if getattr(self, name) > 0:
                return f"{name} is {getattr(self, name)}"
        return None

    def learning_rate_factor(self, step: int) -> float:
        """The share of `peak_lr` at a step. The warm-up is the notebook's: step 0 has rate zero."""
        warmup = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        if self.schedule == "constant" or step < self.warmup_steps:
            return warmup
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * progress))


@no_type_check  # its fields come from files and command lines; it checks them itself, in words for users
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model and its training under one name."""

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.train.target_offset >= self.model.n_ctx:
            raise ConfigError(
                f"target_offset is {self.train.target_offset}; it must be below n_ctx, {self.model.n_ctx}"
            )


def in_precision(recipe: Recipe, precision: str) -> Recipe:
    """The recipe with other factors of matrix products, which its name then says.

    Raises:
        ConfigError: there is no such precision.
    """
    require_one_of("precision", precision, get_args(Precision))
    train = replace(recipe.train, precision=cast("Precision", precision))
    return recipe if train == recipe.train else replace(recipe, name=f"{recipe.name}-{precision}", train=train)


NOTEBOOK = Recipe(name="notebook")
SPRINT = Recipe(
    name="sprint",
    train=TrainConfig(
        steps=200,
        batch_size=32,
        peak_lr=4e-2,
        warmup_steps=10,
        schedule="cosine",
        stream="own",
        optimizer="muon",
        muon_lr=4e-2,
        momentum=0.9,
    ),
)
RECIPES = {recipe.name: recipe for recipe in (NOTEBOOK, SPRINT)}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: no recipe has that name.
    """
    require_one_of("recipe", name, tuple(RECIPES))
    return RECIPES[name]
