"""A model as training left it, by whichever loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Member:
    """A model as training left it."""

    seed: int
    parameters: dict[str, Float[Tensor, ...]]
    """On the CPU, in the order of `parameter_shapes`."""
    losses: tuple[float, ...]
    """Training loss in nats at each step, taken before the step's update."""

    @property
    def failure(self) -> str | None:
        """What went wrong, if anything did."""
        for step, loss in enumerate(self.losses):
            if not math.isfinite(loss):
                return f"the loss is {loss} at step {step}"
        if not all(bool(value.isfinite().all()) for value in self.parameters.values()):
            return "the last step left weights that are not finite"
        return None
