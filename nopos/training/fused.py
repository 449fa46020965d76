"""The fused kernel: the gradients of the readable engine and the updates of Muon, in C++ (`kernel/`).

It is called through ctypes and shares torch's threads. Its sums do not depend on how many threads there are.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from nopos.errors import ConfigError, TrainingError, require_one_of
from nopos.model.config import ModelConfig
from nopos.model.parameters import parameter_shapes, trainable
from nopos.model.recipes import Precision
from nopos.training import compiled

Kernel = Literal["fused", "torch"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
MOST_PARAMETERS = 1_000_000
"""Of a model that trains by the kernel unless something else is asked for: beyond, a model's weights leave the cache,
and torch's kernel, which takes many sequences at once, is faster (docs/training.md has the times by size)."""


class _Sizes(ctypes.Structure):
    """`Sizes` of kernel/model.h."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "models", "batch", "pos", "first", "layers", "heads", "d_model", "d_head", "d_mlp", "d_vocab",
            "learned_positions", "causal", "products_act", "threads",
        )
    ]  # fmt: skip


def why_not(model: ModelConfig, device: torch.device, precision: Precision) -> str | None:
    """Why the kernel does not train such a model here unless it is asked to, in a phrase; None if it does."""
    reason = _cannot(device, precision)
    if reason is None and (parameters := _parameters(model)) > MOST_PARAMETERS:
        return f"torch's is faster beyond {MOST_PARAMETERS:,} parameters, and this model has {parameters:,}"
    return reason


def _cannot(device: torch.device, precision: Precision) -> str | None:
    """Why the kernel cannot train here at all."""
    if device.type != "cpu":
        return f"it is for the CPU, and the device is {device.type}"
    if precision != "full":
        return f"it is for full precision, and this is {precision}"
    try:
        compiled.library()
    except compiled.NoLibraryError as reason:
        return str(reason)
    return None


def _parameters(model: ModelConfig) -> int:
    return sum(math.prod(shape) for name, shape in parameter_shapes(model).items() if trainable(name, model))


def chosen(model: ModelConfig, device: torch.device, precision: Precision, wanted: str | None = None) -> Kernel:
    """The kernel that trains: the wanted one, else the fused one where it can and is faster.

    Raises:
        ConfigError: there is no such kernel, or the fused one is wanted where it cannot train.
    """
    if wanted is not None:
        require_one_of("kernel", wanted, KERNELS)
    if wanted == "torch":
        return "torch"
    if wanted == "fused":
        reason = _cannot(device, precision)
        if reason is not None:
            raise ConfigError(f"kernel is fused, which cannot train here: {reason}; use torch, or leave it out")
        return "fused"
    return "fused" if why_not(model, device, precision) is None else "torch"


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

    Raises:
        TrainingError: something has another shape, type or device, or there is no such token: the kernel would read
            and write where it must not.
    """
    models, batch, pos = tokens.shape
    sizes = _Sizes(
        models, batch, pos, pos - wanted.shape[-1], config.n_layers, config.n_heads, config.d_model, config.d_head,
        config.d_mlp, config.d_vocab, config.positions == "learned", config.causal, products_act,
        torch.get_num_threads(),
    )  # fmt: skip
    _require_fitting(config, parameters, tokens, wanted)
    library = compiled.library().calls
    library.workspace.restype = ctypes.c_int64
    given = {name: _contiguous(value.detach()) for name, value in parameters.items()}
    # Of a context that is not filled, and of positions that are not used, some of W_pos has no gradient.
    gradients = {
        name: (torch.zeros if name == "pos_embed.W_pos" else torch.empty)(value.shape, dtype=torch.float32)
        for name, value in given.items()
    }
    losses, work = (
        torch.empty(count, dtype=torch.float32) for count in (models, library.workspace(ctypes.byref(sizes)))
    )
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
    """Each matrix with its singular values brought near 1, by so many rounds of Newton-Schulz iteration.

    Raises:
        TrainingError: they are not in float32 on the CPU.
    """
    _require_float32_on_the_cpu("matrices", matrices)
    library, (rows, columns), threads = compiled.library().calls, matrices.shape[-2:], torch.get_num_threads()
    library.workspace_to_orthogonalize.restype = ctypes.c_int64
    matrices = matrices.contiguous()
    out = torch.empty_like(matrices)
    work = torch.empty(library.workspace_to_orthogonalize(rows, columns, threads), dtype=torch.float32)
    library.orthogonalize(
        matrices.numel() // (rows * columns), rows, columns, threads, (ctypes.c_float * 3)(*coefficients), rounds,
        _address(matrices), _address(work), _address(out),
    )  # fmt: skip
    return out


def _require_fitting(config: ModelConfig, parameters: Mapping[str, Tensor], tokens: Tensor, wanted: Tensor) -> None:
    models, batch, pos = tokens.shape
    shapes = {name: (models, *shape) for name, shape in parameter_shapes(config).items()}
    if config.positions == "none" and "pos_embed.W_pos" not in parameters:
        del shapes["pos_embed.W_pos"]
    if parameters.keys() != shapes.keys():
        raise TrainingError(f"parameters are {', '.join(parameters)}; the kernel needs {', '.join(shapes)}")
    for name, value in parameters.items():
        _require_float32_on_the_cpu(name, value)
        if value.shape != shapes[name]:
            raise TrainingError(f"{name} has the shape {tuple(value.shape)}; the kernel needs {shapes[name]}")
    if pos > config.n_ctx or wanted.shape[:2] != (models, batch) or not 0 < wanted.shape[2] <= pos:
        shown = f"tokens have the shape {tuple(tokens.shape)} and what is wanted {tuple(wanted.shape)}"
        raise TrainingError(f"{shown}; the kernel needs at most {config.n_ctx} positions, and as many or fewer wanted")
    for name, value in (("tokens", tokens), ("what is wanted", wanted)):
        if value.dtype != torch.int64 or value.device.type != "cpu":
            raise TrainingError(f"{name}: {value.dtype} on {value.device}; the kernel needs int64 on the CPU")
        low, high = (end.item() for end in value.aminmax())
        if low < 0 or high >= config.d_vocab:
            raise TrainingError(f"{name}: tokens from {low} to {high}; the kernel needs 0 to {config.d_vocab - 1}")


def _require_float32_on_the_cpu(name: str, value: Tensor) -> None:
    if value.dtype != torch.float32 or value.device.type != "cpu":
        raise TrainingError(f"{name}: {value.dtype} on {value.device}; the kernel needs float32 on the CPU")


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
