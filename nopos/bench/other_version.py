"""Another commit's package, laid out beside this one and run in a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nopos.bench import timed_steps
from nopos.errors import ConfigError, TrainingError


def resolved(commit: str, repository: Path) -> str:
    """The full hash of a commit.

    Raises:
        ConfigError: the folder is in no git checkout, or the checkout has no such commit.
    """
    if not _git(repository, "rev-parse", "--show-toplevel").stdout:
        raise ConfigError(f"{repository}: is in no git checkout; run `nopos bench --against` where the commit is")
    found = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    if found.returncode:
        raise ConfigError(f"against is {commit!r}; it must be a commit of the checkout in {repository}")
    return found.stdout.decode().strip()


@contextmanager
def package_of(commit: str, repository: Path) -> Iterator[Path]:
    """A temporary folder with the commit's `nopos`, as `git archive` gives it; the checkout is left alone.

    Raises:
        ConfigError: the commit has no folder `nopos`.
    """
    top = Path(os.fsdecode(_git(repository, "rev-parse", "--show-toplevel").stdout.rstrip(b"\n")))
    archive = _git(top, "archive", "--format=zip", commit, "nopos")
    if archive.returncode:
        raise ConfigError(f"against is {commit[:12]}; it must be a commit with a package nopos, and this one has none")
    with tempfile.TemporaryDirectory(prefix="nopos-against-") as folder:
        with zipfile.ZipFile(io.BytesIO(archive.stdout)) as files:
            files.extractall(folder)
        yield Path(folder)


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise ConfigError("against needs git; install it so that `git` is found") from None


def seconds_in_a_process(name: str, folder: Path, steps: Mapping[str, int], device: str) -> dict[str, float]:
    """Wall-clock of so many steps of each recipe by the package in a folder, under this environment's Python.

    Raises:
        ConfigError: the package cannot be imported, or has nothing that trains.
        TrainingError: the process died.
    """
    request = json.dumps({"folder": str(folder), "device": device, "steps": dict(steps)})
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-P", timed_steps.__file__, request],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    if ended.returncode or not ended.stdout:
        raise TrainingError(f"{name}: its process died with code {ended.returncode}; nothing was measured")
    answer = json.loads(ended.stdout.splitlines()[-1])
    if "error" in answer:
        raise ConfigError(
            f"{name}: its package cannot train ({answer['error']}); name a commit whose trainer runs here"
        )
    seconds: dict[str, float] = answer["seconds"]
    return seconds
