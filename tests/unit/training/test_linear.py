from __future__ import annotations

import pytest
import torch

from nopos.training.linear import linear

WIDTHS = [(8, 20), (20, 8), (8, 8), (1, 1)]


def factors(d_in, d_out, dtype, members=2):
    rng = torch.Generator().manual_seed(0)
    shapes = ((members, 11, d_in), (members, d_in, d_out), (members, d_out))
    return [torch.randn(shape, generator=rng, dtype=dtype, requires_grad=True) for shape in shapes]


def by_autograd(rows, W, b):
    return torch.baddbmm(b[:, None], rows, W)


def results(function, rows, W, b):
    out = function(rows, W, b)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return out, *torch.autograd.grad((out * weights).sum(), (rows, W, b))


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize(("d_in", "d_out"), WIDTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str)
def test_outputs_and_gradients_are_autograds(d_in, d_out, members, dtype, tolerance):
    given = factors(d_in, d_out, dtype, members)
    for ours, expected in zip(results(linear, *given), results(by_autograd, *given), strict=True):
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() < tolerance


def test_a_relu_may_follow_at_once():
    given = factors(8, 20, torch.float64)
    ours = results(lambda *factors: linear(*factors, relu=True), *given)
    expected = results(lambda *factors: by_autograd(*factors).relu(), *given)
    for value, wanted in zip(ours, expected, strict=True):
        assert (value - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(("d_in", "d_out"), WIDTHS)
def test_a_model_gets_the_same_bits_whatever_is_beside_it(d_in, d_out):
    together = results(linear, *factors(d_in, d_out, torch.float32))
    for member in (0, 1):
        alone = [value[member : member + 1].detach().requires_grad_() for value in factors(d_in, d_out, torch.float32)]
        out = linear(*alone)
        assert torch.equal(out[0], together[0][member])


def test_bfloat16_factors_give_a_bfloat16_result_within_its_rounding():
    given = [value.detach().bfloat16().requires_grad_() for value in factors(8, 20, torch.float32)]
    exact = [value.detach().double().requires_grad_() for value in given]
    for ours, expected in zip(results(linear, *given), results(by_autograd, *exact), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - expected).abs().max() < 2**-7 * expected.abs().max()


@pytest.mark.parametrize(
    ("dtype", "lacking"),
    [(torch.float32, "oneDNN"), (torch.bfloat16, "oneDNN"), (torch.bfloat16, "bfloat16 in oneDNN")],
    ids=str,
)
def test_where_onednn_cannot_multiply_torchs_own_products_do(monkeypatch, dtype, lacking):
    given = [value.detach().to(dtype).requires_grad_() for value in factors(8, 20, torch.float32)]
    expected = results(linear, *given)
    if lacking == "oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None)  # calling it would fail
    for ours, theirs in zip(results(linear, *given), expected, strict=True):
        assert (ours - theirs).abs().max() < (1e-4 if dtype == torch.float32 else 2**-6 * theirs.abs().max())
