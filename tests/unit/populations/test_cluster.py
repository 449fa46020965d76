"""What needs no Ray; the slow tests of `on_ray` have the rest."""

from __future__ import annotations

import os
import socket
import time

import pytest

from nopos.errors import ConfigError, WorkerError
from nopos.populations import cluster
from nopos.populations.cluster import connected, require_possible


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name)


@pytest.fixture
def listening():
    """The address of a port on which something listens that is no cluster."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refused(address):
    with pytest.raises(WorkerError) as caught, connected(address, 1):
        pass
    return str(caught.value)


def test_without_ray_the_message_names_the_extra(monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^engine is ray, which is not installed; pip install 'nopos\[cluster\]'"):
        require_possible(None)


@pytest.mark.parametrize("address", ["", "auto", "here", "here:", ":6379", "here:0", "here:70000", "ray://here:6379"])
def test_what_is_no_address_is_refused(installed, address):
    with pytest.raises(ConfigError, match=r"it must be HOST:PORT, as 10.0.0.1:6379") as caught:
        require_possible(address)
    assert str(caught.value).startswith(f"ray-address is {address!r}; ")


@pytest.mark.parametrize("address", [None, "here:6379", "10.0.0.1:1", "[fd00::2]:6379"])
def test_what_is_an_address_is_not(installed, address):
    require_possible(address)


def test_an_address_where_nothing_listens_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert refused(f"127.0.0.1:{port}") == (
        f"ray-address 127.0.0.1:{port}: nothing answers within 5 s (Connection refused); start a cluster there with "
        f"`ray start --head --port {port}`, or name another"
    )


@pytest.mark.parametrize(
    ("asking", "message"),
    [
        ("print('W gcs: Unauthenticated: InvalidAuthToken', flush=True); time.sleep(60)", "the token is not the clus"),
        ("raise SystemExit('AuthenticationError: no authentication token was found. Do', 1)", "it wants a token, and"),
        ("raise RuntimeError('Version mismatch')", "cannot be joined (RuntimeError: Version mismatch)"),
        ("time.sleep(60)", "a port is open, but no cluster answers in 2 s; name its head's address"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_line_soon(monkeypatch, listening, asking, message):
    monkeypatch.setattr(cluster, "_ASK", f"import time; {asking}")
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 2)
    start = time.monotonic()
    error = refused(listening)
    assert error.startswith(f"ray-address {listening}: {message}")
    assert "\n" not in error
    assert time.monotonic() - start < 20


def test_the_environment_is_set_for_ray_and_afterwards_as_it_was(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", raising=False)
    before = dict(os.environ)
    with cluster._in_environment({"RAY_AUTH_TOKEN": "of our own"}):
        found = {name: os.environ[name] for name in (*cluster.SETTINGS, "RAY_AUTH_TOKEN")}
    assert found == {**cluster.SETTINGS, "RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "of our own"}
    assert dict(os.environ) == before


class Cluster:
    """What Ray tells of a cluster of three nodes, one of them dead and one without a CPU."""

    def __init__(self, free):
        self.free = free

    def available_resources(self):
        return {"CPU": self.free.pop(0)} if len(self.free) > 1 else {"CPU": self.free[0]}

    def cluster_resources(self):
        return {"CPU": 4.0}

    def nodes(self):
        return [
            {"Alive": True, "Resources": {"CPU": 4.0}},
            {"Alive": False, "Resources": {"CPU": 8.0}},
            {"Alive": True, "Resources": {}},
        ]


def test_the_cpus_of_a_cluster_are_those_of_its_nodes_that_live_once_one_is_free():
    assert cluster._free(Cluster([0.0, 0.0, 1.0]), "here:1") == (4,)


def test_a_cluster_without_a_free_cpu_is_one_line_after_a_bounded_wait(monkeypatch):
    monkeypatch.setattr(cluster, "FREE_SECONDS", 1)
    with pytest.raises(WorkerError, match=r"^ray-address here:1: has CPUs: 4, and none was free for 1 s; wait for "):
        cluster._free(Cluster([0.0]), "here:1")
