from __future__ import annotations

import pytest

from nopos.claims.control import KINDS, Control
from nopos.errors import ClaimError
from tests.support.fake_subjects import Fake


def test_a_control_is_identified_by_itself_and_not_by_its_name():
    first, second = (Control("same", "the same", Fake, "broken") for _ in range(2))
    assert first != second
    assert first == first
    assert len({first, second, first}) == 2


@pytest.mark.usefixtures("unchecked")
def test_a_kind_that_there_is_not_is_refused_in_one_line():
    with pytest.raises(ClaimError, match=r"the kind of control odd is 'odd'; it must be one of broken, other task"):
        Control("odd", "nothing", Fake, "odd")


def test_the_kinds_are_those_that_the_ledger_may_hold():
    assert KINDS == ("broken", "other task", "other mechanism", "near miss", "damaged artefact")
