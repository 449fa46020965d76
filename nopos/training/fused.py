"""The fused kernel: the gradients of the readable engine and the updates of Muon, in C++ (`kernel/`).

It is called through ctypes and shares torch's threads. Its sums do not depend on how many threads there are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from nopos.errors import ConfigError, require_one_of
from nopos.model.config import ModelConfig
from nopos.model.parameters import parameter_shapes, trainable
from nopos.model.recipes import Precision
from nopos.training import compiled

Kernel = Literal["fused", "torch"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


class _Sizes(ctypes.Structure):
    """`Sizes` of kernel/model.h."""

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
    parameters: Mapping[str, Float32[Tensor, "model ..."]],
    tokens: Int[Tensor, "model batch pos"],
    wanted: Int[Tensor, "model batch predicted"],
    *,
    products_act: bool,
) -> tuple[Float32[Tensor, " model"], dict[str, Float32[Tensor, "model ..."]]]:
    """Each model's mean loss in nats on its own tokens, and its gradient by each parameter.

    Args:
        config: of all models.
        parameters: in float32 on the CPU; a `W_pos` that is not used may be missing.
        tokens: what is read.
        wanted: what the last positions are to predict.
        products_act: whether attention's weights are two products, as the readable engine makes them of one head.
    """
    models, batch, pos = tokens.shape
    sizes = _Sizes(
        models, batch, pos, pos - wanted.shape[-1], config.n_layers, config.n_heads, config.d_model, config.d_head,
        config.d_mlp, config.d_vocab, config.positions == "learned", config.causal, products_act,
        torch.get_num_threads(),
    )  # fmt: skip
    library = compiled.library()
    library.workspace.restype = ctypes.c_int64
    given = {name: _contiguous(value.detach()) for name, value in parameters.items()}
    # Of a context that is not filled, and of positions that are not used, some of W_pos has no gradient.
    gradients = {
        name: (torch.zeros if name == "pos_embed.W_pos" else torch.empty)(value.shape) for name, value in given.items()
    }
    losses, work = torch.empty(models), torch.empty(library.workspace(ctypes.byref(sizes)))
    tokens, wanted = tokens.contiguous(), wanted.contiguous()
    names = [name if trainable(name, config) else None for name in parameter_shapes(config)]
    library.losses_and_gradients(
        ctypes.byref(sizes), *_stacked(names, given), _address(tokens), _address(wanted), _address(work),
        _address(losses), *_stacked(names, gradients),
    )  # fmt: skip
    return losses, gradients


def orthogonalized(
    matrices: Float32[Tensor, "model matrix d_in d_out"], *, coefficients: Sequence[float], rounds: int
) -> Float32[Tensor, "model matrix d_in d_out"]:
    """Each matrix with its singular values brought near 1, by so many rounds of Newton-Schulz iteration."""
    library, (rows, columns), threads = compiled.library(), matrices.shape[-2:], torch.get_num_threads()
    library.workspace_to_orthogonalize.restype = ctypes.c_int64
    matrices = matrices.contiguous()
    out, work = torch.empty_like(matrices), torch.empty(library.workspace_to_orthogonalize(rows, columns, threads))
    library.orthogonalize(
        matrices.numel() // (rows * columns), rows, columns, threads, (ctypes.c_float * 3)(*coefficients), rounds,
        _address(matrices), _address(work), _address(out),
    )  # fmt: skip
    return out


def _contiguous(stacked: Tensor) -> Tensor:
    """The same if each model's numbers lie one after another, wherever the next model's begin."""
    return stacked if stacked[0].is_contiguous() else stacked.contiguous()


def _stacked(names: Sequence[str | None], tensors: Mapping[str, Tensor]) -> tuple[ctypes.Array[Any], ctypes.Array[Any]]:
    """Addresses by name, none where there is no name, and how many numbers on the next model's begin."""
    each = [None if name is None else tensors[name] for name in names]
    addresses = (ctypes.c_void_p * len(each))(*(None if value is None else value.data_ptr() for value in each))
    return addresses, (ctypes.c_int64 * len(each))(*(0 if value is None else value.stride(0) for value in each))


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
