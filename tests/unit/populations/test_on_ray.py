"""The engine on a module that stands for Ray; and, in the slow tests, on real clusters of this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from nopos.errors import ConfigError, WorkerError
from nopos.populations import cluster, local, on_ray
from nopos.populations.cluster import Connected
from nopos.populations.engine import Engine, Task
from nopos.populations.on_ray import OnRay, shared_out


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        self.cause = cause


class Exceptions:
    RayError, RayTaskError = RayError, RayTaskError


def deadly():
    raise RayError


def unsendable():
    raise RayTaskError(TypeError("cannot pickle it"))


class Actor:
    def __init__(self, ray, node):
        self.ray, self.node = ray, node
        ray.alive.append(self)

    def __getattr__(self, name):
        return Method(self, name)


class Method:
    def __init__(self, actor, name):
        self.actor, self.name = actor, name

    def remote(self, *arguments):
        return Reference(self.actor, self.name, arguments)


class Reference:
    def __init__(self, actor, name, arguments):
        self.actor, self.name, self.arguments = actor, name, arguments


class FakeRay:
    """One task after another, in this process; the last reference is the first that is ready."""

    exceptions = Exceptions

    def __init__(self):
        self.alive, self.options_given, self.facts, self.ready = [], [], [{"torch": "2"}], True
        self.has_own_node = True

    def remote(self, kind):
        assert kind is on_ray.Worker
        ray = self

        class Kind:
            def options(self, **options):
                ray.options_given.append(options)
                return self

            def remote(self, threads):
                return Actor(ray, f"10.0.0.{len(ray.options_given)}")

        return Kind()

    def wait(self, references, timeout):
        assert references
        return (references[-1:], references[:-1]) if self.ready else ([], references)

    def get(self, reference):
        if reference.name == "begin":
            facts = self.facts.pop() if len(self.facts) > 1 else self.facts[0]
            if isinstance(facts, Exception):
                raise facts
            return reference.actor.node, facts
        function, arguments = reference.arguments
        if function in (deadly, unsendable):
            function()
        return on_ray.Worker.run(None, function, arguments)

    def kill(self, actor):
        self.alive.remove(actor)

    def nodes(self):
        return [{"NodeID": "own", "Alive": self.has_own_node}, {"NodeID": "other", "Alive": True}]

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "own")


@pytest.fixture
def ray(monkeypatch):
    ray = FakeRay()

    @contextmanager
    def joined(address, cpus):
        yield Connected(ray=ray, cpus=(2, 1))

    monkeypatch.setattr(cluster, "connected", joined)
    return ray


def engine(workers=None, most=100):
    return OnRay(workers, None, most=most, facts=lambda: {"torch": "2"})


def results(engine, tasks):
    for task in tasks:
        engine.submit(task)
    done = [engine.next() for _ in tasks]
    return {one.task.of: one.value if one.failure is None else one.failure for one in done}


def test_what_comes_out_of_each_task_is_returned_once_and_no_actor_is_left(ray):
    tasks = [*(Task(n, pow, (n, 2)) for n in range(7)), Task("wrong", int, ("three",)), Task("unsent", unsendable)]
    with engine() as some:
        assert isinstance(some, Engine)
        assert some.workers == 3
        found = results(some, tasks)
        assert len(ray.alive) == 3
    assert found.pop("wrong") == "ValueError: invalid literal for int() with base 10: 'three'"
    assert found.pop("unsent") == "TypeError: cannot pickle it"
    assert found == {n: n**2 for n in range(7)}
    assert ray.alive == []


def test_threads_are_set_and_devices_are_hidden_before_an_actors_process_starts(ray):
    with engine(workers=1):
        (options,) = ray.options_given
    assert (options["num_cpus"], options["num_gpus"], options["max_restarts"]) == (2, 0, 0)
    expected = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert options["runtime_env"] == {"env_vars": expected}


def test_a_task_that_always_kills_its_worker_fails_and_spoils_no_other(ray):
    with engine() as some:
        found = results(some, [Task("deadly", deadly), *(Task(n, abs, (-n,)) for n in (1, 2, 3))])
        assert len(ray.options_given) == 6  # three actors died, and each was made again
        assert len(ray.alive) == 3
    assert found == {"deadly": "its worker process died 3 times", 1: 1, 2: 2, 3: 3}


def test_a_worker_that_would_make_other_models_is_named(ray):
    ray.facts = [{"torch": "1"}]
    with pytest.raises(WorkerError, match=r"^the worker on 10.0.0.3 has torch 1, and the driver 2; install the same$"):
        engine().__enter__()
    assert ray.alive == []


def test_that_a_node_has_another_processor_is_not_mended_by_installing_something(ray):
    ray.facts = [{"kernel": "1f"}]
    some = OnRay(None, None, most=100, facts=lambda: {"kernel": "2e"})
    message = r"^the worker on 10.0.0.3 has kernel 1f, and the driver 2e; have one kind of processor and one compiler$"
    with pytest.raises(WorkerError, match=message):
        some.__enter__()


def test_workers_that_never_begin_are_one_line(ray):
    ray.facts = [RayError("no module named nopos")]
    with pytest.raises(WorkerError, match=r"^a worker cannot begin: RayError: no module named nopos$"):
        engine().__enter__()
    assert len(ray.options_given) == 5  # three, and two in the stead of those that died
    assert ray.alive == []
    ray.facts = [{"torch": "2"}, RayError("its node went"), RayError("its node went")]
    with engine() as some:
        assert results(some, [Task(1, abs, (-1,))]) == {1: 1}


def test_where_some_workers_never_begin_the_others_do_all_of_it(ray):
    ray.facts = [RayError("that node has no nopos"), {"torch": "2"}]
    with engine() as some:
        assert results(some, [Task(n, abs, (-n,)) for n in (1, 2, 3)]) == {1: 1, 2: 2, 3: 3}
        assert len(ray.alive) == 1
        assert len(ray.options_given) == 5


def test_that_no_worker_can_be_had_is_one_line_after_a_bounded_wait(ray, monkeypatch):
    monkeypatch.setattr(on_ray, "BEGIN_SECONDS", 0.2)
    ray.ready = False
    with pytest.raises(WorkerError, match=r"^no worker could begin in 0.2 s; see that the cluster has room for one"):
        engine().__enter__()


def test_that_ray_has_ended_on_the_drivers_machine_is_one_line_even_while_something_is_under_way(ray):
    with engine() as entered:
        entered.submit(Task("never ends", abs, (-1,)))
        ray.ready, ray.has_own_node = False, False
        with pytest.raises(WorkerError, match="Ray has ended on the driver's machine; start the sweep, which goes on"):
            entered.next()


def test_work_under_way_is_not_waited_for_at_the_end(ray):
    with engine() as some:
        some.submit(Task("long", abs, (1,)))
    assert ray.alive == []


@pytest.mark.parametrize(
    ("cpus", "workers", "most", "expected"),
    [
        ((2,), None, 9, (2, 1)),
        ((4, 4), 2, 9, (2, 4)),
        ((4, 2), 2, 9, (2, 2)),  # with three threads the second would have no room
        ((1, 1), 1, 9, (1, 1)),
        ((8,), None, 3, (3, 2)),
        ((8, 1), 8, 1, (1, 8)),
    ],
)
def test_cpus_are_shared_out_so_that_every_worker_has_room(cpus, workers, most, expected):
    assert shared_out(cpus, workers, most) == expected


def test_more_workers_than_cpus_are_refused():
    with pytest.raises(ConfigError, match=r"^workers is 4, and the cluster has CPUs: 3; ask for as many or fewer$"):
        shared_out((2, 1), 4, 1)


ROOT = Path(__file__).parents[3]
with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed; it is an extra")
TOKEN, OTHER_TOKEN = "0" * 32, "1" * 32
FEW_BYTES = "100000000"
"""Of shared memory for each node: Ray takes 75 MB at least."""
LIMIT = 240
"""Seconds after which a sweep hangs."""


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def sweep(path, *options, seeds="0-5", module="tests.support.quick_sweep", **more):
    """A sweep of tiny models in processes of its own; on whichever cluster the options name."""
    command = [sys.executable, "-m", *module.split(), "--out", str(path), "--seeds", seeds, *options]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(driver):
    """Exit code, standard output and standard error."""
    out, err = driver.communicate(timeout=LIMIT)
    return driver.returncode, out, err


def wait_for_checks(path, driver, number):
    index = path / "index.jsonl"
    while (index.read_text() if index.exists() else "").count('"checked"') < number:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.1)


def killed_with_all_below(process):
    """End a process and its children, and no other of Ray's on this machine."""
    try:
        found = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in found:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(found, timeout=20)


def actors_of(folder):
    """The workers of the nodes whose files lie in a folder."""
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.name() == "raylet" and str(folder) in " ".join(each.cmdline()):
                found += [one for one in each.children() if one.cmdline()[0].startswith("ray::Worker")]
    return found


def free_port():
    while True:  # Ray keeps 10002 to 19999 for its workers
        with socket.create_server(("127.0.0.2", 0)) as server:
            port = server.getsockname()[1]
        if port > 20000:
            return port


def node(address, *options):
    """`ray start`, which runs as long as the node does."""
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus", "1", "--disable-usage-stats",
               "--object-store-memory", FEW_BYTES, "--node-ip-address", address, *options]  # fmt: skip
    variables = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    return psutil.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def two_nodes():
    """A cluster of two nodes with a CPU each, which wants a token: its address, the second node, its folder."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        address = f"127.0.0.2:{free_port()}"
        head = node("127.0.0.2", "--head", "--port", address.partition(":")[2], "--include-dashboard", "false",
                    "--temp-dir", folder)  # fmt: skip
        stack.callback(killed_with_all_below, head)
        answers(address, head)
        second = node("127.0.0.3", "--address", address)
        stack.callback(killed_with_all_below, second)
        until = time.monotonic() + 60
        while len(list(Path(folder).glob("session_latest/sockets/raylet*"))) < 2:
            assert time.monotonic() < until
            assert second.poll() is None
            time.sleep(0.1)
        yield address, second, folder


def answers(address, head):
    host, _, port = address.partition(":")
    until = time.monotonic() + 60
    while True:
        assert time.monotonic() < until
        assert head.poll() is None
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.1)


def files_of(path):
    """All that two runs of one sweep must have in common, and not an empty folder."""
    kept = ["summary.json", "summary.md", "controls.json", "ledgers/*.json", "models/*.safetensors"]
    found = {each.relative_to(path): each.read_bytes() for pattern in kept for each in sorted(path.glob(pattern))}
    assert len(found) > 4
    return found


def trained(path):
    events = [json.loads(line) for line in (path / "index.jsonl").read_text().splitlines()]
    return Counter(event["model"] for event in events if event["event"] == "trained")


@pytest.mark.slow
@with_ray
def test_a_node_that_is_killed_loses_nothing_and_a_wrong_token_is_one_line(two_nodes, tmp_path):
    address, second, folder = two_nodes
    options = ("--engine", "ray", "--ray-address", address)
    driver = sweep(tmp_path / "s", *options, seeds="0-11", RAY_AUTH_TOKEN=TOKEN)
    wait_for_checks(tmp_path / "s", driver, 2)
    assert len(actors_of(folder)) == 2  # one on each node
    killed_with_all_below(second)
    code, out, err = ended(driver)
    assert (code, err) == (0, ""), out
    assert "with workers: 2;" in out
    assert "expected 12, done 12, failed 0" in out
    assert set(trained(tmp_path / "s").values()) == {1}
    assert actors_of(folder) == []
    assert ended(sweep(tmp_path / "local", seeds="0-11", SECONDS_A_CHECK="0"))[0] == 0
    assert files_of(tmp_path / "s") == files_of(tmp_path / "local")

    for token, complaint in (({"RAY_AUTH_TOKEN": OTHER_TOKEN}, "the token is not the cluster's; set RAY_AUTH_TOKEN"),
                             ({"HOME": str(tmp_path)}, "it wants a token, and there is none; set RAY_A")):  # fmt: skip
        code, _, err = ended(sweep(tmp_path / "w", *options, **token))
        assert code == 2
        assert err.startswith(f"nopos: ray-address {address}: {complaint}")
        assert err.count("\n") == 1


@pytest.mark.slow
@with_ray
def test_a_driver_that_is_killed_leaves_no_actor_and_the_other_engine_goes_on(two_nodes, tmp_path):
    address, _, folder = two_nodes
    path, many = tmp_path / "s", {"seeds": "0-15"}  # so many that the driver is at work whenever it is interrupted
    driver = sweep(path, "--engine", "ray", "--ray-address", address, RAY_AUTH_TOKEN=TOKEN, **many)
    wait_for_checks(path, driver, 2)
    actors = actors_of(folder)
    assert len(actors) == 2
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(actors, timeout=60)
    assert alive == []
    driver = sweep(path, "--engine", "ray", "--ray-address", address, RAY_AUTH_TOKEN=TOKEN, **many)
    wait_for_checks(path, driver, 4)
    actors = actors_of(folder)
    driver.send_signal(signal.SIGINT)
    code, _, err = ended(driver)
    assert (code, err) == (130, "nopos: interrupted; nothing unfinished was saved\n")
    _, alive = psutil.wait_procs(actors, timeout=60)
    assert alive == []
    assert ended(sweep(path, SECONDS_A_CHECK="0", **many))[0] == 0
    assert ended(sweep(tmp_path / "whole", SECONDS_A_CHECK="0", **many))[0] == 0
    assert files_of(path) == files_of(tmp_path / "whole")
    assert set(trained(path).values()) == {1}


@pytest.mark.slow
@with_ray
def test_ray_on_this_machine_listens_on_loopback_alone_and_ends_with_its_driver(tmp_path):
    inherited = {"OMP_NUM_THREADS": "7", "CUDA_VISIBLE_DEVICES": "0"}
    driver = sweep(tmp_path / "s", "--engine", "ray", "--workers", "1", **inherited)
    wait_for_checks(tmp_path / "s", driver, 1)
    processes = [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]
    heard = {each.laddr.ip for one in processes for each in one.net_connections() if each.status == psutil.CONN_LISTEN}
    assert heard <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert heard
    (worker,) = [one for one in processes if one.cmdline()[0].startswith("ray::Worker")]
    found = worker.environ()  # as it was when the process started
    assert found["OMP_NUM_THREADS"] == str(local.cores())
    assert (found["OPENBLAS_NUM_THREADS"], found["CUDA_VISIBLE_DEVICES"]) == ("1", "")
    assert worker.nice() == psutil.Process(driver.pid).nice()
    at_work = [one for one in processes if "Agent" not in one.name()]  # which Ray ends later, and which run no task
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(at_work, timeout=60)
    assert alive == []


@pytest.mark.slow
@with_ray
def test_both_engines_leave_the_same_files(tmp_path):
    """Every shipped claim on two short models, by real work."""
    for engine in ("local", "ray"):
        options = ("--recipe", "sprint", "--grid", "train.steps=12", "--engine", engine)
        code, out, err = ended(sweep(tmp_path / engine, *options, seeds="0-1", module="nopos.cli sweep"))
        assert (code, err) == (0, ""), out
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "local")
