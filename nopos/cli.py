"""The command line: `nopos verify` and `nopos train`. Thin; what is slow to import is imported when it is needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from nopos.errors import ConfigError, NoposError

OK, UNEXPECTED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 as expected, 1 not so, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
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
        "--checkpoint", action="append", default=[], metavar="FILE",
        help="a model to check: ours, or a HookedTransformer state dict (.safetensors, .pt, .pth); repeatable",
    )  # fmt: skip
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
    train.add_argument("--device", metavar="D", help="cpu or cuda (default: CUDA where there is one)")
    train.add_argument("--out", type=Path, metavar="DIR", help="where the models go (default: the cache)")
    train.set_defaults(run=_train)
    return parser


def _verify(options: argparse.Namespace) -> int:
    import pytest

    from nopos.shipped import CLAIMS, VERIFY_INI

    os.environ.pop("PYTEST_ADDOPTS", None)  # options meant for other suites must not decide which claims run
    arguments = [
        str(CLAIMS),
        f"-c{VERIFY_INI}",
        f"--rootdir={CLAIMS}",
        f"--confcutdir={CLAIMS}",
        "-pnopos.pytest_plugin",
    ]
    arguments += [f"--nopos-checkpoint={path}" for path in options.checkpoint]
    for name in ("recipe", "seed", "device", "json"):
        value = getattr(options, name)
        if value is not None:
            arguments.append(f"--nopos-{name}={value}")
    ending = _Ending()
    code = pytest.main(arguments, plugins=[ending])
    if ending.interrupted:
        raise KeyboardInterrupt
    if code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        return BAD_INPUT
    return OK if code == pytest.ExitCode.OK else UNEXPECTED


class _Ending:
    """Tells Ctrl-C from the other reasons for which pytest ends a run early."""

    interrupted = False

    def pytest_keyboard_interrupt(self) -> None:
        self.interrupted = True


def _train(options: argparse.Namespace) -> int:
    from nopos import checkpoints, storage
    from nopos.config import recipe_named
    from nopos.data import held_out_tokens
    from nopos.model import NoPosTransformer
    from nopos.subject import HELD_OUT_SEQUENCES, held_out_loss

    recipe = recipe_named(options.recipe)
    seeds = _seeds(options)
    device = checkpoints.device_named(options.device)
    folder: Path = options.out or checkpoints.cache_folder()
    storage.require_writable(folder)
    tokens = held_out_tokens(recipe.model, HELD_OUT_SEQUENCES)
    for seed in seeds:
        trained = checkpoints.load_or_train(recipe, seed, device)
        where = folder
        if options.out is not None:
            where = folder / f"{recipe.name}-seed-{seed}.safetensors"
            checkpoints.save(trained, where)
        loss = held_out_loss(NoPosTransformer(trained.config, trained.parameters), tokens)
        print(f"{recipe.name} seed {seed}: held-out loss {loss:.6f} nats, {where}", flush=True)
    return OK


def _seeds(options: argparse.Namespace) -> Sequence[int]:
    if options.seeds is None:
        return [options.seed or 0]
    first, dash, last = options.seeds.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise ConfigError(f"seeds is {options.seeds!r}; it must be a range such as 0-9, from low to high")
    return range(int(first), int(last) + 1)


if __name__ == "__main__":
    sys.exit(main())
