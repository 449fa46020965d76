"""What every test here runs under: checked shapes, the claims' plugin, a process for each core."""

from __future__ import annotations

import importlib.util
import os

import pytest

if importlib.util.find_spec("beartype"):  # the claims run without the `test` extra
    from jaxtyping import install_import_hook

    # For good and before anything imports nopos, so that every shape and type in a signature is checked at each call.
    # An int is a float too, as PEP 484 says and mypy has it.
    install_import_hook("nopos", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

pytest_plugins = ["nopos.subjects.plugin", "pytester"]

DEFAULT_MARKERS = "not slow"
MOST_PROCESSES = 4
"""Each takes ten seconds to start and a gigabyte of memory."""
NEED_ONE_PROCESS = (
    "keyword", "lf", "failedfirst", "usepdb", "trace", "collectonly", "setuponly", "setupshow", "setupplan",
    "benchmark_only", "maxprocesses",
)  # fmt: skip
"""Options of pytest that select some tests, or that show what one process does."""
SUPPORT = ("micro", "command", "coin_project", "disk", "shapes", "claim_sessions", "shipped_claims")
"""The fixtures in tests/support; most import torch, which takes seconds."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share out a run of all default tests among the cores: a process each, with one thread.

    A selection starts sooner in one process, and so do the slow tests, whose training has use for all cores at once.
    """
    option = config.option
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(cores, MOST_PROCESSES)
    selected = option.capture == "no" or any(config.getoption(name, False) for name in NEED_ONE_PROCESS)
    of_default = config.args_source is pytest.Config.ArgsSource.TESTPATHS and option.markexpr == DEFAULT_MARKERS
    is_worker = hasattr(config, "workerinput")
    with_xdist = config.pluginmanager.hasplugin("xdist") and option.numprocesses is None and option.dist == "no"
    if of_default and with_xdist and not selected and not is_worker and processes > 1:
        option.dist, option.tx = "loadgroup", [f"{processes}*popen//env:OMP_NUM_THREADS=1"]


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, unless other processes run the tests; and let one warning be no error.

    After that warning the run goes on with a model trained again, and says so. It stands here and not in
    pyproject.toml, for which pytest would import nopos before its shapes can be checked.
    """
    if getattr(config.option, "dist", "no") == "no":
        for name in SUPPORT:
            config.pluginmanager.import_plugin(f"tests.support.{name}")
    config.addinivalue_line("markers", "xdist_group: tests that one process runs; here for runs without xdist")
    config.addinivalue_line("filterwarnings", "default::nopos.errors.DamagedCacheEntry")
