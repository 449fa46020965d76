"""A person's mistakes: each is one line that names the subject, what is wrong and what would be right."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from nopos.errors import ClaimError
from nopos.subjects.model_subject import ModelSubject


def made(name="mine", models=None, data=None, *, solves_the_task=lambda: True, record=None):
    models = {"model": nn.Linear(3, 2)} if models is None else models
    data = {"rows": torch.ones(4, 3)} if data is None else data
    return ModelSubject(name, models, data, solves_the_task=solves_the_task, record=record)


def one_line(action):
    with pytest.raises(ClaimError) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def outputs(model, rows, *, layer=0):
    return model(rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"name": nn.Linear(3, 2)},
            "a subject's name is a value of type Linear; give a text that says which model it is",
        ),
        ({"name": ""}, "a subject's name is ''; give a text that says which model it is"),
        ({"models": nn.Linear(3, 2)}, 'mine: models is a value of type Linear; give a dict, such as {"model": model}'),
        ({"models": {}}, "mine: has no models; one of its models must be called model"),
        ({"models": {"teacher": nn.Linear(3, 2)}}, "mine: has teacher; one of its models must be called model"),
        ({"models": {"model": None}}, "mine: its model 'model' is None; it must be a torch.nn.Module"),
        (
            {"models": {"model": nn.Linear(3, 2).state_dict()}},
            "mine: its model 'model' is a value of type OrderedDict; it must be a torch.nn.Module",
        ),
        (
            {"models": {"model": nn.LazyLinear(2)}},
            "mine: its model 'model' has weights without values; run it once before",
        ),
        (
            {"models": {"model": nn.LazyBatchNorm1d(affine=False)}},  # buffers alone
            "mine: its model 'model' has weights without values; run it once before",
        ),
        ({"data": torch.ones(3)}, 'mine: data is a value of type Tensor; give a dict, such as {"tokens": tokens}'),
        (
            {"data": {0: torch.ones(3)}},
            "mine: data has the name 0; give names that a function's parameters can have",
        ),
        (
            {"data": {"my rows": torch.ones(3)}},
            "mine: data has the name 'my rows'; give names that a function's parameters can have",
        ),
        ({"data": {"model": torch.ones(3)}}, "mine: 'model' is a model and data too; give each a name of its own"),
        (
            {"solves_the_task": lambda model, tokens: True},
            "mine: solves_the_task: missing a required argument: 'tokens'; the subject has model, rows",
        ),
        (
            {"solves_the_task": True},
            "mine: solves_the_task is True; give a function that asks for model or rows",
        ),
        (
            {"record": "trained in March"},
            'mine: record is \'trained in March\'; give a dict, such as {"description": "trained in March"}',
        ),
        (
            {"record": {"descripton": "x"}},
            "mine: record has 'descripton'; it may have description, sha256, config, recipe, seed",
        ),
        (
            {"record": {"config": {3 + 4j}}},
            "mine: config of its record: Object of type set is not JSON serializable; give plain values that JSON has",
        ),
    ],
)
def test_what_a_subject_cannot_be_made_of(given, message):
    assert one_line(lambda: made(**given)) == message


def test_a_record_has_no_value_that_JSON_has_not():
    message = one_line(lambda: made(record={"config": {"rate": float("nan")}}))
    assert message.startswith("mine: config of its record: Out of range float values are not JSON compliant")
    assert message.endswith("; give plain values that JSON has")


def nested(layout=torch.strided):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, torch says
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)


def sparse_rows():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in beta state, torch says
        return torch.eye(3).to_sparse_csr()


def with_buffer(value):
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].register_buffer("part", value)
    return {"model": model}


def with_sparse_gradient():
    model = nn.Embedding(3, 2, sparse=True)
    model(torch.tensor([1])).sum().backward()
    return {"model": model}


NO_PLAIN_TENSOR = {
    "sparse data": (
        lambda: {"data": {"rows": torch.eye(3).to_sparse()}},
        "mine: its 'rows' is a sparse tensor; make it dense, as .to_dense() does",
    ),
    "sparse data in rows": (
        lambda: {"data": {"batch": {"rows": [sparse_rows()]}}},
        "mine: its 'batch' has a sparse tensor (rows.0); make it dense, as .to_dense() does",
    ),
    "nested data": (
        lambda: {"data": {"rows": nested()}},
        "mine: its 'rows' is a nested tensor; give a list of tensors, as .unbind() does",
    ),
    "jagged data": (
        lambda: {"data": {"rows": nested(torch.jagged)}},
        "mine: its 'rows' is a nested tensor; give a list of tensors, as .unbind() does",
    ),
    "data without values": (
        lambda: {"data": {"rows": torch.ones(3, device="meta")}},
        "mine: its 'rows' is a tensor on the meta device, which has no values; load them onto the CPU",
    ),
    "a model without values": (
        lambda: {"models": {"model": nn.Sequential(nn.Linear(3, 2, device="meta"))}},
        "mine: its 'model' has a tensor on the meta device (0.weight), which has no values; load them onto the CPU",
    ),
    "a sparse buffer": (
        lambda: {"models": with_buffer(torch.eye(3).to_sparse())},
        "mine: its 'model' has a sparse tensor (0.part); make it dense, as .to_dense() does",
    ),
    "a sparse gradient": (
        lambda: {"models": with_sparse_gradient()},
        "mine: its 'model' has a sparse tensor (weight.grad); make it dense, as .to_dense() does",
    ),
}


@pytest.mark.parametrize(("given", "message"), NO_PLAIN_TENSOR.values(), ids=NO_PLAIN_TENSOR)
def test_a_tensor_that_cannot_be_compared_is_refused(given, message):
    """Torch refuses them in many lines, and only when something is compared."""
    assert one_line(lambda: made(**given())) == message


@pytest.mark.parametrize(
    ("analysis", "options", "message"),
    [
        (
            lambda model, tokens: None,
            {},
            "mine: <lambda>: missing a required argument: 'tokens'; the subject has model, rows",
        ),
        (
            outputs,
            {"layr": 1},
            "mine: outputs: got an unexpected keyword argument 'layr'; the subject has model, rows, and the options "
            "are layr",
        ),
        (dict.pop, {}, "mine: pop does not show its parameters; wrap it in a function that does"),
        (
            outputs,
            {"layer": [1]},
            "mine: options of outputs cannot be remembered (unhashable type: 'list'); give tuples",
        ),
    ],
    ids=["asks for what there is not", "no such option", "written in C", "an option in a list"],
)
def test_what_cannot_be_run(analysis, options, message):
    assert one_line(lambda: made().run(analysis, **options)) == message


@pytest.mark.parametrize("result", [outputs, lambda: iter([])], ids=["gradients", "an iterator"])
def test_a_result_that_cannot_be_copied(result):
    action = (lambda: made().run(result)) if result is outputs else lambda: made().run(lambda: (n for n in [1]))
    message = one_line(action)
    assert message.startswith("mine: what ")
    assert message.endswith("give numbers, or tensors without a graph of gradients, as torch.no_grad() makes them")


@pytest.mark.parametrize("answer", [True, np.bool_(True), torch.tensor(True), torch.tensor([True]), np.array([True])])
def test_the_answer_of_solves_the_task_is_true_or_false(answer):
    assert made(solves_the_task=lambda: answer).solves_the_task() is True


@pytest.mark.parametrize(
    ("answer", "shown"),
    [(0.03, "0.03"), (None, "None"), (1, "1"), (torch.tensor([True, False]), "a value of type Tensor")],
    ids=["the loss", "nothing", "a number", "an answer for each row"],
)
def test_an_answer_that_is_neither_is_no_answer(answer, shown):
    message = one_line(made(solves_the_task=lambda: answer).solves_the_task)
    assert message == f"mine: solves_the_task gives {shown}; it must give True or False, as loss < 0.1 does"
