"""What is found changed on any torch module, and that it is put back."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from nopos.subjects.array_state import same_array
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
        self.pruned = {1}
        self.table, self.tables = np.ones(3), {"first": (np.array([1.0, np.nan]),)}
        self.register_buffer("part", self.first.weight.data[0])
        self.register_buffer("unset", torch.full((2,), torch.nan))
        self._cache = {}

    def forward(self, rows):
        inner = self.second(self.first(self.embed(rows) + self.shift)) * self.config.scale * self.by_layer["second"][0]
        inner = inner + torch.from_numpy(self.table).float() + len(self.pruned)
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
    "a set": (lambda model: model.pruned.add(2), {"attributes": "pruned"}),
    "an array": (lambda model: model.table.fill(2), {"attributes": "table"}),
    "an array in a tuple in a dict": (
        lambda model: model.tables["first"][0].fill(2),
        {"attributes": "tables.first.0"},
    ),
    "freezing": (
        lambda model: model.first.requires_grad_(False),
        {"attributes": "first.weight.requires_grad"},
    ),
    "a parametrisation": (
        lambda model: parametrizations.orthogonal(model.first),
        {"weights": "first.weight", "attributes": "first.__class__"},
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


@pytest.mark.parametrize("name", ["config", "cfg", "generation_config"])
def test_what_is_called_a_config_is_one_although_it_is_no_dataclass(name):
    model = nn.Linear(3, 2)
    config = SimpleNamespace(top_k=5)
    setattr(model, name, config)
    snapshot = Snapshot(model)
    config.top_k = 6
    assert snapshot.changed() == {"attributes": f"{name}.top_k"}
    snapshot.restore()
    assert config.top_k == 5


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


ARRAYS = {
    "values": (lambda: np.arange(6.0).reshape(2, 3), lambda array: array.fill(0)),
    "a value that is no number": (lambda: np.array([1.0, np.nan]), lambda array: array.fill(0)),
    "texts": (lambda: np.array(["a", "b"]), lambda array: array.put(0, "c")),
    "an array within": (
        lambda: np.array([np.ones(1), np.ones(2)], dtype=object),
        lambda array: array[1].fill(0),
    ),
    "another object": (lambda: np.array([np.ones(1), np.ones(2)], dtype=object), lambda array: array.put(0, None)),
    "its shape": (lambda: np.arange(6.0).reshape(2, 3), lambda array: array.resize((3, 2), refcheck=False)),
    "its size": (lambda: np.arange(6.0), lambda array: array.resize((2, 2), refcheck=False)),
    "its type": (lambda: np.arange(6.0), lambda array: setattr(array, "dtype", np.int64)),
    "what was read-only": (lambda: read_only(np.ones(2)), lambda array: (array.setflags(write=True), array.fill(0))),
    "only whether it is read-only": (lambda: np.ones(2), lambda array: array.setflags(write=False)),
    "made read-only": (lambda: np.ones(2), lambda array: (array.fill(0), array.setflags(write=False))),
}


def read_only(array):
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(("made", "change"), ARRAYS.values(), ids=ARRAYS)
def test_an_array_that_is_changed_in_place_is_found_and_put_back(made, change):
    array, last = made(), torch.ones(2)
    snapshot = Snapshot({"array": array, "last": last})
    assert snapshot.changed() == {}
    change(array)
    assert list(snapshot.changed()) == ["attributes"]
    last.zero_()
    snapshot.restore()
    assert snapshot.changed() == {}
    assert (array.shape, array.dtype, array.flags.writeable) == (made().shape, made().dtype, made().flags.writeable)
    assert [str(one) for one in array] == [str(one) for one in made()]
    assert torch.equal(last, torch.ones(2))


def test_a_read_only_array_whose_memory_is_a_tensors_is_put_back_with_the_tensor():
    tensor = torch.ones(2)
    array = read_only(tensor.numpy())
    of_array, of_tensor = Snapshot(array), Snapshot(tensor)
    tensor.zero_()
    assert of_array.changed() == of_tensor.changed() == {"attributes": ""}
    of_array.restore()  # which numpy does not allow
    of_tensor.restore()
    assert of_array.changed() == of_tensor.changed() == {}
    assert (array.tolist(), array.flags.writeable) == ([1.0, 1.0], False)


def test_an_expanded_tensor_is_put_back_and_so_is_what_comes_after_it():
    """Its rows are one row of memory, into which torch does not copy several."""
    row, last = torch.arange(3.0), torch.ones(2)
    expanded, windows = row.expand(2, 3), torch.arange(4.0).unfold(0, 2, 1)
    snapshot = Snapshot({"expanded": expanded, "windows": windows, "last": last})
    row.zero_()
    windows[1].zero_()
    last.zero_()
    assert snapshot.changed() == {"attributes": "expanded"}
    snapshot.restore()
    assert snapshot.changed() == {}
    assert expanded.tolist() == [[0.0, 1.0, 2.0]] * 2
    assert windows.tolist() == [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]
    assert last.tolist() == [1.0, 1.0]
    row[0] = 7.0
    assert expanded[1, 0] == 7.0


def test_memory_that_was_swapped_is_put_back_although_it_has_the_same_values():
    """Else tensors that shared memory would share it no longer."""
    weight = nn.Parameter(torch.ones(2))
    row = weight.data[:1]
    snapshot = Snapshot({"row": row, "weight": weight})
    weight.data = weight.data.clone()
    row.zero_()
    snapshot.restore()
    row[0] = 7.0
    assert weight.tolist() == [7.0, 1.0]


class Keeping(nn.Module):
    """Keeps for itself a tensor that is a buffer of a later module, and another that is set on that module."""

    def __init__(self, part, shift):
        super().__init__()
        self._kept, self._by_name = part, {"shift": shift}


def test_what_is_held_in_two_ways_counts_by_the_weightier_one():
    """A buffer is one, although a module before it keeps it for itself."""
    part, shift = torch.ones(2), torch.ones(2)
    last = nn.Module()
    last.register_buffer("part", part)
    last.shifts = [shift]
    model = nn.Sequential(Keeping(part, shift), last)
    for tensor, expected in ((shift, {"attributes": "1.shifts.0"}), (part, {"weights": "1.part"})):
        snapshot = Snapshot(model)
        tensor.add_(1)
        assert snapshot.changed() == expected
        snapshot.restore()
    assert (part.tolist(), shift.tolist()) == ([1.0, 1.0], [1.0, 1.0])


def test_tensors_are_the_same_by_type_shape_and_values():
    ones = torch.ones(2)
    assert same_tensor(ones, torch.ones(2))
    assert same_tensor(torch.tensor([torch.nan, 1.0]), torch.tensor([torch.nan, 1.0]))
    others = (torch.ones(2).double(), torch.ones(1, 2), torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 1.0000001]))
    assert not any(same_tensor(ones, other) for other in others)
    assert not same_tensor(ones.to_sparse(), ones)


def test_arrays_are_the_same_by_type_shape_and_values():
    zeros = np.zeros(2)
    assert same_array(zeros, -zeros)
    assert same_array(np.array([np.nan, 1.0]), np.array([np.nan, 1.0]))
    assert not any(same_array(zeros, other) for other in (zeros.astype(int), zeros[None], np.array([0.0, np.nan])))
