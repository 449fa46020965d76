"""The zoo is what its settings say: which models there are, in which half, made how, and how well they do."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import asdict, replace

import pytest

from fixtures.zoo import make
from fixtures.zoo.settings import RECIPES, ZooSetting, halves_by_the_rule, zoo_settings
from nopos.errors import ConfigError
from nopos.model.config import ModelConfig, changes
from nopos.model.recipes import FAST_OPTIMIZERS, NOTEBOOK, TrainConfig
from nopos.storage import checkpoints
from nopos.subjects.sizes import SIZES
from tests.support.engine import InProcess

SETTINGS = zoo_settings()
DRAWN = random.Random(0).sample(SETTINGS, 3)
ROUNDING = 1e-5
"""Nats by which a loss may differ on another processor."""
ONE_ANSWER = 1.5 / (256 * 29)
"""So much of the accuracy, at the shortest context, that may fall the other way on another processor."""


def changed(setting: ZooSetting) -> dict[str, object]:
    """All in which a setting differs from the notebook's recipe."""
    return changes(setting.recipe.model, NOTEBOOK.model) | changes(setting.recipe.train, NOTEBOOK.train)


def halves_of(settings: list[ZooSetting]) -> set[str]:
    return {setting.half for setting in settings}


def rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]


def test_there_are_as_many_settings_as_were_asked_for_and_no_two_are_alike():
    assert len(SETTINGS) >= 36
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)
    assert len({(one.recipe.model, one.recipe.train) for one in SETTINGS}) == len(SETTINGS)


def test_they_vary_what_was_asked_for():
    values = {name: {getattr(one.recipe.train, name) for one in SETTINGS} for name in vars(TrainConfig())}
    rates: dict[str, set[float]] = {}
    for one in SETTINGS:
        rates.setdefault(one.recipe.train.optimizer, set()).add(one.recipe.train.peak_lr)
    assert len([name for name, found in rates.items() if len(found) >= 2 and name not in FAST_OPTIMIZERS]) >= 5
    constant = [
        one.recipe.train for one in SETTINGS if one.family != RECIPES and one.recipe.train.schedule == "constant"
    ]
    assert len({train.peak_lr for train in constant if train.optimizer == "adamw"}) >= 3
    assert values["schedule"] == {"constant", "cosine"}
    assert {0.0, 1.0} <= values["weight_decay"]
    for name in ("betas", "batch_size", "muon_lr", "label_smoothing", "target_noise", "initial_scale"):
        assert len(values[name]) >= 2, name
    sizes = [one for one in SETTINGS if set(changed(one)) & set(SIZES)]
    assert len({one.recipe.model for one in sizes}) >= 6
    assert {name for one in sizes for name in changes(one.recipe.model, ModelConfig())} >= {
        "d_model", "n_heads", "n_layers", "n_ctx", "d_vocab", "d_mlp",
    }  # fmt: skip
    assert halves_of(sizes) == {"fitting", "judging"}


def test_the_halves_are_those_of_the_rule():
    families: dict[str, list[str]] = {}
    for setting in SETTINGS:
        families.setdefault(setting.family, []).append(setting.name)
    assert {one.name: one.half for one in SETTINGS} == halves_by_the_rule(families.items())
    assert families.pop(RECIPES) == ["sprint", "notebook"]
    for family in families:
        assert halves_of([one for one in SETTINGS if one.family == family]) == {"fitting", "judging"}, family


def test_every_setting_has_its_model_in_the_core_and_there_are_no_others():
    stems = {path.stem for path in make.CORE.iterdir()}
    assert stems == {setting.name for setting in SETTINGS}
    for setting in SETTINGS:
        path = make.path_of(setting, 0, make.CORE)
        assert make.found(setting, 0, path) is not None, setting.name


def recomputed(setting: ZooSetting, row: list[str]) -> None:
    """Assert that a line of the table is what its model gives."""
    numbers = make.numbers_of(setting, checkpoints.load(make.path_of(setting, 0, make.CORE)))
    assert row[:4] == [setting.name, setting.family, setting.half, str(numbers.steps)]
    assert float(row[4]) == pytest.approx(numbers.loss, abs=ROUNDING, rel=1e-3)
    assert float(row[5]) == pytest.approx(numbers.accuracy, abs=ONE_ANSWER)
    assert numbers.accuracy > make.SOLVED


def test_the_table_is_of_every_setting_and_a_drawn_few_of_its_lines_are_what_the_models_give():
    table = {row[0]: row for row in rows(make.TABLE.read_text())}
    assert list(table) == [setting.name for setting in SETTINGS]
    assert all(float(row[5]) > make.SOLVED for row in table.values())
    for setting in DRAWN:
        recomputed(setting, table[setting.name])


@pytest.mark.slow
def test_every_line_of_the_table_is_what_its_model_gives():
    for setting, row in zip(SETTINGS, rows(make.TABLE.read_text()), strict=True):
        recomputed(setting, row)


def test_the_population_has_as_many_models_of_each_setting_as_were_asked_for():
    models = json.loads(make.POPULATION.read_text())["models"]
    assert len({(one["setting"], one["seed"]) for one in models}) == len(models)
    assert len({one["sha256"] for one in models}) == len(models)
    counts = Counter(one["setting"] for one in models)
    assert (counts.pop("sprint"), counts.pop("notebook")) == (300, 6)
    assert {name: count >= 2 for name, count in counts.items()} == {
        one.name: True for one in SETTINGS if one.family != RECIPES
    }
    halves, of_core = {one.name: one.half for one in SETTINGS}, dict[str, str]()
    for one in models:
        assert one["accuracy"] > make.SOLVED, one
        assert one["half"] == halves[one["setting"]]
        of_core |= {one["setting"]: one["sha256"]} if one["seed"] == 0 else {}
    assert of_core == {one.name: checkpoints.load(make.path_of(one, 0, make.CORE)).sha256 for one in SETTINGS}


@pytest.fixture
def tiny_zoo(tmp_path, monkeypatch, tiny_recipe):
    """Two settings that train in a blink and learn nothing, and nothing made yet."""
    other = replace(tiny_recipe, train=replace(tiny_recipe.train, optimizer="nadam"))
    settings = tuple(
        ZooSetting(name=name, family="tiny", half="fitting", recipe=recipe)
        for name, recipe in (("plain", tiny_recipe), ("other", other))
    )
    monkeypatch.setattr(make, "zoo_settings", lambda: settings)
    monkeypatch.setattr(make.local, "Local", InProcess)
    for name, file in (("CORE", "core"), ("TABLE", "core.md"), ("POPULATION", "population.json")):
        monkeypatch.setattr(make, name, tmp_path / file)
    return settings


@pytest.fixture
def trainings(monkeypatch):
    """The seeds that were trained, in order."""
    trained, real = [], make.work.train

    def train(recipe, seeds, device, kernel):
        trained.extend(seeds)
        return real(recipe, seeds, device, kernel)

    monkeypatch.setattr(make.work, "train", train)
    return trained


def test_what_is_whole_is_not_trained_again_and_what_is_not_is(tiny_zoo, trainings, tmp_path):
    make.main([])
    assert trainings == [0, 0]
    before = make.TABLE.read_text()
    make.main([])
    assert trainings == [0, 0]
    assert make.TABLE.read_text() == before
    weights = tmp_path / "core" / "other.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    make.main([])
    assert trainings == [0, 0, 0]
    assert make.TABLE.read_text() == before


def test_a_model_of_another_training_is_trained_again(tiny_zoo, trainings, monkeypatch):
    make.main([])
    recipe = replace(tiny_zoo[0].recipe, train=replace(tiny_zoo[0].recipe.train, steps=4))
    monkeypatch.setattr(make, "zoo_settings", lambda: (replace(tiny_zoo[0], recipe=recipe), tiny_zoo[1]))
    make.main([])
    assert trainings == [0, 0, 0]


def test_the_whole_is_the_core_and_more_seeds_beside_it(tiny_zoo, trainings, tmp_path):
    make.main([])
    make.main(["--whole", str(tmp_path / "more")])
    assert trainings == [0, 0, 1, 1]
    assert sorted(path.name for path in (tmp_path / "more").iterdir()) == [
        "other-seed-1.json", "other-seed-1.safetensors", "plain-seed-1.json", "plain-seed-1.safetensors",
    ]  # fmt: skip
    models = json.loads(make.POPULATION.read_text())["models"]
    assert [(one["setting"], one["seed"]) for one in models] == [("plain", 0), ("plain", 1), ("other", 0), ("other", 1)]
    expected = make.numbers_of(tiny_zoo[0], checkpoints.load(tmp_path / "more" / "plain-seed-1.safetensors"))
    assert models[1] == asdict(expected)


def test_a_model_that_misses_the_accuracy_is_named_and_so_is_one_that_diverges(tiny_zoo, monkeypatch, capsys):
    assert make.main([]) == 1
    assert "; it must be above 0.999" in capsys.readouterr().out
    monkeypatch.setattr(make, "SOLVED", -1.0)
    assert make.main([]) == 0
    recipe = replace(tiny_zoo[0].recipe, train=replace(tiny_zoo[0].recipe.train, peak_lr=1e38))
    monkeypatch.setattr(make, "zoo_settings", lambda: (replace(tiny_zoo[0], recipe=recipe), tiny_zoo[1]))
    assert make.main([]) == 1
    assert "plain: training tiny, seed 0: the loss is nan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('half = "third"', "half of odd is 'third'; it must be one of fitting, judging"),
        ('half = "fitting"\ntrain = { steps = 0 }', "the setting odd cannot be: steps is 0"),
        ('half = "fitting"\nmodel = { depth = 3 }', "the setting odd cannot be: "),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(tmp_path, entry, message):
    file = tmp_path / "settings.toml"
    file.write_text(f'[[setting]]\nname = "odd"\nfamily = "odd"\nrecipe = "sprint"\n{entry}\n')
    with pytest.raises(ConfigError, match=message):
        zoo_settings(file)
