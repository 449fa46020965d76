"""Imports point one way."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nopos"
# From the foundation up: a module may import those of lower layers, and of its own.
LAYERS = (
    {"errors", "shipped", "bench_table"},
    {"config", "notebook"},
    {"data", "damage"},
    {"parameters", "storage"},
    {"training"},
    {"model", "checkpoints"},
    {"analysis", "theory", "cache"},
    {"subject"},
    {"controls"},
    {"measure"},
    {"claims"},
    {"ledger", "sources"},
    {"pytest_plugin", "bench"},
    {"cli", "__init__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


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
            names = {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "nopos" else {node.module}
            found |= names
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(path):
    part = part_of(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("nopos.")}
    upward = {name for name in used if RANK[name] > RANK[part]}
    assert upward == set()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_training_and_below_do_without_transformer_lens_and_analysis_without_training(path):
    part, used = part_of(path), imports(path)
    if RANK[part] <= RANK["training"]:
        assert not any(name.startswith("transformer_lens") for name in used)
    if part == "analysis":
        assert not any(name.startswith("nopos.training") for name in used)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["verify", "--help"], ["train", "--help"], ["bench", "--help"], ["--version"]], ids=str
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
        "from nopos import cli, config\n"
        "from nopos.config import ModelConfig, Recipe, TrainConfig\n"
        "from nopos.data import training_batches\n"
        "from nopos.training import reference\n"
        "model, train = ModelConfig(d_vocab=5, n_ctx=4), TrainConfig(steps=2, batch_size=2)\n"
        "losses = reference.train(torch.nn.Embedding(5, 5), train, training_batches(model, train, 0), label='tiny')\n"
        "config.RECIPES['tiny'] = Recipe(name='tiny', model=model, train=train)\n"
        "code = cli.main(['train', '--recipe', 'tiny', '--seeds', '0-1', '--device', 'cpu'])\n"
        "print(len(losses), code)"
    )
    environment = {**os.environ, "NOPOS_CACHE_DIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.splitlines()[-1] == "2 0"
