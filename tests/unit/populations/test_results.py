from __future__ import annotations

import json
import random

import pytest

from nopos.methods.statistics import interval
from nopos.model.recipes import SPRINT
from nopos.populations.results import Member, summary
from nopos.populations.settings import grid_of, settings_of
from nopos.populations.table import lines

SETTINGS = settings_of(["sprint"], grid_of(["train.peak_lr=0.1,0.2,0.3"]))


def measurement(name, value):
    return {"name": name, "value": value, "unit": "nats", "operator": "<", "limit": 1.0}


def member(setting, seed, *, verdict="holds", failure=None, **values):
    claims = {"f.py::test_it": {"statement": "It is.", "verdict": verdict, "measurements": []}}
    claims["f.py::test_it"]["measurements"] = [measurement(name, value) for name, value in values.items()]
    return Member(
        name=f"{setting.name}-seed-{seed}",
        setting=setting.name,
        seed=seed,
        trained=failure is None,
        failure=failure,
        claims={} if failure else claims,
    )


def population():
    """Twelve models: `up` rises with the rate, `double` and `down` say what it says, `other` something else."""
    members = []
    for row, setting in enumerate(SETTINGS):
        for seed in range(4):
            up = row + seed / 10
            members.append(member(setting, seed, up=up, double=2 * up, down=-up, other=(7 * seed + row) % 5, flat=1.0))
    return members


def test_a_claim_has_its_count_in_each_setting():
    (first, *others) = SETTINGS
    verdicts = ["holds", "holds", "refuted", "error", "not measurable", "out of scope", "out of scope"]
    members = [member(first, seed, verdict=verdict) for seed, verdict in enumerate(verdicts)]
    (claim,) = summary(SETTINGS, [*members, member(others[0], 0)])["claims"]
    assert claim["statement"] == "It is."
    assert [(one["setting"], one["holds"], one["n"]) for one in claim["settings"]] == [
        (first.name, 2, 5),
        (others[0].name, 1, 1),
    ]
    assert claim["settings"][0]["interval"] == list(interval(2, 5))
    assert [claim["settings"][0][verdict] for verdict in verdicts[2:6]] == [1, 1, 1, 2]


def test_a_claim_that_is_about_none_of_the_models_has_any_share():
    (claim,) = summary(SETTINGS, [member(SETTINGS[0], 0, verdict="out of scope")])["claims"]
    (found,) = claim["settings"]
    assert (found["n"], found["out of scope"], found["interval"]) == (0, 1, [0.0, 1.0])


def test_a_measurement_has_its_median_and_spread():
    values = [5.0, 1.0, 2.0, 3.0, 4.0]
    (found,) = summary(SETTINGS, [member(SETTINGS[0], seed, loss=value) for seed, value in enumerate(values)])[
        "measurements"
    ]
    assert (found["claim"], found["name"], found["operator"], found["limit"]) == ("f.py::test_it", "loss", "<", 1.0)
    assert found["settings"] == [
        {"setting": SETTINGS[0].name, "n": 5, "median": 3.0, "quartiles": [2.0, 4.0], "least": 1.0, "most": 5.0}
    ]


def test_what_failed_is_counted_with_its_reason_and_is_in_no_number():
    members = [member(SETTINGS[0], 0, loss=1.0), member(SETTINGS[0], 1, failure="training: the loss is nan at step 3")]
    found = summary(SETTINGS[:1], members)
    assert [found[name] for name in ("expected", "trained", "done", "failed")] == [2, 1, 1, 1]
    (failure,) = found["failures"]
    assert (failure["model"], failure["seed"]) == (members[1].name, 1)
    assert failure["reason"] == "training: the loss is nan at step 3"
    assert found["claims"][0]["settings"][0]["n"] == 1
    assert found["measurements"][0]["settings"][0]["n"] == 1
    page = "\n".join(lines(found))
    assert "2 models were asked for: 1 trained, 1 trained and checked, 1 failed." in page
    assert f"- {members[1].name}, training: the loss is nan at step 3" in page


def test_a_population_of_which_all_failed_has_a_summary():
    found = summary(SETTINGS[:1], [member(SETTINGS[0], 0, failure="training: no")])
    assert found["claims"] == found["measurements"] == []
    assert "1 failed" in "\n".join(lines(found))


def test_how_measurements_change_along_an_axis():
    found = {one["name"]: one for one in summary(SETTINGS, population())["along"]}
    assert set(found) == {"up", "double", "down", "other"}  # what is the same in every model has no rank
    assert {(one["axis"], one["recipe"], one["n"]) for one in found.values()} == {("train.peak_lr", "sprint", 12)}
    # By hand: the ranks of the rates are 2.5, 6.5, 10.5 four times each, those of `up` are 1 to 12.
    assert found["up"]["rank_correlation"] == pytest.approx(128 / (128 * 143) ** 0.5)
    assert found["down"]["rank_correlation"] == -found["up"]["rank_correlation"]
    assert abs(found["other"]["rank_correlation"]) < 0.5


def test_an_axis_of_words_has_no_order():
    settings = settings_of(["sprint"], grid_of(["train.schedule=constant,cosine"]))
    members = [member(setting, seed, loss=seed) for setting in settings for seed in range(6)]
    assert summary(settings, members)["along"] == []


def test_measurements_that_order_the_models_alike_are_found_and_others_are_not():
    found = summary(SETTINGS, population())["alike"]
    pairs = {tuple(one["name"] for one in pair["pair"]): pair["rank_correlation"] for pair in found}
    assert pairs == {("up", "double"): 1.0, ("up", "down"): -1.0, ("double", "down"): -1.0}


def test_few_models_say_nothing_of_which_measurements_are_alike():
    assert summary(SETTINGS, population()[:9])["alike"] == []


def test_the_order_in_which_models_were_done_changes_no_byte():
    failed = [member(setting, 9, failure="training: no") for setting in SETTINGS]
    members, rng = [member(SETTINGS[0], 8, verdict="error", other=1.0), *population(), *failed], random.Random(0)
    first = summary(SETTINGS, members)
    for _ in range(5):
        rng.shuffle(members)
        again = summary(SETTINGS, members)
        assert json.dumps(again) == json.dumps(first)
        assert lines(again) == lines(first)


def test_a_page_shows_the_strongest_and_says_how_many_more_there_are():
    names = [f"m{number}" for number in range(50)]
    members = [member(SETTINGS[0], seed, **dict.fromkeys(names, float(seed))) for seed in range(10)]
    page = "\n".join(lines(summary(SETTINGS[:1], members)))
    assert "And 1185 more, in `summary.json`." in page  # 50 * 49 / 2 pairs, of which 40 are shown
    assert "| it: m0 | it: m1 | +1.000 | 10 |" in page


def test_the_recipe_itself_has_no_axis():
    (plain,) = settings_of([SPRINT.name], {})
    assert summary([plain], [member(plain, seed, loss=seed) for seed in range(5)])["along"] == []
