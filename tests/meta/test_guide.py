"""The guide to models of one's own: its files work as printed, and each mistake has the message that it shows."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parents[2] / "docs" / "your-own-model.md").read_text()
MISTAKES = GUIDE.partition("## What the machinery catches")[2].partition("\n## ")[0]
HEAD = """
import torch
from nopos import Control, claim
from subjects import RANDOM_EMBEDDING, UNTRAINED, larger
from test_larger import answers_kept_on_the_line, order_on_the_line

"""


def words(text):
    """One line, without hashes and decimals, whose last digits differ between machines."""
    return " ".join(re.sub(r"sha256 \w+|\d\.\d{3,}", "…", text).split())


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def project(pytester):
    """The guide's files."""
    files = {}
    for block in blocks(GUIDE.partition("## What the machinery catches")[0], "python"):
        if named := re.match(r"# (\w+)\.py", block):
            files[named[1]] = files.get(named[1], "") + block
    pytester.makepyfile(**files)
    pytester.syspathinsert()
    return pytester


def test_the_claims_hold_and_what_is_printed_is_what_the_guide_shows(project):
    result = project.runpytest_subprocess("-pno:cacheprovider")
    result.assert_outcomes(passed=2)
    (shown,) = blocks(GUIDE.partition("### 5.")[2].partition("### 6.")[0], "text")
    printed = [words(line) for line in result.stdout.lines]
    assert [line for line in shown.splitlines() if words(line) not in printed] == []


def test_each_mistake_has_the_message_that_the_guide_shows(project):
    """In one session, since the networks are trained once in each."""
    claims, messages = blocks(MISTAKES, "python"), blocks(MISTAKES, "text")
    assert len(claims) == len(messages) == MISTAKES.count("\n### ")
    named = {f"test_mistake_{number}": HEAD + text for number, text in enumerate(claims[:-1])}
    project.makepyfile(**named)
    files = [f"{name}.py" for name in named]
    result = project.runpytest_subprocess("--continue-on-collection-errors", "-pno:cacheprovider", "-vv", *files)
    printed = words(result.stdout.str())
    assert [text for text in messages[:-1] if words(text) not in printed] == []
    counted = result.parseoutcomes()
    assert "passed" not in counted
    assert counted["failed"] + counted["errors"] == len(named)


def test_a_control_that_is_made_of_the_subject_works_as_the_guide_shows(project):
    (made,) = [textwrap.dedent(block) for block in blocks(GUIDE, "python") if "REVERSED" in block]
    claim = """

@claim(evidence="correlational", source="the guide", refuted_by=[REVERSED, RANDOM_EMBEDDING])
def test_the_first_number_lies_below_the_last(subject, measure):
    '''Along the line 0 lies below 31.'''
    assert measure("way from 0 to 31", subject.run(way)) > 0


def way(model):
    embedding = model.embed.weight.detach()
    return ((embedding[31] - embedding[0]) @ WAY).item()
"""
    head = "import copy\n" + HEAD + "from larger import trained\n\nWAY = trained(0).embed.weight.detach()\n"
    text = head + "WAY = WAY[31] - WAY[0]\n" + made + claim
    project.makepyfile(test_reversed=text)
    result = project.runpytest_subprocess("-pno:cacheprovider", "test_reversed.py")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*false on reversed (near miss)*"])


def test_a_project_whose_conftest_names_nobody_has_the_message_too(project):
    project.makepyfile(conftest=blocks(MISTAKES, "python")[-1])
    result = project.runpytest_inprocess("-pno:cacheprovider")
    assert blocks(MISTAKES, "text")[-1].strip() in result.stderr.lines
