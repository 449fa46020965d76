"""The command line: `nopos verify`, `train`, `bench`. Thin; what is slow to import is imported when it is needed."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

from nopos.errors import CheckpointError, ConfigError, NoposError, TrainingError

if TYPE_CHECKING:
    import pytest

    from nopos.pytest_plugin import LedgerKeeper

OK, UNEXPECTED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
MOST_SEEDS = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 as expected, 1 not so, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"nopos: {message}", file=sys.stderr)
            return int(options.run(options))
    except NoposError as error:
        print(f"nopos: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("nopos: interrupted; nothing unfinished was saved", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nopos", description="Findings about a transformer without positional embeddings, as tests that can fail."
    )
    parser.add_argument("--version", action="version", version=f"nopos {version('nopos')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    verify = commands.add_parser("verify", help="check every claim on a model; by default on the reference model")
    verify.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="FILE",
        help="a model to check: ours, or a HookedTransformer state dict (.safetensors, .pt, .pth); repeatable",
    )
    verify.add_argument("--recipe", metavar="NAME", help="check a model of this recipe, from the cache or trained now")
    verify.add_argument("--seed", type=int, metavar="N", help="seed of that model (default: 0)")
    verify.add_argument("--json", metavar="FILE", help="write what was measured as one JSON object")
    verify.add_argument("--device", metavar="D", help="where to train: cpu or cuda (default: CUDA where there is one)")
    verify.set_defaults(run=_verify)

    train = commands.add_parser("train", help="train models; prints the held-out loss of each")
    train.add_argument("--recipe", required=True, metavar="NAME", help="notebook or sprint")
    seeds = train.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, metavar="N", help="one seed (default: 0)")
    seeds.add_argument("--seeds", metavar="A-B", help="a range of seeds, both ends included")
    train.add_argument("--precision", metavar="P", help="of matrix products: full, or bfloat16, faster and less exact")
    train.add_argument("--device", metavar="D", help="cpu or cuda (default: CUDA where there is one)")
    train.add_argument("--out", type=Path, metavar="DIR", help="where the models go (default: the cache)")
    train.set_defaults(run=_train)

    bench = commands.add_parser("bench", help="how fast training is: every engine side by side; takes some minutes")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write what was measured as one JSON object")
    bench.add_argument("--device", metavar="D", help="cpu or cuda (default: CUDA where there is one)")
    bench.set_defaults(run=_bench)
    return parser


def _verify(options: argparse.Namespace) -> int:
    """Run pytest on the shipped claims, with a progress bar for its output and our table for its summary."""
    import pytest

    from nopos.shipped import CLAIMS, VERIFY_INI

    _prepare(options)
    arguments = [str(CLAIMS), f"-c{VERIFY_INI}", f"--rootdir={CLAIMS}", f"--confcutdir={CLAIMS}"]
    arguments += [f"--nopos-checkpoint={path}" for path in options.checkpoint]
    for name in ("recipe", "seed", "device", "json"):
        value = getattr(options, name)
        if value is not None:
            arguments.append(f"--nopos-{name}={value}")
    watcher, output = _Watcher(), io.StringIO()
    foreign = os.environ.pop("PYTEST_ADDOPTS", None)  # meant for other suites; it must not decide which claims run
    try:
        with redirect_stdout(output), redirect_stderr(output):
            code = pytest.main(arguments, plugins=[watcher])
    finally:
        watcher.progress.close()
        if foreign is not None:
            os.environ["PYTEST_ADDOPTS"] = foreign
    if watcher.interrupted:
        raise KeyboardInterrupt
    if code == pytest.ExitCode.USAGE_ERROR:
        problems = [line for line in output.getvalue().splitlines() if "nopos: " in line] or [output.getvalue()]
        raise ConfigError(problems[-1].partition("nopos: ")[2] or problems[-1])
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise ConfigError(f"{CLAIMS}: holds no claims; there is nothing to run")
    print("\n".join(watcher.keeper.ledger.table()).strip("\n"))
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        print(output.getvalue(), file=sys.stderr)
    return OK if code == pytest.ExitCode.OK else UNEXPECTED


def _prepare(options: argparse.Namespace) -> None:
    """Load or train the named models before pytest starts, so that bars, mistakes and Ctrl-C are not its affair."""
    from nopos import cache, checkpoints
    from nopos.config import ModelConfig, changes, recipe_named

    if options.recipe is not None:
        device = checkpoints.device_named(options.device)
        cache.load_or_train(recipe_named(options.recipe), options.seed or 0, device)
    for path in map(Path, options.checkpoint):
        sizes = changes(checkpoints.load(path).config, ModelConfig())
        for name in sizes.keys() - {"causal", "positions"}:
            wanted = getattr(ModelConfig(), name)
            raise CheckpointError(f"{path}: is a model with {name} {sizes[name]}; the claims are about {name} {wanted}")


class _Watcher:
    """Shows which claim is being checked, and tells Ctrl-C from the other reasons for which pytest ends early."""

    def __init__(self) -> None:
        from tqdm.auto import tqdm

        self.interrupted = False
        self.progress = tqdm(desc="loading", unit="claim", disable=None, leave=False, file=sys.stderr)

    def pytest_configure(self, config: pytest.Config) -> None:
        self.keeper = cast("LedgerKeeper", config.pluginmanager.get_plugin("nopos ledger"))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.progress.reset(total=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        from nopos.ledger import sentence

        self.progress.set_description(sentence(nodeid.split("[", maxsplit=1)[0])[:60])

    def pytest_runtest_logfinish(self) -> None:
        self.progress.update()

    def pytest_keyboard_interrupt(self) -> None:
        self.interrupted = True


def _train(options: argparse.Namespace) -> int:
    from nopos import cache, checkpoints, storage
    from nopos.config import in_precision, recipe_named
    from nopos.training import trainer

    recipe = recipe_named(options.recipe)
    if options.precision is not None:
        recipe = in_precision(recipe, options.precision)
    device = checkpoints.device_named(options.device)
    seeds = _seeds(options)
    if options.out is not None:
        storage.require_writable(options.out)
    code = OK
    for seed, trained in zip(seeds, cache.load_or_train_each(recipe, seeds, device), strict=True):
        if isinstance(trained, TrainingError):
            print(f"nopos: {trained}", file=sys.stderr, flush=True)
            code = UNEXPECTED
            continue
        where = trained.path
        if options.out is not None:
            where = options.out / f"{recipe.name}-seed-{seed}.safetensors"
            checkpoints.save(trained, where)
        loss = trainer.held_out_loss(recipe.model, trained.parameters)
        print(f"{recipe.name} seed {seed}: held-out loss {loss:.6f} nats, {where}", flush=True)
    return code


def _bench(options: argparse.Namespace) -> int:
    import json

    from nopos import bench, bench_table, checkpoints, storage

    device = checkpoints.device_named(options.device)
    if options.json is not None:
        storage.require_place(options.json, what="benchmark", holding={"schema", "engines"})
    result = bench.measure(device)
    print("\n".join(bench_table.table(result)))
    if options.json is not None:
        storage.write_atomically(options.json, (json.dumps(result, indent=1) + "\n").encode())
    return OK


def _seeds(options: argparse.Namespace) -> Sequence[int]:
    from nopos.config import require_seed

    if options.seeds is None:
        return [options.seed or 0]
    try:
        first, last = (int(end) for end in options.seeds.split("-"))
    except ValueError:
        first, last = 1, 0
    if first > last:
        raise ConfigError(f"seeds is {options.seeds[:40]!r}; it must be a range such as 0-9, from low to high")
    require_seed(last)
    if last - first >= MOST_SEEDS:
        raise ConfigError(f"seeds is {options.seeds!r}; it must be a range of at most {MOST_SEEDS} seeds")
    return range(first, last + 1)


if __name__ == "__main__":
    sys.exit(main())
