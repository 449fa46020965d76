"""`rows @ W + b` for stacked models, by the fastest matrix product that the machine has, with its gradients."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def linear(
    rows: Float[Tensor, "model row d_in"],
    W: Float[Tensor, "model d_in d_out"],
    b: Float[Tensor, "model d_out"],
    *,
    relu: bool = False,
) -> Float[Tensor, "model row d_out"]:
    """Each model's `rows @ W + b`, through a ReLU where asked; all of one dtype."""
    out: Tensor = _Linear.apply(rows, W, b, relu)  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, W: Tensor, b: Tensor, relu: bool) -> Tensor:
        out = _product(rows, W, b, relu=relu)
        ctx.save_for_backward(rows, W, out if relu else None)
        return out

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (d_out,) = d_outputs
        rows, W, rectified = ctx.saved_tensors
        if rectified is not None:
            d_out = torch.ops.aten.threshold_backward(d_out, rectified, 0)
        # The same product either way; oneDNN copies the first factor, so let that be the narrower one.
        d_W = _product(rows.mT, d_out) if W.shape[1] <= W.shape[2] else _product(d_out.mT, rows).mT
        return _product(d_out, W.mT), d_W, d_out.sum(dim=1), None


def _product(
    left: Float[Tensor, "model row d_in"],
    right: Float[Tensor, "model d_in d_out"],
    bias: Float[Tensor, "model d_out"] | None = None,
    *,
    relu: bool = False,
) -> Float[Tensor, "model row d_out"]:
    """Each model's matrix product.

    On a CPU by oneDNN, where it can, a model at a time: in float32 on an AMD core with AVX-512 it reached twice
    the speed of the library behind `torch.bmm`. It has no public name in torch for dense tensors; its inductor calls it
    by this one.
    """
    if left.is_cuda or not _onednn_multiplies(left.dtype):
        out = torch.bmm(left, right) if bias is None else torch.baddbmm(bias[:, None], left, right)
        return out.relu_() if relu else out
    each = [
        torch.ops.mkldnn._linear_pointwise(
            left[model], right[model].mT, None if bias is None else bias[model], "relu" if relu else "none", [], ""
        )
        for model in range(len(left))
    ]
    return each[0][None] if len(each) == 1 else torch.stack(each)


def _onednn_multiplies(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
