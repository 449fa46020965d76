"""The Ray cluster that a sweep works on: one of its own, on this machine's loopback, or one that is there already.

Ray reads its settings from the environment when it is imported, so it is imported in `connected` and nowhere before.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nopos.errors import ConfigError, WorkerError
from nopos.populations.engine import in_one_line

SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers have the caller's environment; none is built for them
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".?",  # all that Ray would print between the driver's lines
    "RAY_worker_niceness": "0",  # by default workers yield to all else that the machine does
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # devices are hidden by us; else it warns that it may change
}
"""Where the caller's environment does not say otherwise."""
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0 Ray listens on loopback alone, on Linux too. An address of 127.0.0.1 that it is given it replaces by another."""
QUIET = {"log_to_driver": False, "logging_level": "CRITICAL"}
OBJECT_STORE = 256 * 2**20
"""Bytes of shared memory: a task takes and returns some megabytes."""
CONNECT_SECONDS, ANSWER_SECONDS, FREE_SECONDS = 5, 30, 15
"""So long for a port to be open, a cluster to answer, and one of its CPUs to be free."""
_ASK = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False); print('welcome')"


@dataclass(frozen=True, kw_only=True)
class Connected:
    """A cluster that answers."""

    ray: Any
    """The module."""
    cpus: tuple[int, ...]
    """Of each node."""


def require_possible(address: str | None) -> None:
    """Raise ConfigError if Ray is not installed, or the text is no address of a cluster."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("engine is ray, which is not installed; pip install 'nopos[cluster]', or use local")
    if address is not None:
        host, port = _parts(address)
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16 or set(host) & set("/ \t@"):
            raise ConfigError(f"ray-address is {address!r}; it must be HOST:PORT, as 10.0.0.1:6379")


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[Connected]:
    """A cluster to work on; at the end what this process has in it is ended, and a cluster of its own with it.

    Args:
        address: of a cluster, as HOST:PORT; None for one of this machine alone.
        cpus: that the cluster of this machine is to have.

    Raises:
        WorkerError: no cluster answers there, it does not take the token, or it has no free CPU.
    """
    own = {} if address is not None else {"RAY_AUTH_TOKEN": secrets.token_hex(32), LOOPBACK: "0"}
    with (
        _in_environment(own),
        tempfile.TemporaryDirectory(prefix="nopos-ray-", ignore_cleanup_errors=True) as folder,
    ):
        if address is not None:
            _require_answer(address, Path(folder) / "answer")
        import ray

        try:
            _init(ray, address, cpus, folder)
            yield Connected(ray=ray, cpus=_free(ray, address))
        finally:
            ray.shutdown()


def _init(ray: Any, address: str | None, cpus: int, folder: str) -> None:
    here = {
        "num_cpus": cpus, "num_gpus": 0, "object_store_memory": OBJECT_STORE, "include_dashboard": False,
        "_temp_dir": folder,
    }  # fmt: skip
    try:
        ray.init(**QUIET, **({"address": "local", **here} if address is None else {"address": address}))
    except Exception as error:
        hint = "; set TMPDIR to a folder with a shorter name" if "AF_UNIX" in str(error) else ""
        raise WorkerError(f"{_named(address)}: {in_one_line(error)}{hint}") from None


def _free(ray: Any, address: str | None) -> tuple[int, ...]:
    """The CPUs of each node, once one is free: those of a driver that was killed are so after a moment."""
    until = time.monotonic() + FREE_SECONDS
    while ray.available_resources().get("CPU", 0) < 1:
        if time.monotonic() > until:
            has = ray.cluster_resources().get("CPU", 0)
            raise WorkerError(
                f"{_named(address)}: has CPUs: {has:g}, and none was free for {FREE_SECONDS} s; wait for what else it "
                "does, or add a node"
            )
        time.sleep(0.2)
    found = (int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    return tuple(cpus for cpus in found if cpus)


def _require_answer(address: str, output: Path) -> None:
    """Raise WorkerError unless a cluster answers there and takes the token.

    Ray itself tries for minutes, cannot be interrupted meanwhile and then ends its process. So it is another one's.
    """
    host, port = _parts(address)
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise WorkerError(
            f"ray-address {address}: nothing answers within {CONNECT_SECONDS} s ({error.strerror or error}); start a "
            f"cluster there with `ray start --head --port {port}`, or name another"
        ) from None
    environment = {**os.environ, "RAY_BACKEND_LOG_LEVEL": "warning"}  # at which Ray says why not
    with output.open("wb") as file:
        asking = subprocess.Popen(
            [sys.executable, "-c", _ASK, address], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        why_not = _why_not(asking, output, address)
    finally:
        asking.kill()  # Ray leaves SIGTERM unanswered for most of a minute
        asking.wait()
    if why_not is not None:
        raise WorkerError(f"ray-address {address}: {why_not}")


def _why_not(asking: subprocess.Popen[bytes], output: Path, address: str) -> str | None:
    until, ended = time.monotonic() + ANSWER_SECONDS, False
    while time.monotonic() < until and not ended:
        ended = asking.poll() is not None  # before what it wrote is read
        text = output.read_text(errors="replace")
        if "welcome" in text:
            return None
        if "no authentication token was found" in text:
            return "it wants a token, and there is none; set RAY_AUTH_TOKEN to the cluster's, or RAY_AUTH_TOKEN_PATH"
        if "InvalidAuthToken" in text or "AuthenticationError" in text:
            return "the token is not the cluster's; set RAY_AUTH_TOKEN to that, or RAY_AUTH_TOKEN_PATH"
        if ended:
            return f"cannot be joined ({text.strip().rpartition(chr(10))[2][:200]})"
        time.sleep(0.1)
    return (
        f"a port is open, but no cluster answers in {ANSWER_SECONDS} s; name its head's address, and make this machine "
        f"a node of it with `ray start --address {address}`"
    )


def _parts(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), port


def _named(address: str | None) -> str:
    return "Ray on this machine" if address is None else f"ray-address {address}"


@contextmanager
def _in_environment(own: Mapping[str, str]) -> Iterator[None]:
    """Ray's settings in the environment, which afterwards is as it was."""
    before = dict(os.environ)
    os.environ.update({**{name: value for name, value in SETTINGS.items() if name not in before}, **own})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
