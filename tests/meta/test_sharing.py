"""Which runs are shared out among the cores: those of all default tests, and no other."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest


@pytest.fixture
def asked(request, monkeypatch):
    """How the root conftest has a run started that was asked for in some way: its distribution and its processes."""
    conftest = request.config.pluginmanager.getplugin(str(request.config.rootpath / "conftest.py"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(3), raising=False)

    def started(*, worker=False, xdist=True, testpaths=True, **options):
        option = SimpleNamespace(
            **{"markexpr": "not slow", "capture": "fd", "numprocesses": None, "dist": "no", "tx": [], **options}
        )
        source = pytest.Config.ArgsSource.TESTPATHS if testpaths else pytest.Config.ArgsSource.ARGS
        config = SimpleNamespace(
            option=option,
            args_source=source,
            getoption=lambda name, default: getattr(option, name, default),
            pluginmanager=SimpleNamespace(hasplugin=lambda name: xdist),
            **({"workerinput": {}} if worker else {}),
        )
        conftest.pytest_cmdline_main(config)
        return option.dist, option.tx

    return started


def test_a_run_of_all_default_tests_has_a_process_for_each_core_with_one_thread(asked):
    assert asked() == ("loadgroup", ["3*popen//env:OMP_NUM_THREADS=1"])


@pytest.mark.parametrize(
    "options",
    [
        {"keyword": "W_pos"},
        {"markexpr": "slow"},
        {"testpaths": False},
        {"numprocesses": 0},
        {"numprocesses": 5},
        {"dist": "loadfile"},
        {"capture": "no"},
        {"usepdb": True},
        {"trace": True},
        {"lf": True},
        {"setupplan": True},
        {"benchmark_only": True},
        {"maxprocesses": 1},
        {"worker": True},
        {"xdist": False},
    ],
    ids=str,
)
def test_any_other_run_is_started_as_it_was_asked_for(asked, options):
    assert asked(**options) == (options.get("dist", "no"), [])


def test_one_core_shares_nothing_out(asked, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {7})
    assert asked() == ("no", [])
