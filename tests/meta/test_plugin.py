"""The plugin does as people know of pytest's plugins: in a project of one's own, whose subjects are coins."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest

from nopos.claims.plugin import MARKERS
from tests.support.coin_project import BENT, CLAIMS, CONFTEST

FIXTURES = """
import pytest

@pytest.fixture
def subject():
    return 1

@pytest.fixture
def measure():
    return 2

def test_of_ones_own(subject, measure):
    assert (subject, measure) == (1, 2)
"""


def output(result):
    return [line for line in result.stdout.lines if " in 0." not in line and "plugins:" not in line]


# --- where there are no claims


def test_a_project_without_claims_notices_nothing(project):
    files = {"conftest.py": "import pytest", "test_claims.py": FIXTURES}
    with_it, without = project("-pno:warnings", files=files), project("-pno:warnings", "-pno:nopos", files=files)
    with_it.assert_outcomes(passed=1)
    assert output(with_it) == output(without)


def test_no_marker_is_added_where_nobody_names_a_subject(project):
    files = {"conftest.py": "import pytest", "test_claims.py": "import pytest\n@pytest.mark.slow\ndef test_it(): ..."}
    result = project("--strict-markers", "-m", "", files=files, process=True)  # pytest remembers markers in a process
    assert result.ret == pytest.ExitCode.INTERRUPTED
    project("--markers", files=files).stdout.no_fnmatch_line("*nopos*")


def test_nothing_heavy_is_imported_where_there_are_no_claims(project):
    heavy = """
import sys

def pytest_unconfigure(config):
    assert config.pluginmanager.hasplugin("nopos.claims.plugin")
    print("heavy:", sorted({"torch", "numpy", "transformer_lens", "nopos.subjects", "jaxtyping"} & set(sys.modules)))
"""
    files = {"conftest.py": heavy, "test_claims.py": FIXTURES}
    result = project("-s", "-pno:jaxtyping", "-pno:hypothesispytest", files=files, process=True)
    result.stdout.fnmatch_lines(["heavy: []"])


def test_the_line_that_was_needed_before_pytest_loaded_it_does_no_harm(project):
    line = 'pytest_plugins = ["nopos.claims.plugin"]\n'
    result = project("-Werror", files={"conftest.py": line + CONFTEST}, process=True)
    result.assert_outcomes(passed=2, deselected=2)


# --- which subjects


def test_the_header_names_the_subjects_of_the_claims_that_run(project):
    assert "nopos: claims are checked on fair" in project().stdout.lines
    assert "nopos: claims are checked on fair, slow" in project("-m", "claim").stdout.lines
    assert "nopos: subjects are fair, slow" in project("-n1", process=True).stdout.lines
    for option in ("-q", "--no-header"):
        project(option).stdout.no_fnmatch_line("*are checked on*")


def test_each_folder_names_its_own_subjects(project):
    """The nearest conftest.py counts; those below the folder that pytest is given are found too."""
    other = CONFTEST.replace('"fair"', '"other"').replace('"slow"', '"its slow"')
    files = {"test_claims.py": "", "x/y/conftest.py": other, "x/y/z/test_deep.py": CLAIMS, "x/test_high.py": CLAIMS}
    result = project("--collect-only", "-q", files=files)
    collected = [line.partition("::")[0] + line.partition("[")[2] for line in result.stdout.lines if "fair[" in line]
    assert sorted(collected) == ["x/test_high.pyfair]", "x/y/z/test_deep.pyother]"]
    project(files=files).assert_outcomes(passed=4, deselected=4)


def test_a_conftest_that_names_nobody_leaves_it_to_those_above(project):
    none = "def pytest_nopos_subjects(config):\n    return None"
    files = {"x/conftest.py": none, "x/test_a.py": CLAIMS}
    result = project(files=files)
    result.assert_outcomes(passed=4, deselected=4)
    result.stdout.fnmatch_lines(["nopos: claims are checked on fair"])


def test_what_fails_in_a_conftests_hook_is_one_line(project):
    result = project(files={"conftest.py": CONFTEST.replace("return [fair", "return [far")})
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: nopos: pytest_nopos_subjects: NameError: name 'far' is not defined (*conftest.py:7)"]
    )


def test_two_folders_that_call_two_models_by_one_name_are_refused(project):
    files = {"test_claims.py": "", "x/conftest.py": CONFTEST, "x/test_a.py": CLAIMS, "y/conftest.py": CONFTEST}
    result = project(files=files | {"y/test_a.py": CLAIMS})
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: nopos: fair: is named twice; name each model once"])


# --- which claims


def ledger_ids(pytester):
    ledger = json.loads((pytester.path / "ledger.json").read_text())
    return [claim["id"] for claim in ledger["subjects"][0]["claims"]]


PARAMETERS = """
import pytest

@pytest.mark.parametrize(("much", "what"), [(1, object()), (2, [])])
@claim(evidence="behavioural", source="here", refuted_by=[LOADED])
def test_it_has_a_parameter(subject, measure, much, what):
    '''It has.'''
    assert measure("share of heads", subject.heads) < 0.8
"""


@pytest.mark.parametrize("processes", [(), ("-n2",)], ids=["one process", "two processes"])
def test_a_claims_id_has_its_path_and_is_the_same_in_every_process(project, pytester, processes):
    files = {"test_claims.py": "", "x/test_a.py": CLAIMS, "y/test_a.py": CLAIMS + PARAMETERS}
    project("--nopos-json=ledger.json", *processes, files=files, process=bool(processes)).assert_outcomes(passed=6)
    assert ledger_ids(pytester) == [
        *(f"{path}/test_a.py::test_the_coin_{has}" for path in "xy" for has in ("is_fair", "has_a_tail")),
        *(f"y/test_a.py::test_it_has_a_parameter[{much}-what{much - 1}]" for much in (1, 2)),
    ]


SAME = """
import pytest

@pytest.mark.parametrize("much", [pytest.param(0.1, id="a"), pytest.param(0.1, id="b", marks=pytest.mark.skip)])
@claim(evidence="behavioural", source="here", refuted_by=[LOADED])
def test_it_has_a_parameter(subject, measure, much):
    '''It has.'''
    assert measure("share of heads", subject.heads) < 0.8
"""


def test_parameters_of_one_value_and_paths_with_brackets_make_claims_of_their_own(project, pytester):
    """No claim stands for another: one that was skipped is missed."""
    files = {"test_claims.py": "", "a[1]/test_a.py": CLAIMS, "a[2]/test_a.py": CLAIMS + SAME}
    result = project("--nopos-json=ledger.json", files=files)
    result.assert_outcomes(passed=5, skipped=1, deselected=6)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert ledger_ids(pytester) == [
        *(f"a[{one}]/test_a.py::test_the_coin_{has}" for one in (1, 2) for has in ("is_fair", "has_a_tail")),
        *(f"a[2]/test_a.py::test_it_has_a_parameter[{which}]" for which in "ab"),
    ]
    result.stdout.fnmatch_lines(["  1 did not run: it has a parameter [[]b]"])


def test_the_subject_is_left_out_of_an_id_whatever_other_parameters_come_first(project, pytester):
    more = "\ndef pytest_generate_tests(metafunc):\n    metafunc.parametrize('early', ['first'])\n"
    claims = CLAIMS.replace("(subject, measure)", "(early, subject, measure)")
    project("--nopos-json=ledger.json", files={"conftest.py": CONFTEST + more, "test_claims.py": claims})
    assert ledger_ids(pytester) == [f"test_claims.py::test_the_coin_{has}[first]" for has in ("is_fair", "has_a_tail")]


def test_the_table_has_the_file_of_claims_of_one_name(project):
    lines = project(files={"x/test_a.py": CLAIMS}).stdout.lines
    assert [line.strip() for line in lines if line.startswith("  the coin is fair")] == [
        "the coin is fair (test_claims.py)",
        "the coin is fair (x/test_a.py)",
    ]


def test_the_findings_that_were_requested_are_selected_by_their_marker(project):
    result = project("-mrequested and not slow", "--strict-markers")
    result.assert_outcomes(passed=1, deselected=3)
    result.stdout.fnmatch_lines(["*the coin is fair*"])


# --- pytest's own options


@pytest.mark.parametrize("option", ["--setup-plan", "--setup-only", "--collect-only", "--fixtures", "--markers"])
def test_a_run_that_is_to_run_nothing_has_nothing_that_was_not_run(project, option):
    result = project(option, "-mclaim")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*nopos: what was measured*")
    result.stdout.no_fnmatch_line("*did not run*")


def test_claims_are_collected_where_nobody_names_a_subject(project):
    result = project("--collect-only", files={"conftest.py": "import pytest"})
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("nopos: *")


def test_collecting_quietly_prints_nothing_but_ids(project):
    assert project("--collect-only", "-q").stdout.lines[:2] == [
        "test_claims.py::test_the_coin_is_fair[fair]",
        "test_claims.py::test_the_coin_has_a_tail[fair]",
    ]


def test_markers_and_fixtures_explain_themselves(project):
    lines = project("--markers").stdout.lines
    assert [f"@pytest.mark.{marker}" for marker in MARKERS if f"@pytest.mark.{marker}" not in lines] == []
    text = project("--fixtures").stdout.str()
    assert "A model under test" in text.partition("nopos_subject [session scope]")[2]


def test_the_quieter_the_less_is_printed(project):
    def printed(*options):
        lines = project(*options, files=BENT).stdout.lines
        return "the coin has a tail" in " ".join(lines), "  the coin is fair" in lines

    assert printed() == (True, True)
    assert printed("-q") == (False, True)
    assert printed("-qq") == printed("--no-summary") == (False, False)


def test_a_run_that_stops_at_the_first_failure_counts_the_others(project):
    result = project("-x", files=BENT)
    result.assert_outcomes(failed=1, deselected=2)
    result.stdout.fnmatch_lines(
        ["  0 of 2 claims came out as expected, all but:", "  1 did not run: the coin has a tail"]
    )


@pytest.mark.parametrize("option", ["--lf", "--sw"])
def test_what_failed_is_run_again(project, pytester, option):
    project(files=BENT)
    failed = pytester.runpytest_inprocess("-mnot slow", "-x")
    again = pytester.runpytest_inprocess("-mnot slow", option)
    failed.assert_outcomes(failed=1, deselected=2)
    again.assert_outcomes(failed=1, deselected=0 if option == "--lf" else 2)


@pytest.mark.parametrize("options", [("-ostrict=true",), ("-n2", "-ostrict=true")], ids=["strict", "strict, xdist"])
def test_it_works_in_strict_mode(project, options):
    project(*options, "-Werror", process=True).assert_outcomes(passed=2)


def test_the_XML_of_a_run_says_in_JSON_what_was_claimed_and_measured(project, pytester):
    project("--junitxml=run.xml")
    cases = ET.parse(pytester.path / "run.xml").getroot().iter("testcase")
    properties = {case.get("name"): json.loads(case.find(".//property").get("value")) for case in cases}
    fair = properties["test_the_coin_is_fair[fair]"]
    assert (fair["subject"], fair["statement"], fair["verdict"]) == ("fair", "It is.", "holds")
    (measured,) = fair["measurements"]
    assert [measured[part] for part in ("name", "value", "operator", "limit")] == ["share of heads", 0.5, "<", 0.6]
    assert [one["name"] for one in measured["refuted_by"]] == ["loaded"]
