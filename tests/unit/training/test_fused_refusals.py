"""Which kernel trains, and what the fused one refuses instead of misreading it."""

from __future__ import annotations

import inspect

import pytest
import torch

from nopos.errors import ConfigError, TrainingError
from nopos.model.config import ModelConfig
from nopos.model.data import held_out_tokens
from nopos.training import compiled, ensemble, fused
from tests.support.micro import MICRO, noisy_parameters

CPU = torch.device("cpu")
REASON = fused.why_not(ModelConfig(), CPU, "full")
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no kernel: {REASON}")


def narrow(name):
    return lambda given: given["parameters"].update({name: given["parameters"][name][..., :-1]})


def with_tokens(change):
    return lambda given: given.update(tokens=change(given["tokens"]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (with_tokens(lambda tokens: tokens.int()), "tokens: torch.int32 on cpu; the kernel needs int64 on the CPU"),
        (with_tokens(lambda tokens: tokens + MICRO.d_vocab), f"the kernel needs 0 to {MICRO.d_vocab - 1}"),
        (with_tokens(lambda tokens: tokens - 1), "tokens: tokens from -1 to"),
        (with_tokens(lambda tokens: tokens.expand(3, -1, -1)), r"embed.W_E has the shape .*; the kernel needs \(3,"),
        (with_tokens(lambda tokens: torch.cat([tokens] * 2, dim=-1)), "the kernel needs at most"),
        (narrow("blocks.0.mlp.W_in"), r"blocks.0.mlp.W_in has the shape"),
        (lambda given: given["parameters"].pop("unembed.b_U"), "; the kernel needs embed.W_E, "),
        (
            lambda given: given["parameters"].update(
                {name: value.double() for name, value in given["parameters"].items()}
            ),
            "embed.W_E: torch.float64 on cpu; the kernel needs float32 on the CPU",
        ),
        (
            lambda given: given["parameters"].update({"unembed.b_U": given["parameters"]["unembed.b_U"].to("meta")}),
            "unembed.b_U: torch.float32 on meta; the kernel needs float32 on the CPU",
        ),
    ],
    ids=["int32", "too large", "negative", "models", "too long", "narrow", "missing", "float64", "meta"],
)
def test_what_the_kernel_would_misread_is_refused(spoil, message):
    stacked, tokens = ensemble.stack([noisy_parameters(MICRO, 0)]), held_out_tokens(MICRO, 5)[None]
    given = {"parameters": stacked, "tokens": tokens}
    spoil(given)
    given["wanted"] = given["tokens"][..., :-1]
    with pytest.raises(TrainingError, match=message):
        inspect.unwrap(fused.losses_and_gradients)(MICRO, **given, products_act=False)


def test_matrices_that_the_kernel_would_misread_are_refused():
    with pytest.raises(TrainingError, match=r"matrices: torch.float64 on cpu; the kernel needs float32 on the CPU"):
        inspect.unwrap(fused.orthogonalized)(torch.zeros(1, 1, 2, 2).double(), coefficients=(1, 1, 1), rounds=1)


def test_the_fused_kernel_is_chosen_where_it_can_train():
    assert fused.chosen(ModelConfig(), CPU, "full") == fused.chosen(ModelConfig(), CPU, "full", "fused") == "fused"
    assert fused.chosen(ModelConfig(), CPU, "full", "torch") == "torch"
    assert (
        fused.chosen(ModelConfig(), CPU, "bfloat16")
        == fused.chosen(ModelConfig(), torch.device("cuda"), "full")
        == "torch"
    )


def test_a_model_whose_weights_leave_the_cache_trains_by_torch_unless_the_kernel_is_asked_for():
    small, large = (ModelConfig(d_model=width, d_head=width, d_mlp=4 * width) for width in (128, 256))
    assert fused.chosen(small, CPU, "full") == "fused"
    assert fused.chosen(large, CPU, "full") == "torch"
    assert fused.chosen(large, CPU, "full", "fused") == "fused"
    assert fused.why_not(large, CPU, "full") == (
        "torch's is faster beyond 1,000,000 parameters, and this model has 1,733,932"
    )


@pytest.mark.parametrize(
    ("device", "precision", "wanted", "message"),
    [
        ("cpu", "bfloat16", "fused", "kernel is fused, which cannot train here: it is for full precision, and this is"),
        (
            "cuda",
            "full",
            "fused",
            "kernel is fused, which cannot train here: it is for the CPU, and the device is cuda;",
        ),
        ("cpu", "full", "quick", "kernel is 'quick'; it must be one of fused, torch"),
    ],
)
def test_a_kernel_that_cannot_train_is_one_line(device, precision, wanted, message):
    with pytest.raises(ConfigError, match=message):
        fused.chosen(ModelConfig(), torch.device(device), precision, wanted)


def test_without_a_library_torch_trains_and_says_why(monkeypatch):
    def none():
        raise compiled.NoLibraryError("there is no C++ compiler here (c++)")

    monkeypatch.setattr(compiled, "library", none)
    assert fused.chosen(ModelConfig(), CPU, "full") == "torch"
    assert fused.why_not(ModelConfig(), CPU, "full") == "there is no C++ compiler here (c++)"
    with pytest.raises(ConfigError, match=r"there is no C\+\+ compiler here \(c\+\+\); use torch, or leave it out"):
        fused.chosen(ModelConfig(), CPU, "full", "fused")
