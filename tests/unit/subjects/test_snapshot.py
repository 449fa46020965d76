"""What is found changed on any torch module, and that it is put back."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from nopos.subjects.snapshot import Snapshot
from nopos.subjects.tensor_state import same_tensor


@dataclass
class Config:
    """Of a model, which reads it when it runs."""

    scale: float = 1.0
    _scaled: bool = True


class Model(nn.Module):
    """Everything that a module can hold: tied weights, one module twice, modules in a list, a config, a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.embed, self.unembed = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.unembed.weight = self.embed.weight
        self.first = self.second = nn.Linear(3, 3)
        self.unregistered = [nn.Linear(3, 3)]
        self.shift = torch.zeros(3)
        self.by_layer = {"first": [1.0], "second": [2.0]}
        self.register_buffer("part", self.first.weight.data[0])
        self.register_buffer("unset", torch.full((2,), torch.nan))
        self._cache = {}

    def forward(self, rows):
        inner = self.second(self.first(self.embed(rows) + self.shift)) * self.config.scale * self.by_layer["second"][0]
        return self.unembed(self.unregistered[0](inner)) + self.part


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().eval()


ROWS = torch.arange(6.0).view(2, 3)


def double(module, arguments, output):
    return 2 * output


CHANGES = {
    "a tied weight": (lambda model: model.unembed.weight.data.mul_(2), {"weights": "embed.weight"}),
    "what lies under a weight": (
        lambda model: setattr(model.first.weight, "data", torch.ones(3, 3)),
        {"weights": "first.weight"},
    ),
    "a buffer that shares memory": (lambda model: model.part.add_(1), {"weights": "part"}),
    "a module used twice": (lambda model: model.second.bias.data.add_(1), {"weights": "first.bias"}),
    "a weight in a list": (
        lambda model: model.unregistered[0].bias.data.add_(1),
        {"weights": "unregistered.0.bias"},
    ),
    "a hook in a list": (
        lambda model: model.unregistered[0].register_forward_hook(double),
        {"hooks": "unregistered.0._forward_hooks"},
    ),
    "a module in a list": (
        lambda model: model.unregistered.append(nn.ReLU()),
        {"attributes": "unregistered"},
    ),
    "a config": (lambda model: setattr(model.config, "scale", 2.0), {"attributes": "config.scale"}),
    "a config's private setting": (
        lambda model: setattr(model.config, "_scaled", False),
        {"attributes": "config._scaled"},
    ),
    "a tensor": (lambda model: model.shift.add_(1), {"attributes": "shift"}),
    "a list in a dict": (lambda model: model.by_layer["second"].insert(0, 3.0), {"attributes": "by_layer.second"}),
    "freezing": (
        lambda model: model.first.requires_grad_(False),
        {"attributes": "first.weight.requires_grad"},
    ),
    "a parametrisation": (
        lambda model: parametrizations.orthogonal(model.first),
        {"weights": "first._parameters", "attributes": "first.__class__"},
    ),
    "another class": (lambda model: setattr(model.first, "__class__", nn.Identity), {"attributes": "first.__class__"}),
    "a private attribute": (lambda model: model._cache.update(seen=3), {"notes": "_cache"}),
    "gradients": (lambda model: model(ROWS).sum().backward(), {"notes": "embed.weight.grad"}),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_found_where_it_is_and_put_back(model, change, expected):
    outputs, snapshot = model(ROWS).detach(), Snapshot(model)
    change(model)
    found = snapshot.changed()
    assert {kind: found.get(kind) for kind in expected} == expected
    snapshot.restore()
    assert snapshot.changed() == {}
    assert torch.equal(model(ROWS), outputs)
    assert model.unembed.weight is model.embed.weight
    model.first.weight.data[0, 0] = 7.0
    assert model.part[0] == 7.0  # they share their memory as before


def test_a_model_that_is_left_as_it_was_is_not_changed(model):
    """A value that is no number included, and a weight that was taken away and is back as a copy."""
    snapshot = Snapshot(model)
    handle = model.first.register_forward_hook(double)
    model(ROWS)
    handle.remove()
    model.train().eval()
    weight = model.embed.weight
    model.embed.weight = nn.Parameter(2 * weight)
    model.embed.weight = nn.Parameter(weight.detach().clone())
    model.by_layer = {"first": [1.0], "second": [2.0]}
    assert snapshot.changed() == {}


@pytest.mark.parametrize("compile_it", [lambda model: model.compile(backend="eager"), None], ids=["compiled", "plain"])
def test_compiling_a_model_does_not_change_it_but_a_weight_of_it_does(model, compile_it):
    snapshot = Snapshot(model)
    if compile_it is not None:
        compile_it(model)
    expected = model(ROWS).detach()
    assert set(snapshot.changed()) <= {"notes"}
    model.first.weight.data.add_(1)
    assert "weights" in snapshot.changed()
    snapshot.restore()
    assert torch.equal(model(ROWS), expected)


def test_tensors_are_the_same_by_type_shape_and_values():
    ones = torch.ones(2)
    assert same_tensor(ones, torch.ones(2))
    assert same_tensor(torch.tensor([torch.nan, 1.0]), torch.tensor([torch.nan, 1.0]))
    others = (torch.ones(2).double(), torch.ones(1, 2), torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 1.0000001]))
    assert not any(same_tensor(ones, other) for other in others)
