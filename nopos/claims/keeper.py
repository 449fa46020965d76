"""Keeps the ledger of a pytest run, in the one process that sees every report, which has the workers under xdist."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nopos.claims.ledger import Ledger
from nopos.claims.records import Record
from nopos.claims.table import table
from nopos.errors import NoposError
from nopos.storage.files import require_place, write_atomically

PROPERTY = "nopos claim"
"""The name under which a worker's output carries what it was to run, and a test's properties what it measured."""


def require_ledger_place(path: str) -> None:
    """Raise StorageError unless a ledger can be written there, over nothing but another ledger."""
    require_place(Path(path), what="ledger", holding={"schema", "subjects"})


def write_ledger(ledger: Ledger, path: str, *, command: str, seconds: float) -> None:
    """Write the ledger's JSON, whole or not at all; a StorageError says why it cannot be written."""
    write_atomically(Path(path).absolute(), ledger.to_json(command=command, seconds=seconds).encode())


class LedgerKeeper:
    """Fills the ledger, prints the table, writes the JSON."""

    def __init__(self, config: pytest.Config, planned: list[Record]) -> None:
        """Begin a ledger.

        Args:
            config: of the run.
            planned: which claims this process is to run, filled when tests are collected.
        """
        self.config = config
        self.ledger = Ledger()
        self.started = time.perf_counter()
        self._own = planned
        self._planned: dict[str, Record] = {}
        self._failures: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.failed:
            self._failures.append((report.nodeid, f"{report.when} failed: {_what_failed(report)}"))
        for entry in getattr(report, "nopos_records", ()):
            self.ledger.add(entry["subject"], entry["claim"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take in what a worker was to run; one that was killed can no longer say."""
        output = getattr(node, "workeroutput", None)
        self.ledger.cut_short |= output is None
        self._plan([] if output is None else output.get(PROPERTY, []))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A run is good only if every planned claim came out as expected: one skipped by a mark did not."""
        self._plan(self._own)
        for node, problem in self._failures:
            if node in self._planned:
                self.ledger.fail(self._planned[node]["subject"], self._planned[node]["claim"]["id"], problem)
        if session.exitstatus == pytest.ExitCode.OK and not self.ledger.as_expected():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.config.getoption("nopos_json") and self.ledger:
            self._write(session)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table: with `-q` of what is not as expected, with `-qq` and `--no-summary` none at all."""
        verbosity = self.config.get_verbosity()
        if self.ledger and verbosity > -2 and not self.config.getoption("no_summary"):
            terminalreporter.section("nopos: what was measured")
            for line in table(self.ledger, all_claims=verbosity >= 0):
                terminalreporter.write_line(line)

    def _plan(self, entries: list[Record]) -> None:
        for entry in entries:
            self._planned[entry["node"]] = entry
            self.ledger.plan(entry["subject"], entry["claim"])

    def _write(self, session: pytest.Session) -> None:
        program = Path(sys.argv[0]).name.replace("__main__.py", "python -m pytest")
        command = f"{program} {shlex.join(sys.argv[1:])}".rstrip()
        try:
            seconds = time.perf_counter() - self.started
            write_ledger(self.ledger, self.config.getoption("nopos_json"), command=command, seconds=seconds)
        except NoposError as error:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
            print(f"nopos: {error}", file=sys.stderr)


def _what_failed(report: pytest.TestReport) -> str:
    """Type and message of the exception, in one line; of what pytest itself objects to, its last line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return report.longreprtext.splitlines()[-1]
    return str(crash.message.splitlines()[0]).removeprefix("Failed: ")  # pytest.fail's message says it all
