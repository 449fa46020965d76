"""What can be seen in the text of a claim's body."""

from __future__ import annotations

import pytest

from nopos.claims.rules import body_problems
from nopos.errors import ClaimError

HIDES = "is a second free number that hides in a measurement; measure the ratio, or both quantities"
IN_THE_BOUND = "is a free number in a bound that is measured; measure the ratio, and compare it with the number"


def problems(tmp_path, lines, given="subject, measure"):
    """What is wrong with a body of these lines, in a file with constants and functions."""
    path = tmp_path / "test_body.py"
    body = f"def test_it({given}):\n    '''It is.'''\n" + "".join(f"    {line}\n" for line in lines)
    path.write_text(HEAD + body + TAIL)
    scope = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    return body_problems(scope["test_it"])


def measured(value):
    """A body of one line that measures a value."""
    return [f'assert measure("a", {value}) < 1']


FINE = [
    ['assert measure("a", subject.a) < 0.7'],
    ['assert measure("a", subject.a) < 2 / 3'],
    ['assert measure("a", subject.a - subject.b) < 0.7'],
    ['assert measure("a", 1 - subject.a) < 0.7', 'assert measure("b", (subject.b + 1) * -1, "nats") < 0'],
    ['assert measure("a", subject.at(5, factor=0.5)) < 0.7'],
    ['assert measure("a", subject.a[2:5][i + 2] / max(subject.b, eps)) < 0.7'],
    ['assert measure("a", sum(subject.at(i) for i in range(2 + n))) < 0.7'],
    ["unused = 0.7 * subject.a", 'assert measure("a", subject.a) < 0.7'],
    ['assert measure("a", subject.a * True) < 0.7'],
    ["for factor in (2.0, 0.5):", '    assert measure(f"a {factor}", subject.at(factor)) < 0.7'],
    ["for offset in (1, 2):", '    assert measure(f"a {2 * offset}", subject.at(offset)) < 0.7'],
    ['assert measure("a", subject.a / torch.arange(2, 5)) < 0.7'],
    ['assert measure("a", subject.a[2:5, subject.at(3), subject.b > 0]) < 0.7'],
    ["match subject.run(analysis, stride=2):", "    case (one, _):", '        assert measure("a", one) < 0.7'],
    ['assert measure("a", subject.a.sum(dim=2).topk(k=3).diagonal(offset=2)) < 0.7'],
    ['assert measure("a", subject.a.topk(6).values.sum() / torch.topk(subject.b, 2 * 3).values.sum()) < 0.7'],
    ['assert measure("a", (subject.a > 0).mean() if subject.a > subject.b else 0) < 0.7'],
    ['assert measure("a", subject.run(analysis, stride=2 * 3)) < 0.7'],
    ["one, two = (subject.run(analysis, count=count) for count in (16, 192))", 'assert measure("a", one - two) < 0.7'],
    ["def at(count):", "    return subject.run(analysis, count=count)", 'assert measure("a", at(16)) < 0.7'],
    ['assert measure("a", largest(subject, 3)) < 0.7'],
    ['assert measure("a", relative_range(subject.a, few=3)) < 0.7'],
    ['assert measure("a", subject.a) < 2 * LIMIT'],
    ['assert measure("a", subject.a) < subject.b'],
    ["sizes = subject.config", 'assert measure("a", subject.a) < floor(2 * sizes.n_ctx)'],
    ["if subject.config.n_layers != 2:", "    raise ValueError", 'assert measure("a", subject.a) < 0.7'],
]

HEAD = """
import math
import operator
import torch
from operator import attrgetter as by_name
from nopos.methods.statistics import relative_range
from nopos.subjects import subject as elsewhere
from nopos.subjects.subject import SOLVED

LIMIT = 0.3
HALF = 0.5
WEIGHTS = (0.25, 1)
SEEN = []

def largest(subject, layer):
    return max(subject.run(analysis, layer=layer).values())

def less(a, b, *, by=1):
    return a - by * b

def quartered(a, by=0.25):
    return by * a

def total(*all):
    return sum(all)

def halved(a):
    half = LATE * a
    return half

def named(model):
    return len(model.name)

def drawn(request):
    return request.param

def subject(request):
    return request.node.name

def context(model):
    return model.config.n_ctx

def floored(a):
    if a > 0.3:
        return a
    return 0

"""
AFTER_HEAD = HEAD.count("\n")
TAIL = """
LATE = 0.5
"""

HIDDEN = [
    (measured("subject.a - 0.7 * subject.b"), "0.7 in `0.7 * subject.b`"),
    (measured("subject.a - subject.b / 2"), "2 in `subject.b / 2`"),
    (measured("value=subject.a - 3"), "3 in `subject.a - 3`"),
    (measured("subject.a + -0.5"), "-0.5 in `subject.a + -0.5`"),
    (measured("subject.a ** 2"), "2 in `subject.a ** 2`"),
    (measured("subject.a % 0.5"), "0.5 in `subject.a % 0.5`"),
    (measured("max(subject.a, 1.5 * subject.b)"), "1.5 in `1.5 * subject.b`"),
    (["less = subject.a - 1.5 * subject.b", 'assert measure("a", less) < 0'], "1.5 in `1.5 * subject.b`"),
    (
        ["half = subject.b / 2", "less = subject.a - half", 'assert measure("a", less) < 0'],
        "2 in `subject.b / 2`",
    ),
    (["factor = 0.7", 'assert measure("a", subject.a - factor * subject.b) < 0'], "factor in `factor * subject.b`"),
    (["one, factor = 1, 0.7", 'assert measure("a", factor * subject.b) < 0'], "factor in `factor * subject.b`"),
    (["total = subject.a", "total -= 0.7", 'assert measure("a", total) < 0'], "0.7 in `total -= 0.7`"),
    (["total = subject.a", "total.mul_(0.7)", 'assert measure("a", total) < 0'], "0.7 in `total.mul_(0.7)`"),
    (["by = {}", "by[3] = 0.7 * subject.a", 'assert measure("a", by[3]) < 0'], "0.7 in `0.7 * subject.a`"),
    (
        ["def inner():", "    return subject.a - 0.7 * subject.b", 'assert measure("a", inner()) < 0'],
        "0.7 in `0.7 * subject.b`",
    ),
    (["for one in (subject.a - 0.7,):", '    assert measure("a", one) < 0'], "0.7 in `subject.a - 0.7`"),
    (measured("max(one - 0.7 for one in subject.all)"), "0.7 in `one - 0.7`"),
    (measured("sum(one for one in subject.all if one > 0.3)"), "0.3 in `one > 0.3`"),
    (["one: float = subject.a - 0.7", 'assert measure("a", one) < 0'], "0.7 in `subject.a - 0.7`"),
    (["print(one := subject.a - 0.7)", 'assert measure("a", one) < 0'], "0.7 in `subject.a - 0.7`"),
    (["with kept(subject.a - 0.7) as one:", '    assert measure("a", one) < 0'], "0.7 in `subject.a - 0.7`"),
    # numbers of the file and of other files
    (measured("subject.a - HALF * subject.b"), "HALF in `HALF * subject.b`"),
    (measured("subject.a - LATE * subject.b"), "LATE in `LATE * subject.b`"),
    (measured("subject.a - WEIGHTS[0] * subject.b"), "0.25 in `(0.25, 1)`"),
    (measured("subject.a - SOLVED * subject.b"), "SOLVED in `SOLVED * subject.b`"),
    (measured("elsewhere.SOLVED * subject.b"), "elsewhere.SOLVED in `elsewhere.SOLVED * subject.b`"),
    (measured("subject.a - math.pi"), "math.pi in `subject.a - math.pi`"),
    # functions of the file
    (measured("less(subject.a, subject.b, by=0.7)"), "by in `by * b`"),
    (measured("less(0.7, subject.b)"), "a in `a - by * b`"),
    (measured('less(subject.a, **{"by": 0.7})'), "0.7 in `{'by': 0.7}`"),
    (measured("total(subject.a, 0.7)"), "all in `sum(all)`"),
    (measured("quartered(subject.a)"), "by in `by * a`"),
    (measured("halved(subject.a)"), "LATE in `LATE * a`"),
    (measured("subject.run(halved)"), "LATE in `LATE * a`"),
    (measured("subject.run(less, by=0.7)"), "by in `by * b`"),
    (measured("subject.run(lambda model: 0.7 * model.a)"), "0.7 in `0.7 * model.a`"),
    # calls that do arithmetic
    (measured("torch.sub(subject.a, subject.b, alpha=0.5)"), "0.5 in `torch.sub(subject.a, subject.b, alpha=0.5)`"),
    (measured("subject.a.mul(0.7)"), "0.7 in `subject.a.mul(0.7)`"),
    (measured("subject.at(2).lerp(subject.b, 0.7)"), "0.7 in `subject.at(2).lerp(subject.b, 0.7)`"),
    (measured("subject.a.clamp(min=0.1)"), "0.1 in `subject.a.clamp(min=0.1)`"),
    (measured("max(subject.a, 0.3)"), "0.3 in `max(subject.a, 0.3)`"),
    (measured("sum((subject.a, -0.3))"), "-0.3 in `(subject.a, -0.3)`"),
    (measured("math.pow(subject.a, 2)"), "2 in `math.pow(subject.a, 2)`"),
    (measured("relative_range(subject.a - 0.7)"), "0.7 in `subject.a - 0.7`"),
    # comparisons and conditions
    (measured("(subject.a > 0.3).mean()"), "0.3 in `subject.a > 0.3`"),
    (measured("subject.a if subject.b > 0.3 else 0"), "0.3 in `subject.b > 0.3`"),
    # indices and ranges that are measured
    (measured("[0, 1][int(subject.a > 0.7)]"), "0.7 in `subject.a > 0.7`"),
    (measured("subject.a[2, subject.b > 0.7].sum()"), "0.7 in `subject.b > 0.7`"),
    (measured("len(range(int(subject.a / 0.7)))"), "0.7 in `subject.a / 0.7`"),
]

IN_A_CONDITION = [
    ["a = subject.a", "if subject.b > 0.3:", "    a = 0", 'assert measure("a", a) < 1'],
    ["a = subject.b", "while a > 0.3:", "    a = a - 1", 'assert measure("a", a) < 1'],
    ['assert measure("a", floored(subject.a)) < 1'],
    ["match subject.b > 0.3:", "    case True:", "        raise ValueError", 'assert measure("a", subject.a) < 1'],
    ["match subject.b:", "    case b if b > 0.3:", "        raise ValueError", 'assert measure("a", subject.a) < 1'],
    ["subject.b > 0.3 or all.append(1)", 'assert measure("a", subject.a) < 1'],
]

MEASURED_BOUNDS = [
    (['assert measure("a", subject.a) < 0.7 * subject.b'], "0.7 in `0.7 * subject.b`"),
    (["limit = 2 * subject.b", 'assert measure("a", subject.a) < limit'], "2 in `2 * subject.b`"),
    (['assert measure("a", subject.a) < (2 if subject.b > 0 else 1)'], "2 in `2 if subject.b > 0 else 1`"),
]


@pytest.mark.parametrize("lines", FINE, ids=lambda lines: lines[-1].strip()[15:60])
def test_a_body_that_keeps_the_rules_has_no_problem(tmp_path, lines):
    assert problems(tmp_path, lines) == []


@pytest.mark.parametrize(("lines", "where"), HIDDEN, ids=lambda value: value if isinstance(value, str) else "")
def test_a_second_free_number_in_a_measurement_is_seen(tmp_path, lines, where):
    assert problems(tmp_path, lines) == [f"{where} {HIDES}"]


@pytest.mark.parametrize(("default", "number"), [("0.5", "half"), ("HALF", "HALF")])
@pytest.mark.parametrize("star", ["", "*, "])
def test_a_second_free_number_in_what_a_parameter_is_by_default_is_seen(tmp_path, star, default, number):
    lines = ['assert measure("a", subject.a - half * subject.b) < 0']
    seen = problems(tmp_path, lines, f"subject, measure, {star}half={default}")
    assert seen == [f"{number} in `half * subject.b` {HIDES}"]


@pytest.mark.parametrize("lines", IN_A_CONDITION, ids=["if", "while", "in a function", "match", "guard", "or"])
def test_a_second_free_number_in_a_condition_is_seen(tmp_path, lines):
    (problem,) = problems(tmp_path, lines)
    assert problem.endswith("is a second free number that hides in a condition; measure what it is compared with")
    assert problem.startswith("0.3 in `")


@pytest.mark.parametrize(("lines", "where"), MEASURED_BOUNDS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_free_number_in_a_bound_that_is_measured_is_seen(tmp_path, lines, where):
    assert problems(tmp_path, lines) == [f"{where} {IN_THE_BOUND}"]


@pytest.mark.parametrize(
    ("lines", "asked"),
    [
        (measured("len(subject.name)"), "subject.name"),
        (measured('subject.record()["seed"]'), "subject.record"),
        (measured('subject.checkpoint.sha256 == "ab"'), "subject.checkpoint.sha256"),
        (["of = subject.checkpoint", 'assert measure("a", of.seed) < 1'], "of.seed"),
        (measured('len(getattr(subject, "name"))'), "getattr"),
        (measured("len(vars(subject.checkpoint))"), "vars"),
        (measured("len(subject._name)"), "subject._name"),
        (
            ["if subject.checkpoint.recipe is None:", "    return", 'assert measure("a", subject.a) < 1'],
            "subject.checkpoint.recipe",
        ),
        (measured("named(subject)"), "model.name"),
        (["one, = [subject]", 'assert measure("a", len(one.name)) < 1'], "one.name"),
        (measured("len([s for s in [subject]][0].name)"), "[s for s in [subject]][0].name"),
        (measured("len(max([subject], key=id).name)"), "max([subject], key=id).name"),
        (measured("len(subject.__class__.wrote(subject))"), "subject.__class__"),
        (measured('len(operator.attrgetter("name")(subject))'), "operator.attrgetter"),
        (measured('len(by_name("name")(subject))'), "by_name"),
        (measured('eval("len(subject.name)", {"subject": subject})'), "eval"),
        (
            ["match subject:", "    case object(name='b'):", "        pass", 'assert measure("a", subject.a) < 1'],
            "object(name='b')",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_question_which_model_it_is_is_seen(tmp_path, lines, asked):
    assert problems(tmp_path, lines) == [
        f"`{asked}` can tell which model it is; a claim is decided by what is measured alone"
    ]


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        (['assert measure("a", 1) < 2'], "1"),
        (["SEEN.append(0)", 'assert measure("a", len(SEEN)) < 2'], "len(SEEN)"),
        (["b = 0", "if subject.a > subject.b:", "    b = 1", 'assert measure("a", b) < 1'], "b"),
        (measured('float(subject.config.kind == "learned")'), "float(subject.config.kind == 'learned')"),
        (["sizes = subject.config", 'assert measure("a", value=sizes.n_ctx) < 1'], "sizes.n_ctx"),
        (["one, = [subject]", 'assert measure("a", one.task.offset) < 1'], "one.task.offset"),
        (measured("context(subject)"), "context(subject)"),
        (measured("(lambda model: model.config.n_ctx)(subject)"), "(lambda model: model.config.n_ctx)(subject)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_that_does_not_come_from_the_subject_is_seen(tmp_path, lines, value):
    assert problems(tmp_path, lines) == [
        f"`{value}` is measured and does not come from the subject; its config and task may be read, not measured"
    ]


@pytest.mark.parametrize(
    ("given", "asked"),
    [("request", "request"), ("read=by_name('name')", "by_name")],
    ids=["the fixture of the test itself", "by default"],
)
def test_a_parameter_that_tells_which_model_it_is_is_seen(tmp_path, given, asked):
    assert problems(tmp_path, ['assert measure("a", subject.a) < 1'], f"subject, measure, {given}") == [
        f"`{asked}` can tell which model it is; a claim is decided by what is measured alone"
    ]


def test_weights_sizes_and_task_may_be_read_and_modules_have_names_too(tmp_path):
    weights = (
        'measure("a", subject.checkpoint.parameters["a"].sum() / subject.config.n_ctx - subject.task.target_offset)'
    )
    assert problems(tmp_path, [f"assert {weights} < 1", 'assert measure("b", subject.run(elsewhere.name)) < 1']) == []


def test_what_a_fixture_of_the_file_asks_of_pytest_is_its_own_affair(tmp_path):
    lines = ['assert measure("a", subject.at(drawn)) < 1']
    assert problems(tmp_path, lines, "subject, measure, drawn") == []


def test_names_that_make_each_other_are_followed_once(tmp_path):
    lines = ["a = b = subject.a", "a = b - 0.7", "b = a", 'assert measure("a", a) < 0']
    assert problems(tmp_path, lines) == [f"0.7 in `b - 0.7` {HIDES}"]
    assert problems(tmp_path, ["a = b", "b = a", 'assert measure("a", subject.a - a) < 0']) == []


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["pass"], "asserts nothing"),
        (
            ["assert subject.a < 1"],
            "`assert subject.a < 1` is not of the form assert measure(name, value, unit) < bound",
        ),
        (['assert 0 < measure("a", subject.a) < 1'], "is not of the form"),
        (['assert measure("a", subject.a) < 1 < 2'], "is not of the form"),
        (['assert not measure("a", subject.a) < 1'], "is not of the form"),
        (['assert measure("a", subject.a) is not None'], "is not of the form"),
        (['assert measure("a", subject.a)'], "is not of the form"),
        (['assert measure(*("a", subject.a - 0.7)) < 0'], "is not of the form"),
        (['assert measure("a", **{"value": subject.a - 0.7}) < 0'], "is not of the form"),
        (['assert measure("a") < 0'], "is not of the form"),
        (
            ['assert measure("a", subject.a) < measure("b", subject.b)'],
            "is a bound that is measured; compare",
        ),
        (['assert measure("a", measure("b", subject.b)) < 1'], "is measured twice over; measure it once"),
        (
            ["from math import pi", 'assert measure("a", subject.a - pi) < 0'],
            "imports within its text: `from math import pi`; import at the head of the file, where it can be seen",
        ),
        (
            ['low = measure("a", subject.a) < 1', 'assert measure("b", subject.b) < 2'],
            f"line {AFTER_HEAD + 3} uses measure outside an assert",
        ),
        (
            ["again = measure", 'assert measure("b", subject.b) < 2'],
            f"line {AFTER_HEAD + 3} uses measure outside an assert",
        ),
        (
            ["def inner(measure):", "    pass", 'assert measure("b", subject.b) < 2'],
            "has an inner function with a measure of its own; there is only one",
        ),
    ],
)
def test_an_assert_of_another_form_is_seen(tmp_path, lines, problem):
    assert problem in "; ".join(problems(tmp_path, lines))


@pytest.mark.parametrize("form", ["0.9 < measure('a', subject.a) < 1", "abs(measure('a', subject.a) - 1) < 0.1"])
def test_a_measure_within_an_assert_of_another_form_is_one_problem(tmp_path, form):
    (problem,) = problems(tmp_path, [f"assert {form}"])
    assert problem == f"`assert {form}` is not of the form assert measure(name, value, unit) < bound"


def test_a_claim_whose_text_cannot_be_read_is_one_line():
    scope = {}
    exec("def test_it(subject, measure): ...", scope)
    with pytest.raises(
        ClaimError, match=r"^test_it: its text cannot be read; write it in a file or a notebook's cell$"
    ):
        body_problems(scope["test_it"])
