"""The command line: `nopos verify`, `train`, `sweep`, `bench`. Thin; what is slow to import is imported when needed."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nopos.errors import ConfigError, NoposError, TrainingError

OK, UNEXPECTED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
NOT_READ = 141
"""As of a program that SIGPIPE ends, so that a shell with `pipefail` knows it."""
MOST_SEEDS = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    It is 0 as expected, 1 not so, 2 bad input or no place for the output, 130 interrupted, 141 if nobody reads the
    output to its end.
    """
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # here, because what fails when Python ends is a traceback
    except BrokenPipeError:  # the reader has what it wanted, as `head` does
        _discard_output()
        return NOT_READ
    except OSError as error:
        if error.filename is not None:  # it was to open a file; a write to the output has no file's name
            raise
        _discard_output()
        print(f"nopos: the output cannot be written ({error.strerror}); send it elsewhere", file=sys.stderr)
        return BAD_INPUT


def _discard_output() -> None:
    """Let nothing that is still to be written fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    options.command = shlex.join(["nopos", *(sys.argv[1:] if arguments is None else arguments)])
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
    verify.add_argument(
        "--bidirectional",
        action="store_true",
        help="files of state dicts without a mask are of models that see later positions too (default: causal)",
    )
    verify.add_argument("--recipe", metavar="NAME", help="check a model of this recipe, from the cache or trained now")
    verify.add_argument("--seed", type=int, metavar="N", help="seed of that model (default: 0)")
    verify.add_argument("--list", action="store_true", help="print the claims, and check none")
    verify.add_argument(
        "-k",
        dest="keywords",
        metavar="EXPRESSION",
        help="check the claims whose names match; words with and, or, not, as for pytest",
    )
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
    train.add_argument("--kernel", metavar="K", help="fused or torch (default: fused where it can be compiled)")
    train.add_argument("--out", type=Path, metavar="DIR", help="where the models go (default: the cache)")
    train.set_defaults(run=_train)

    sweep = commands.add_parser(
        "sweep", help="train a population and check every claim on each model; goes on if stopped"
    )
    sweep.add_argument("--out", type=Path, required=True, metavar="DIR", help="the sweep's folder, new or begun before")
    sweep.add_argument(
        "--recipe", action="append", required=True, metavar="NAME", help="notebook or sprint; repeatable"
    )
    sweep.add_argument("--seeds", required=True, metavar="A-B", help="a range of seeds, both ends included")
    sweep.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="FIELD=V,V",
        help="values of a size or a training field, as d_model=32,64 or train.peak_lr=0.02,0.04; repeatable",
    )
    sweep.add_argument(
        "--workers", type=int, metavar="N", help="processes, among which cores are shared (default: cores)"
    )
    sweep.add_argument("--engine", default="local", metavar="E", help="local, or ray (default: local)")
    sweep.add_argument("--ray-address", metavar="HOST:PORT", help="of a Ray cluster (default: one of this machine)")
    sweep.add_argument("--device", metavar="D", help="where to train: cpu or cuda (default: CUDA where there is one)")
    sweep.add_argument("--kernel", metavar="K", help="fused or torch (default: fused where it can be compiled)")
    sweep.set_defaults(run=_sweep)

    bench = commands.add_parser("bench", help="how fast training is: every engine side by side; takes some minutes")
    bench.add_argument(
        "--against", metavar="COMMIT", help="time this version against a commit's instead; exits 1 if it is slower"
    )
    bench.add_argument("--rounds", type=int, metavar="N", help="rounds of --against, at least 6 (default: 10)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write what was measured as one JSON object")
    bench.add_argument("--device", metavar="D", help="cpu or cuda (default: CUDA where there is one)")
    bench.set_defaults(run=_bench)
    return parser


def _verify(options: argparse.Namespace) -> int:
    from nopos import verify

    if options.list:
        _require_no_checking(options)
        print("\n".join(verify.list_claims(options.keywords)))
        return OK
    wanted = verify.Wanted(
        files=options.checkpoint,
        bidirectional=options.bidirectional,
        recipe=options.recipe,
        seed=options.seed,
        device=options.device,
        keywords=options.keywords,
        json=options.json,
        command=options.command,
    )
    return OK if verify.verify(wanted) else UNEXPECTED


def _require_no_checking(options: argparse.Namespace) -> None:
    """Raise ConfigError if an option beside --list says how to check claims, which --list does not do."""
    for name in ("checkpoint", "bidirectional", "recipe", "seed", "json", "device"):
        value = getattr(options, name)
        if value is not None and value is not False and value != []:
            raise ConfigError(f"--{name} is given with --list, which checks no claim; leave out one of the two")


def _train(options: argparse.Namespace) -> int:
    from nopos.model.recipes import in_precision, recipe_named
    from nopos.storage import cache, checkpoints, files
    from nopos.training import trainer

    recipe = recipe_named(options.recipe)
    if options.precision is not None:
        recipe = in_precision(recipe, options.precision)
    device = checkpoints.device_named(options.device)
    seeds = _seeds(options)
    if options.out is not None:
        files.require_writable(options.out)
    code = OK
    for seed, trained in zip(
        seeds, cache.load_or_train_each(recipe, seeds, device, kernel=options.kernel), strict=True
    ):
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


def _sweep(options: argparse.Namespace) -> int:
    from nopos.populations import settings, sweep

    wanted = sweep.Wanted(
        out=options.out,
        recipes=options.recipe,
        seeds=_seed_range(options.seeds),
        grid=settings.grid_of(options.grid),
        workers=options.workers,
        engine=options.engine,
        ray_address=options.ray_address,
        device=options.device,
        kernel=options.kernel,
        command=options.command,
    )
    return OK if sweep.sweep(wanted, say=lambda line: print(line, flush=True)) else UNEXPECTED


def _bench(options: argparse.Namespace) -> int:
    from nopos.bench import run, table
    from nopos.storage import checkpoints

    if options.against is not None:
        return _bench_against(options)
    if options.rounds is not None:
        raise ConfigError(f"rounds is {options.rounds}; it goes with --against COMMIT, which is missing")
    device = checkpoints.device_named(options.device)
    _require_place(options.json, what="benchmark", holding={"schema", "engines"})
    result = run.measure(device)
    _print_and_write(options.json, result, table.table(result))
    return OK


def _bench_against(options: argparse.Namespace) -> int:
    from nopos.bench import against
    from nopos.storage import checkpoints

    device = checkpoints.device_named(options.device)
    _require_place(options.json, what="comparison", holding={"schema", "ratios"})
    rounds = against.ROUNDS if options.rounds is None else options.rounds
    result = against.compare(options.against, Path.cwd(), device, rounds=rounds)
    _print_and_write(options.json, result, against.table(result))
    return UNEXPECTED if any(row["is_regression"] for row in result["ratios"]) else OK


def _require_place(path: Path | None, *, what: str, holding: set[str]) -> None:
    """Before the long work: see that a JSON file can be written there, if one is wanted."""
    from nopos.storage import files

    if path is not None:
        files.require_place(path, what=what, holding=holding)


def _print_and_write(path: Path | None, result: dict[str, Any], lines: Sequence[str]) -> None:
    from nopos.storage import files

    print("\n".join(lines))
    if path is not None:
        files.write_atomically(path, files.json_bytes(result))


def _seeds(options: argparse.Namespace) -> Sequence[int]:
    return [options.seed or 0] if options.seeds is None else _seed_range(options.seeds)


def _seed_range(text: str) -> range:
    from nopos.model.config import require_seed

    try:
        first, last = (int(end) for end in text.split("-"))
    except ValueError:
        first, last = 1, 0
    if first > last:
        raise ConfigError(f"seeds is {text[:40]!r}; it must be a range such as 0-9, from low to high")
    require_seed(last)
    if last - first >= MOST_SEEDS:
        raise ConfigError(f"seeds is {text!r}; it must be a range of at most {MOST_SEEDS} seeds")
    return range(first, last + 1)


if __name__ == "__main__":
    sys.exit(main())
