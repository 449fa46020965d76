"""The pytest side: options, fixtures, claims run on their subject and on their controls, the table and the JSON.

Load it with `pytest_plugins = ["nopos.pytest_plugin"]` in a conftest.py. It imports torch when a subject is wanted.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nopos import claims
from nopos.claims import Claim, Outcome, claim_of
from nopos.errors import ClaimError, NoposError
from nopos.ledger import Ledger, Record, claim_record, subject_record
from nopos.sources import Session, is_worker

if TYPE_CHECKING:
    from nopos.controls import Control
    from nopos.subject import Subject

_PROPERTY = "nopos claim"
_SESSION = pytest.StashKey[Session]()
_PLANNED = pytest.StashKey[list[Record]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nopos", "findings about models without positional embeddings")
    group.addoption(
        "--nopos-checkpoint",
        action="append",
        default=[],
        metavar="FILE",
        help="a model to check: ours, or a HookedTransformer state dict (.safetensors, .pt, .pth); repeatable",
    )
    group.addoption(
        "--nopos-recipe", metavar="NAME", help="check a model trained by this recipe, cached or trained now"
    )
    group.addoption("--nopos-seed", type=int, metavar="N", help="seed of the model of --nopos-recipe (default: 0)")
    group.addoption(
        "--nopos-device", metavar="D", help="where to train: cpu or cuda (default: CUDA where there is one)"
    )
    group.addoption("--nopos-json", metavar="FILE", help="write what was measured as one JSON object")
    group.addoption("--nopos-retrain", action="store_true", help="train again what the cache holds")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: trains from scratch or takes long; `pytest -m slow` runs these")
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
    config.addinivalue_line("markers", "claim: a finding, evaluated on subjects and controls; put there by @claim")
    config.stash[_SESSION] = Session(config)
    config.stash[_PLANNED] = []
    if not is_worker(config):
        config.pluginmanager.register(LedgerKeeper(config), "nopos ledger")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    try:
        session.config.stash[_SESSION].start()
    except NoposError as error:
        raise pytest.UsageError(f"nopos: {error}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" in metafunc.fixturenames:
        sources = metafunc.config.stash[_SESSION].sources.values()
        parameters = [
            pytest.param(source.name, id=source.name, marks=[pytest.mark.slow] if source.slow else [])
            for source in sources
        ]
        metafunc.parametrize("subject", parameters, indirect=True, scope="session")


def pytest_itemcollected(item: pytest.Item) -> None:
    if _claim_of(item) is not None:
        item.add_marker("claim")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Remember which claims are to run, so that those that then do not are told apart from those that hold."""
    config, seen = session.config, set()
    if config.option.collectonly:
        return
    for item in session.items:
        if isinstance(item, pytest.Function) and (claim := _claim_of(item)) is not None:
            subject, claim_id = _subject_name(item), _claim_id(item)
            if (subject, claim_id) in seen:
                raise pytest.UsageError(f"nopos: two claims are called {claim_id}; rename one or its file")
            seen.add((subject, claim_id))
            record = claim_record(claim_id, claim, None, ())
            config.stash[_PLANNED].append({"node": item.nodeid, "subject": subject, "claim": record})


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest) -> Subject:
    """The model under test: each one named on the command line, else the reference model and, under `slow`, sprints."""
    try:
        return request.config.stash[_SESSION].subject(request.param)
    except NoposError as error:
        pytest.fail(f"{request.param}: {error}", pytrace=False)


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> None:
    """Names a value and its unit in a claim, as in: assert measure("nats added", value, "nats") > 4.0."""
    if _claim_of(request.node) is None:
        pytest.fail(f"{request.node.name}: measure is for claims; mark the test with @claim", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Hold tests that are no claims to leaving their subject as it was; claims are held to it when evaluated."""
    known = item.config.stash[_SESSION].subjects.values()
    subject = getattr(item, "funcargs", {}).get("subject")
    ours = [] if _claim_of(item) is not None else [one for one in known if one is subject]
    with ours[0].proven_unchanged() if ours else nullcontext():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a claim on its subject and its controls, and fail unless it came out as it should."""
    claim = _claim_of(pyfuncitem)
    if claim is None:
        return None
    session = pyfuncitem.config.stash[_SESSION]
    subject = session.subject(_subject_name(pyfuncitem))
    if pyfuncitem.funcargs["subject"] is not subject:
        pytest.fail(
            "the fixture `subject` is overridden; a claim is evaluated on the session's subjects", pytrace=False
        )
    outcome = claims.evaluate(pyfuncitem.obj, subject, _arguments(pyfuncitem))
    on_controls = _on_controls(pyfuncitem, claim)
    others = [
        control.name
        for control in claim.controls
        if control.another_mechanism and control.name in session.controls and session.control(control).solves_the_task()
    ]
    toothless = claims.toothlessness(claim, outcome, on_controls, other_mechanisms=others)

    record = claim_record(_claim_id(pyfuncitem), claim, outcome, on_controls.values())
    record["problems"] = [*claims.unexpected(claim, outcome), *toothless]
    if toothless:
        record["verdict"] = "error"
    entries = [{"subject": subject_record(subject, "subject", subject.checkpoint.describe()), "claim": record}]
    for control in claim.controls:
        if control.name in session.controls:
            entry = subject_record(session.control(control), "control", control.lacks)
            entries.append(
                {"subject": entry, "claim": claim_record(record["id"], claim, on_controls[control.name], ())}
            )
    pyfuncitem.user_properties.append((_PROPERTY, entries))

    if outcome.exception is not None and not isinstance(outcome.exception, ClaimError):
        raise outcome.exception
    if record["problems"]:
        pytest.fail("\n".join(f"{subject.name}: {problem}" for problem in record["problems"]), pytrace=False)
    return True


def _on_controls(item: pytest.Function, claim: Claim) -> dict[str, Outcome]:
    """A claim's outcome on each of its controls: the same whatever the subject, so evaluated once a session."""
    session = item.config.stash[_SESSION]
    known = session.on_controls.setdefault(_claim_id(item), {})
    for control in claim.controls:
        if control.name not in known:
            known[control.name] = _on_control(session, control, item)
    return known


def _on_control(session: Session, control: Control, item: pytest.Function) -> Outcome:
    try:
        subject = session.control(control)
    except Exception as error:
        return Outcome(control.name, (), 0.0, error)
    return claims.evaluate(item.obj, subject, _arguments(item))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if is_worker(session.config):
        session.config.workeroutput[_PROPERTY] = session.config.stash[_PLANNED]  # type: ignore[attr-defined]


class LedgerKeeper:
    """Lives in the one process that sees every report; fills the ledger, prints the table, writes the JSON."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.ledger = Ledger()
        self.planned: dict[str, Record] = {}
        self.failures: list[tuple[str, str]] = []
        self.started = time.perf_counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.failed:
            self.failures.append((report.nodeid, f"{report.when} failed: {report.longreprtext.splitlines()[-1]}"))
        for name, entries in report.user_properties if report.when == "call" else ():
            if name == _PROPERTY:
                for entry in entries:  # type: ignore[attr-defined]
                    self.ledger.add(entry["subject"], entry["claim"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take in what a worker was to run; one that was killed can no longer say."""
        output = getattr(node, "workeroutput", None)
        self.ledger.cut_short |= output is None
        self._plan([] if output is None else output.get(_PROPERTY, []))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A run is good only if every planned claim came out as expected: one skipped by a mark did not."""
        planned = self.config.stash[_PLANNED]
        self._plan(planned)
        for node, problem in self.failures:
            if node in self.planned:
                self.ledger.fail(self.planned[node]["subject"], self.planned[node]["claim"]["id"], problem)
        if session.exitstatus == pytest.ExitCode.OK and not self.ledger.as_expected():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.config.getoption("nopos_json") and self.ledger:
            self._write(session)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.ledger:
            terminalreporter.section("nopos: what was measured")
            for line in self.ledger.table():
                terminalreporter.write_line(line)

    def _plan(self, entries: list[Record]) -> None:
        self.planned |= {entry["node"]: entry for entry in entries}
        self.ledger.plan(entries)

    def _write(self, session: pytest.Session) -> None:
        from nopos.storage import write_atomically

        program = Path(sys.argv[0]).name.replace("__main__.py", "python -m pytest")
        text = self.ledger.to_json(
            command=f"{program} {shlex.join(sys.argv[1:])}".rstrip(), seconds=time.perf_counter() - self.started
        )
        try:
            write_atomically(Path(self.config.getoption("nopos_json")).absolute(), text.encode())
        except NoposError as error:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
            print(f"nopos: {error}", file=sys.stderr)


def _claim_of(item: pytest.Item) -> Claim | None:
    return claim_of(item.function) if isinstance(item, pytest.Function) else None


def _arguments(item: pytest.Function) -> dict[str, Any]:
    return {name: item.funcargs[name] for name in item._fixtureinfo.argnames}


def _subject_name(item: pytest.Function) -> str:
    return str(item.callspec.params["subject"])


def _claim_id(item: pytest.Function) -> str:
    """File, class and function, and parameters other than the subject: the same wherever the claim is run from."""
    place = item.nodeid.split("[", 1)[0].partition("::")[2]
    others = [f"{name}={value!r}" for name, value in item.callspec.params.items() if name != "subject"]
    return f"{item.path.name}::{place}" + (f"[{', '.join(others)}]" if others else "")
