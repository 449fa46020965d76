from __future__ import annotations

import pytest

from nopos.errors import ConfigError
from nopos.subjects import plugin
from nopos.subjects.loaders import SLOW_MODELS


@pytest.fixture
def subjects(pytester):
    """The names of the subjects that pytest's command line asks for."""

    def named(*options):
        config = pytester.parseconfig("-pnopos.subjects.plugin", *options)
        return [loader.name for loader in plugin.pytest_nopos_subjects(config)]

    return named


@pytest.mark.parametrize(
    ("markers", "wanted"),
    [
        ("slow", True),
        ("slow or not slow", True),
        ("slow and claim", True),
        ("slow and requested", True),
        ("slow and not claim", True),
        ("(slow) and not cuda", True),
        ("", False),
        ("not slow", False),
        ("not (slow)", False),
        ("claim", False),
        ("requested", False),
        ("slowly", False),
        ("not slowly", False),
        ("slow and", False),
    ],
)
def test_trained_models_are_checked_where_slow_tests_are_selected(subjects, markers, wanted):
    trained = [f"{recipe} seed {seed}" for recipe, seed in SLOW_MODELS] if wanted else []
    assert subjects("-m", markers) == ["reference", *trained]


@pytest.mark.parametrize("option", ["--nopos-retrain", "--nopos-device=cpu"])
@pytest.mark.parametrize("others", [["-mnot slow"], ["-mslow", "--nopos-checkpoint=none.pt"]], ids=" ".join)
def test_how_to_train_is_refused_where_nothing_is_trained(subjects, option, others):
    """Beside a file none of the slow tier's models is checked."""
    with pytest.raises(ConfigError, match="is given, but nothing is trained"):
        subjects(*others, option)


def test_a_model_with_nothing_to_predict_is_one_line_before_any_test(pytester, one_position):
    path, problem = one_position
    result = pytester.runpytest_inprocess("-pnopos.subjects.plugin", "-pno:cacheprovider", f"--nopos-checkpoint={path}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: nopos: {problem}"])
    assert "Traceback" not in result.stderr.str() + result.stdout.str()
