"""One update of many models: AdamW, or Muon for the matrices inside the blocks and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nopos.model.recipes import TrainConfig
from nopos.training import fused
from nopos.training.fused import Kernel

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd quintic by which Muon orthogonalises: steep at 0, so that five rounds are enough."""
ROUNDS = 5


class Optimizer:
    """Stacked parameters and their updates. Each model moves as it would alone, to the last bit on a CPU."""

    def __init__(
        self, start: Mapping[str, Float[Tensor, "model ..."]], settings: TrainConfig, kernel: Kernel = "torch"
    ) -> None:
        self._settings = settings
        by_muon = [name for name in start if settings.optimizer == "muon" and _inside_a_block(name)]
        names = [name for name in start if name not in by_muon] + by_muon
        self._shapes = {name: start[name].shape for name in names}
        self._rows = _flat({name: start[name] for name in names})  # [model number], a row for each model
        self.parameters = self._named(self._rows)
        """Views that every step changes."""
        self._muon = Muon({name: self.parameters[name] for name in by_muon}, settings, kernel)
        # One row a tensor: across a whole stack, how AdamW rounds a number would depend on where in the stack it is.
        numbers = sum(self._shapes[name][1:].numel() for name in names if name not in by_muon)
        self._rest = [nn.Parameter(row[:numbers]) for row in self._rows]
        self._adamw = torch.optim.AdamW(
            self._rest, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Float[Tensor, "model ..."]], factor: float) -> None:
        """Clip each model's gradient, then move its parameters at `factor` times the peak rates."""
        rows = _clip(_flat({name: gradients[name] for name in self._shapes}), self._settings.max_grad_norm)
        for parameter, row in zip(self._rest, rows, strict=True):
            parameter.grad = row[: len(parameter)]
        for group in self._adamw.param_groups:
            group["lr"] = self._settings.peak_lr * factor
        self._adamw.step()
        self._muon.step(self._named(rows), self._settings.muon_lr * factor)

    def _named(self, rows: Float[Tensor, "model number"]) -> dict[str, Float[Tensor, "model ..."]]:
        parts = rows.split([shape[1:].numel() for shape in self._shapes.values()], dim=1)
        return {name: part.view(self._shapes[name]) for name, part in zip(self._shapes, parts, strict=True)}


def _flat(stacked: Mapping[str, Float[Tensor, "model ..."]]) -> Float[Tensor, "model number"]:
    return torch.cat([value.flatten(1) for value in stacked.values()], dim=1)


def _clip(rows: Float[Tensor, "model number"], max_norm: float) -> Float[Tensor, "model number"]:
    """Rows whose norm exceeds `max_norm` scaled down to it, as `torch.nn.utils.clip_grad_norm_` does to one model."""
    # On a CPU a row at a time: the norm of one row must not depend on how many there are.
    norms = (
        torch.linalg.vector_norm(rows, dim=1) if rows.is_cuda else torch.stack([*map(torch.linalg.vector_norm, rows)])
    )
    return rows.mul_((max_norm / (norms + 1e-6)).clamp(max=1.0)[:, None])


def _inside_a_block(name: str) -> bool:
    return name.startswith("blocks.") and name.rsplit(".", 1)[-1].startswith("W_")


class Muon:
    """Momentum made orthogonal (Jordan 2024), for all matrices of one shape in a batch.

    `torch.optim.Muon` takes them one by one: this model's twelve took it 3.7 ms a step, half as long as the gradients.
    """

    def __init__(
        self,
        matrices: Mapping[str, Float[Tensor, "model ... d_in d_out"]],
        settings: TrainConfig,
        kernel: Kernel = "torch",
    ) -> None:
        self._settings = settings
        self._kernel = kernel
        self._alike: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for name, value in matrices.items():
            self._alike.setdefault(tuple(value.shape[-2:]), {})[name] = value
        self._momentum = {shape: torch.zeros_like(_beside(alike)) for shape, alike in self._alike.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Float[Tensor, "model ..."]], lr: float) -> None:
        """Move every matrix, a tall one by more: its columns have more rows to share an update of norm 1."""
        settings = self._settings
        for (d_in, d_out), alike in self._alike.items():
            gradient = _beside({name: gradients[name] for name in alike})
            momentum = self._momentum[d_in, d_out].lerp_(gradient, 1 - settings.momentum)
            update = orthogonalized(gradient.lerp(momentum, settings.momentum), self._kernel)
            parts = update.split([value[0].numel() // (d_in * d_out) for value in alike.values()], dim=1)
            for value, part in zip(alike.values(), parts, strict=True):
                value.mul_(1 - lr * settings.weight_decay)
                value.sub_(part.reshape(value.shape), alpha=lr * max(1.0, d_in / d_out) ** 0.5)


def _beside(alike: Mapping[str, Tensor]) -> Float[Tensor, "model matrix d_in d_out"]:
    """Matrices of one shape next to each other, heads being matrices of their own."""
    return torch.cat([value.flatten(1, -3) if value.ndim > 3 else value[:, None] for value in alike.values()], dim=1)


def orthogonalized(
    matrices: Float[Tensor, "model matrix d_in d_out"], kernel: Kernel = "torch"
) -> Float[Tensor, "model matrix d_in d_out"]:
    """Each matrix with its singular values brought near 1, by Newton-Schulz iteration."""
    if kernel == "fused":
        return fused.orthogonalized(matrices, coefficients=NEWTON_SCHULZ, rounds=ROUNDS)
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalized(matrices.mT).mT
    a, b, c = NEWTON_SCHULZ
    X = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=1e-7)
    X = X.flatten(0, 1)
    for _ in range(ROUNDS):
        gram = torch.bmm(X, X.mT)
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.view_as(matrices)
