"""Imports point one way, and the rooms of the house keep their rules."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE, CONTRIBUTING = ROOT / "nopos", ROOT / "CONTRIBUTING.md"
# From the foundation up: a room imports only rooms that stand before it.
ROOMS = (
    "errors",
    "environment",
    "model",
    "training",
    "storage",
    "methods",
    "mechanism",
    "subjects",
    "populations",
    "bench",
    "verify",
    "cli",
)
MAY_IMPORT_CLAIMS = {"claims", "subjects", "populations", "verify", "cli"}
STAGES = (
    *("count", "layer_0_table", "position_code", "reading", "decoded_position"),
    *("kernel", "kernel_interventions", "decode", "program"),
)


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE) != Path("__init__.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[1]


KNOWN = {name_of(path) for path in modules()}


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, those for type checking alone left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in KNOWN else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.startswith("nopos.")}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_room_imports_only_rooms_that_stand_before_it(path):
    room, used = room_of(name_of(path)), {room_of(name) for name in ours(path)}
    if room == "claims":
        others = {name for name in ours(path) if room_of(name) not in ("claims", "errors", "environment")}
        assert others <= {"nopos.storage.files"}  # which loads no torch
    else:
        assert {name for name in used - {"claims"} if ROOMS.index(name) > ROOMS.index(room)} == set()
        assert "claims" not in used or room in MAY_IMPORT_CLAIMS


def test_contributing_states_this_order():
    stated = CONTRIBUTING.read_text().partition("Imports point one way: ")[2].partition(". ")[0]
    assert re.findall(r"`(\w+)`", stated) == [*reversed(ROOMS)]


def test_no_modules_import_each_other_in_a_circle():
    try:
        ordered = [*TopologicalSorter({name_of(path): ours(path) for path in modules()}).static_order()]
    except CycleError as error:
        ordered = error.args[1]
    assert set(ordered) >= KNOWN, ordered


def test_no_stage_of_the_mechanism_knows_a_later_one():
    for path in modules():
        name = name_of(path)
        if name.startswith("nopos.mechanism."):
            stages = [each.rpartition(".")[2] for each in ours(path) if each.startswith("nopos.mechanism.")]
            assert all(STAGES.index(stage) < STAGES.index(path.stem) for stage in stages), name


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_each_room_does_without_what_it_has_no_use_for(path):
    name, used = name_of(path), imports(path)
    room = room_of(name)
    loads_transformer_lens = any(each.startswith("transformer_lens") for each in used)
    if room in ("training", "storage") or (room == "model" and name != "nopos.model.transformer"):
        assert not loads_transformer_lens
        assert "nopos.model.transformer" not in used
    if room in ("methods", "mechanism"):
        assert not any(each.startswith("nopos.training") for each in used)
    if room == "claims":
        assert not loads_transformer_lens
        assert not any(each.split(".")[0] == "torch" for each in used)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["verify", "--help"], ["train", "--help"], ["sweep", "--help"], ["bench", "--help"], ["--version"]],
    ids=str,
)
def test_help_imports_neither_torch_nor_transformer_lens(arguments):
    code = (
        "import sys; from nopos.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as ending: assert ending.code == 0\n"
        "print(sorted({'torch', 'transformer_lens'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_training_runs_where_transformer_lens_is_not_installed(tmp_path):
    """Both loops, and the command."""
    code = (
        "import sys; sys.modules['transformer_lens'] = None\n"
        "import torch\n"
        "from nopos import cli\nfrom nopos.model import recipes\n"
        "from nopos.model.config import ModelConfig\n"
        "from nopos.model.recipes import Recipe, TrainConfig\n"
        "from nopos.model.data import training_batches\n"
        "from nopos.training import reference\n"
        "model, train = ModelConfig(d_vocab=5, n_ctx=4), TrainConfig(steps=2, batch_size=2)\n"
        "losses = reference.train(torch.nn.Embedding(5, 5), train, training_batches(model, train, 0), label='tiny')\n"
        "recipes.RECIPES['tiny'] = Recipe(name='tiny', model=model, train=train)\n"
        "code = cli.main(['train', '--recipe', 'tiny', '--seeds', '0-1', '--device', 'cpu'])\n"
        "print(len(losses), code)"
    )
    environment = {**os.environ, "NOPOS_CACHE_DIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.splitlines()[-1] == "2 0"
