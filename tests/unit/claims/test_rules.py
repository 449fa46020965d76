"""What can be seen in the text of a claim's body."""

from __future__ import annotations

import pytest

from nopos.claims.rules import body_problems

HIDES = "is a second free number that hides in a measurement; measure the ratio, or both quantities"


def problems(tmp_path, lines, given="subject, measure"):
    """What is wrong with a body of these lines."""
    path = tmp_path / "test_body.py"
    path.write_text(f"def test_it({given}):\n    '''It is.'''\n" + "".join(f"    {line}\n" for line in lines))
    scope = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    return body_problems(scope["test_it"])


FINE = [
    ['assert measure("a", subject.a) < 0.7'],
    ['assert measure("a", subject.a) < 2 / 3'],
    ['assert measure("a", subject.a - subject.b) < 0.7'],
    ['assert measure("a", 1 - subject.a) < 0.7', 'assert measure("b", (subject.b + 1) * -1, "nats") < 0'],
    ['assert measure("a", subject.at(5, factor=0.5)) < 0.7'],
    ['assert measure("a", subject.a[2:5][i + 2] / max(subject.b, eps)) < 0.7'],
    ['assert measure("a", sum(subject.at(i) for i in range(2 + n))) < 0.7'],
    ['assert measure("a", (subject.a > 0.5).mean()) < 0.7'],
    ["unused = 0.7 * subject.a", 'assert measure("a", subject.a) < 0.7'],
    ["limit = 2 * subject.b", 'assert measure("a", subject.a) < limit'],
    ['assert measure("a", subject.a * True) < 0.7'],
    ["for factor in (2.0, 0.5):", '    assert measure(f"a {factor}", subject.at(factor)) < 0.7'],
    ["for offset in (1, 2):", '    assert measure(f"a {2 * offset}", subject.at(offset)) < 0.7'],
]

HIDDEN = [
    (['assert measure("a", subject.a - 0.7 * subject.b) < 0'], "0.7 in `0.7 * subject.b`"),
    (['assert measure("a", subject.a - subject.b / 2) < 0'], "2 in `subject.b / 2`"),
    (['assert measure("a", value=subject.a - 3) < 0'], "3 in `subject.a - 3`"),
    (['assert measure("a", subject.a + -0.5) < 0'], "-0.5 in `subject.a + -0.5`"),
    (['assert measure("a", subject.a ** 2) < 1'], "2 in `subject.a ** 2`"),
    (['assert measure("a", max(subject.a, 1.5 * subject.b)) < 1'], "1.5 in `1.5 * subject.b`"),
    (["less = subject.a - 1.5 * subject.b", 'assert measure("a", less) < 0'], "1.5 in `1.5 * subject.b`"),
    (
        ["half = subject.b / 2", "less = subject.a - half", 'assert measure("a", less) < 0'],
        "2 in `subject.b / 2`",
    ),
    (["factor = 0.7", 'assert measure("a", subject.a - factor * subject.b) < 0'], "factor in `factor * subject.b`"),
    (["one, factor = 1, 0.7", 'assert measure("a", factor * subject.b) < 0'], "factor in `factor * subject.b`"),
    (["less = subject.a", "less -= 0.7", 'assert measure("a", less) < 0'], "0.7 in `less -= 0.7`"),
    (
        ["def less():", "    return subject.a - 0.7 * subject.b", 'assert measure("a", less()) < 0'],
        "0.7 in `0.7 * subject.b`",
    ),
    (["for less in (subject.a - 0.7,):", '    assert measure("a", less) < 0'], "0.7 in `subject.a - 0.7`"),
    (['assert measure("a", max(less - 0.7 for less in subject.all)) < 0'], "0.7 in `less - 0.7`"),
]


@pytest.mark.parametrize("lines", FINE, ids=lambda lines: lines[-1].strip()[15:60])
def test_a_body_that_keeps_the_rules_has_no_problem(tmp_path, lines):
    assert problems(tmp_path, lines) == []


@pytest.mark.parametrize(("lines", "where"), HIDDEN, ids=lambda value: value if isinstance(value, str) else "")
def test_a_second_free_number_in_a_measurement_is_seen(tmp_path, lines, where):
    assert problems(tmp_path, lines) == [f"{where} {HIDES}"]


def test_names_that_make_each_other_are_followed_once(tmp_path):
    lines = ["a = b = subject.a", "a = b - 0.7", "b = a", 'assert measure("a", a) < 0']
    assert problems(tmp_path, lines) == [f"0.7 in `b - 0.7` {HIDES}"]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["pass"], "asserts nothing"),
        (["assert subject.a < 1"], "`assert subject.a < 1` is not of the form assert measure(...) < bound"),
        (['assert 0 < measure("a", subject.a) < 1'], "is not of the form"),
        (['assert measure("a", subject.a) < 1 < 2'], "is not of the form"),
        (['assert not measure("a", subject.a) < 1'], "is not of the form"),
        (['assert measure("a", subject.a) is not None'], "is not of the form"),
        (['assert measure("a", subject.a)'], "is not of the form"),
        (['low = measure("a", subject.a) < 1', 'assert measure("b", 1) < 2'], "line 3 uses measure outside an assert"),
        (["again = measure", 'assert measure("b", 1) < 2'], "line 3 uses measure outside an assert"),
        (
            ["def inner(measure):", "    pass", 'assert measure("b", 1) < 2'],
            "has an inner function with a measure of its own; there is only one",
        ),
    ],
)
def test_an_assert_of_another_form_is_seen(tmp_path, lines, problem):
    assert problem in "; ".join(problems(tmp_path, lines))
