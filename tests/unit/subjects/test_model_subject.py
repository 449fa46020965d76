"""A subject made of any torch model: here one linear map, which TransformerLens knows nothing of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nopos.claims.control import Subject
from nopos.errors import ClaimError
from nopos.subjects.model_subject import ModelSubject


def error(model, rows, wanted):
    return (model(rows) - wanted).pow(2).mean().item()


def solves(model, rows, wanted):
    return error(model, rows, wanted) < 0.1


@pytest.fixture
def rows():
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def subject(rows):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=True)).eval()
    with torch.no_grad():
        model[0].weight.fill_(0.5)
    return ModelSubject(
        "linear", {"model": model}, {"rows": rows, "wanted": model(rows).detach(), "width": 3}, solves_the_task=solves
    )


def test_it_is_what_the_machinery_calls_a_subject(subject):
    assert isinstance(subject, Subject)
    assert subject.name == "linear"
    assert subject.solves_the_task()


def test_an_analysis_is_handed_models_and_data_by_name_and_its_result_is_kept(subject, rows):
    calls = []

    def analysis(model, rows, width, *, times=1):
        calls.append(times)
        return times * width * model(rows).sum().item()

    first = subject.run(analysis)
    assert subject.run(analysis) == first == 3 * subject.model(rows).sum().item()
    assert subject.run(analysis, times=2) == pytest.approx(2 * first)
    assert calls == [1, 2]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda subject: subject.model[0].weight.data.mul_(2), r"changed its weights \(0.weight\)"),
        (
            lambda subject: setattr(subject.model[0], "weight", nn.Parameter(torch.ones(2, 3))),
            r"changed its weights \(0.weight\)",
        ),
        (lambda subject: subject.model.double(), r"changed its weights \(1.running_mean\)"),
        (lambda subject: subject.model[1].running_mean.add_(1), r"changed its weights \(1.running_mean\)"),
        (lambda subject: subject.run(lambda rows: rows).zero_(), None),
        (lambda subject: subject.run(lambda rows: rows.zero_()), "changed its rows"),
        (lambda subject: subject.model.train(), r"changed its attributes \(model.training\)"),
        (lambda subject: subject.model.append(nn.ReLU()), r"changed its attributes \(model._modules\)"),
        (
            lambda subject: subject.model[0].register_forward_hook(lambda *_: torch.ones(8, 2)),
            r"changed its hooks \(model.0._forward_hooks\)",
        ),
    ],
    ids=["in place", "another parameter", "dtype", "buffer", "a result", "data", "mode", "a module", "hook"],
)
def test_what_is_changed_is_named_and_put_back_in_place(subject, rows, spoil, message):
    before = subject.run(error)
    model, expected = subject.model, subject.model(rows).detach().clone()
    original = rows.clone()

    def change():
        with subject.proven_unchanged():
            spoil(subject)

    if message is None:
        change()
    else:
        with pytest.raises(ClaimError, match=f"linear: a test {message}; a test must leave a subject as it was"):
            change()
    with subject.proven_unchanged():
        assert subject.model is model
        assert torch.equal(subject.model(original), expected)
        assert torch.equal(subject.run(lambda rows: rows), original)
        assert subject.run(error) == before


def test_a_result_on_a_changed_model_is_not_kept(subject):
    before = subject.run(error)
    subject.model[0].bias.data.add_(1)
    assert subject.run(error) > before
    subject.model[0].bias.data.sub_(1)
    assert subject.run(error) == pytest.approx(before)


def test_each_of_several_models_has_its_name(rows):
    models = {"model": nn.Linear(3, 2), "teacher": nn.Linear(3, 2)}
    subject = ModelSubject("pair", models, {"rows": rows}, solves_the_task=lambda: True)
    with (
        pytest.raises(ClaimError, match=r"pair: a test changed its teacher model \(bias\);"),
        subject.proven_unchanged(),
    ):
        models["teacher"].bias.data.add_(1)


def test_the_record_has_a_hash_of_all_weights_and_a_description(subject, rows):
    def recorded(model, **described):
        return ModelSubject("one", {"model": model}, {}, solves_the_task=lambda: True, record=described).record()

    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    assert recorded(first) == recorded(second)
    assert len(recorded(first)["sha256"]) == 64
    second.bias.data[0] += 1e-6
    assert recorded(first) != recorded(second)
    assert recorded(first)["description"] == "Linear"
    described = recorded(first, description="a map", config={"width": 3})
    assert (described["description"], described["config"]) == ("a map", {"width": 3})
    assert ModelSubject("one", {"model": nn.BatchNorm1d(2)}, {}, solves_the_task=lambda: True).record()["sha256"]


def test_the_record_tells_shapes_apart():
    """Of the same numbers in the same order."""
    models = [nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)]
    for model in models:
        nn.init.ones_(model.weight)
    first, second = (
        ModelSubject("one", {"model": model}, {}, solves_the_task=lambda: True).record()["sha256"] for model in models
    )
    assert first != second


def test_the_record_is_of_a_strided_weight_and_of_all_that_a_model_computes_with():
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.ones(1).expand(3))  # one number in memory
    model.register_buffer("mask", torch.ones(2), persistent=False)
    before = ModelSubject("one", {"model": model}, {}, solves_the_task=lambda: True).record()["sha256"]
    model.mask[0] = 0
    assert ModelSubject("one", {"model": model}, {}, solves_the_task=lambda: True).record()["sha256"] != before


def test_data_in_a_dict_or_list_is_held_too():
    rows, lengths = torch.ones(2, 3), np.ones(2)
    batch = {"rows": rows, "names": ["a"], "more": [{"lengths": lengths}]}
    subject = ModelSubject("batched", {"model": nn.Linear(3, 2)}, {"batch": batch}, solves_the_task=lambda: True)
    spoilt = {
        "rows": lambda batch: batch["rows"].zero_() is None,
        "names": lambda batch: batch["names"].append("b"),
        "more.0.lengths": lambda batch: batch["more"][0]["lengths"].fill(0),
        "rows.requires_grad": lambda batch: batch["rows"].requires_grad_() is None,
    }
    for where, spoil in spoilt.items():
        message = rf"batched: a test changed its batch \({where}\);"
        with pytest.raises(ClaimError, match=message), subject.proven_unchanged():
            subject.run(spoil)
        assert torch.equal(rows, torch.ones(2, 3))
        assert lengths.tolist() == [1, 1]
        assert not rows.requires_grad
        assert subject.run(lambda batch: batch["names"]) == ["a"]


def test_an_array_is_held_as_a_tensor_is():
    rows = np.ones((2, 3))
    subject = ModelSubject("of arrays", {"model": nn.Linear(3, 2)}, {"rows": rows}, solves_the_task=lambda: True)
    with pytest.raises(ClaimError, match="of arrays: a test changed its rows;"), subject.proven_unchanged():
        subject.run(lambda rows: rows.fill(0))
    assert rows.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_that_data_now_asks_for_gradients_is_named():
    rows = torch.ones(2, 3)
    subject = ModelSubject("of rows", {"model": nn.Linear(3, 2)}, {"rows": rows}, solves_the_task=lambda: True)
    with pytest.raises(ClaimError, match=r"changed its rows \(requires_grad\);"), subject.proven_unchanged():
        subject.run(lambda rows: rows.requires_grad_() is None)
    assert not rows.requires_grad


def test_a_model_that_learns_its_statistics_when_it_is_read_is_named_with_the_way_out(rows):
    def read(model, rows):
        return model(rows).sum().item()

    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    subject = ModelSubject("training", {"model": model}, {"rows": rows}, solves_the_task=lambda: True)
    hint = r"changed its weights \(1.running_mean; its module is in training mode, call .eval\(\)\); a test must"
    with pytest.raises(ClaimError, match=hint), subject.proven_unchanged():
        subject.run(read)
    with pytest.raises(ClaimError, match=r"weights \(1.weight\); a test must"), subject.proven_unchanged():
        model[1].weight.data.add_(1)  # which no mode changes


def test_the_result_of_an_analysis_that_changed_the_model_is_not_kept(subject):
    """Else the next claim that runs it would not be seen to change the model."""

    def spoil(model):
        model[0].bias.data.add_(1)
        return 0.0

    for _ in range(2):
        with pytest.raises(ClaimError, match=r"changed its weights \(0.bias\)"), subject.proven_unchanged():
            subject.run(spoil)


class Counting(nn.Module):
    """Counts how often it is read, for itself, and gives the count."""

    def __init__(self):
        super().__init__()
        self._calls = 0

    def forward(self, rows):
        self._calls += 1
        return rows + self._calls


def test_every_analysis_finds_what_a_model_puts_down_for_itself_as_it_was():
    subject = ModelSubject("counting", {"model": Counting()}, {"rows": torch.zeros(1)}, solves_the_task=lambda: True)
    with subject.proven_unchanged():
        assert [subject.run(lambda model, rows: model(rows).item()) for _ in range(2)] == [1, 1]
        assert subject.model(torch.zeros(1)).item() == 2
    assert subject.model(torch.zeros(1)).item() == 1


def test_every_analysis_finds_the_gradients_as_they_were(subject):
    def gradient(model, rows, times=1):
        model(rows).sum().backward()
        return times * model[0].bias.grad.sum().item()

    with subject.proven_unchanged():
        first = subject.run(gradient)
        assert subject.run(gradient, times=1) == first  # another option, so that it is computed anew
    assert subject.model[0].bias.grad is None
