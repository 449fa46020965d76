"""The fused kernel: losses and gradients by one C++ file, for what the readable engine calls its weights.

It is called through ctypes and shares torch's threads. Its sums do not depend on how many threads there are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from nopos.errors import ConfigError, require_one_of
from nopos.model.config import ModelConfig
from nopos.model.recipes import Precision
from nopos.training import compiled

Kernel = Literal["fused", "torch"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


class _Sizes(ctypes.Structure):
    """`Sizes` of fused.cpp."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "models", "batch", "pos", "first", "layers", "heads", "d_model", "d_head", "d_mlp", "d_vocab",
            "learned_positions", "causal", "products_act", "threads",
        )
    ]  # fmt: skip


def why_not(device: torch.device, precision: Precision) -> str | None:
    """Why the kernel cannot train here, in a phrase; None if it can."""
    if device.type != "cpu":
        return f"it is for the CPU, and the device is {device.type}"
    if precision != "full":
        return f"it is for full precision, and this is {precision}"
    try:
        compiled.library()
    except compiled.NoLibraryError as reason:
        return str(reason)
    return None


def chosen(device: torch.device, precision: Precision, wanted: str | None = None) -> Kernel:
    """The kernel that trains: the wanted one, else the fused one where it can.

    Raises:
        ConfigError: there is no such kernel, or the fused one is wanted where it cannot train.
    """
    if wanted is not None:
        require_one_of("kernel", wanted, KERNELS)
    if wanted == "torch":
        return "torch"
    reason = why_not(device, precision)
    if wanted == "fused" and reason is not None:
        raise ConfigError(f"kernel is fused, which cannot train here: {reason}; use torch, or leave it out")
    return "torch" if reason is not None else "fused"


def losses_and_gradients(
    config: ModelConfig,
    weights: Mapping[str, Float32[Tensor, "model ..."]],
    tokens: Int[Tensor, "model batch pos"],
    wanted: Int[Tensor, "model batch predicted"],
    *,
    products_act: bool,
) -> tuple[Float32[Tensor, " model"], dict[str, Float32[Tensor, "model ..."]]]:
    """Each model's mean loss in nats on its own tokens, and its gradient by each weight.

    Args:
        config: of all models.
        weights: what the readable engine makes of the parameters, in float32 on the CPU, in its order.
        tokens: what is read.
        wanted: what the last positions are to predict.
        products_act: whether attention's weights are two products, as the readable engine makes them of one head.
    """
    models, batch, pos = tokens.shape
    sizes = _Sizes(
        models, batch, pos, pos - wanted.shape[-1], config.n_layers, config.n_heads, config.d_model,
        config.d_model if products_act else config.d_head, config.d_mlp, config.d_vocab,
        config.positions == "learned", config.causal, products_act, torch.get_num_threads(),
    )  # fmt: skip
    library = compiled.library()
    library.workspace.restype = ctypes.c_int64
    given = {name: value.detach().contiguous() for name, value in weights.items()}
    gradients = {name: torch.empty_like(value) for name, value in given.items()}
    losses, work = torch.empty(models), torch.empty(library.workspace(ctypes.byref(sizes)))
    tokens, wanted = tokens.contiguous(), wanted.contiguous()
    library.losses_and_gradients(
        ctypes.byref(sizes), _addresses(given), _address(tokens), _address(wanted), _address(work), _address(losses),
        _addresses(gradients),
    )  # fmt: skip
    return losses, gradients


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _addresses(tensors: Mapping[str, Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(value.data_ptr() for value in tensors.values()))
