"""The pytest side: the fixture of claims, and claims run on their subject and on their controls.

It knows no model: `pytest_nopos_subjects` (in `hooks`) names the subjects. pytest loads it wherever nopos is installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import no_type_check

import pytest

from nopos.claims import hooks
from nopos.claims.claim import FIXTURE, claim_of
from nopos.claims.control import Subject
from nopos.claims.items import HIDDEN, checked, claim_id, claim_of_item, claims_among, fail, subject_name
from nopos.claims.keeper import PROPERTY, LedgerKeeper, require_ledger_place
from nopos.claims.records import Record, brief, planned_record, records
from nopos.claims.run import Run, is_worker
from nopos.errors import ConfigError, NoposError

NO_SUBJECT = "no provider names a subject; implement pytest_nopos_subjects in conftest.py"
RUNNING_NOTHING = ("collectonly", "setuponly", "setupplan", "showfixtures", "show_fixtures_per_test")
"""Options of pytest with which no test is to run."""
MARKERS = (
    "claim: a finding of nopos, evaluated on a subject and on its controls; put there by @claim, never by hand",
    "requested: a claim that the user of a project asked for by name; put there by @claim(requested=...)",
    "slow: a test on a subject whose loader says that it takes long, as training does",
)
OF_TYPE = re.compile(r"^(AssertionError|Failed|nopos\.errors\.ClaimError): ")
"""What pytest writes before the message of a claim that failed."""
_HAS_MARKERS = pytest.StashKey[bool]()
_RUN = pytest.StashKey[Run]()
_PLANNED = pytest.StashKey[list[Record]]()
_RECORDS = pytest.StashKey[list[Record]]()
_MISTAKE = pytest.StashKey[NoposError]()


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nopos", "findings about models, as tests that can fail")
    group.addoption("--nopos-json", metavar="FILE", help="write what was measured as one JSON object")


def pytest_configure(config: pytest.Config) -> None:
    """Begin the run, and have the one process that sees all reports keep the ledger."""
    if config.hook.pytest_nopos_subjects.get_hookimpls():
        _add_markers(config)
    config.stash[_RUN] = Run(config)
    config.stash[_PLANNED] = []
    if not is_worker(config):
        config.pluginmanager.register(LedgerKeeper(config, config.stash[_PLANNED]), "nopos ledger")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """End a run at once whose options are mistaken; what folders further down object to is seen when they are read."""
    config = session.config
    if is_worker(config):
        return
    try:
        if config.getoption("nopos_json") is not None:
            require_ledger_place(config.getoption("nopos_json"))
        config.stash[_RUN].loaders(config.hook)
    except NoposError as error:
        raise pytest.UsageError(f"nopos: {error}") from None


def pytest_report_header(config: pytest.Config) -> str | None:
    """Name the subjects where other processes collect the tests; see `pytest_report_collectionfinish`."""
    names = ", ".join(loader.name for loader in config.stash[_RUN].loaders(config.hook))
    return f"nopos: subjects are {names}" if names and config.getoption("dist", "no") != "no" else None


def pytest_report_collectionfinish(config: pytest.Config, items: Sequence[pytest.Item]) -> str | None:
    """Name the subjects of the claims that are to run, where pytest prints a header."""
    if config.get_verbosity() < 0 or config.getoption("no_header"):
        return None
    on = (item.callspec.params[FIXTURE] for item, _ in claims_among(items))
    names = dict.fromkeys(name for name in on if isinstance(name, str))
    return f"nopos: claims are checked on {', '.join(names)}" if names else None


@pytest.hookimpl(tryfirst=True)  # so that the subject is a test's first parameter
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test for each subject of the folder. A mistake of its provider ends the run when all is collected."""
    if FIXTURE not in metafunc.fixturenames:
        return
    config = metafunc.config
    _add_markers(config)
    try:
        loaders = config.stash[_RUN].loaders(metafunc.definition.ihook)
        if not loaders and claim_of(metafunc.function) is not None and not _runs_nothing(config):
            raise ConfigError(NO_SUBJECT)
    except NoposError as error:
        if is_worker(config):  # of whose UsageError xdist would make a crash
            raise pytest.Collector.CollectError(f"nopos: {error}") from None
        config.stash.setdefault(_MISTAKE, error)
        loaders = ()
    parameters = [
        pytest.param(loader.name, id=loader.name, marks=[pytest.mark.slow] if loader.slow else []) for loader in loaders
    ]
    metafunc.parametrize(FIXTURE, parameters, indirect=True, scope="session")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Put the markers on."""
    claim = claim_of_item(item)
    if claim is not None:
        item.add_marker("claim")
        if claim.requested:
            item.add_marker("requested")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Remember which claims are to run, so that those that then do not are not taken for some that hold."""
    config = session.config
    if _MISTAKE in config.stash:
        raise pytest.UsageError(f"nopos: {config.stash[_MISTAKE]}")
    if _runs_nothing(config):
        return
    for item, claim in claims_among(session.items):
        planned = replace(claim, id=claim_id(item))
        config.stash[_RUN].controls.plan(planned)
        entry = {"node": item.nodeid, "subject": subject_name(item), "claim": planned_record(planned)}
        config.stash[_PLANNED].append(entry)


@pytest.fixture(scope="session")
def nopos_subject(request: pytest.FixtureRequest) -> Subject:
    """A model under test, one after the other: those that `pytest_nopos_subjects` names; a claim calls it `subject`."""
    try:
        return request.config.stash[_RUN].subject(request.param)
    except NoposError as error:
        problem = f"{request.param}: {error}"
    pytest.fail(problem, pytrace=False)  # here, or pytest would print both errors


@pytest.hookimpl(wrapper=True)
@no_type_check  # pluggy asks for a generator function, which a function whose types are checked is not
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Hold tests that are no claims to leaving their subject as it was; claims are held to it when evaluated."""
    known = item.config.stash[_RUN].subjects.values()
    subject = getattr(item, "funcargs", {}).get(FIXTURE)
    ours = [] if claim_of_item(item) is not None else [one for one in known if one is subject]
    with ours[0].proven_unchanged() if ours else nullcontext():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Have a claim checked, keep the records, and fail unless it came out as it should."""
    __tracebackhide__ = HIDDEN
    claim = claim_of_item(pyfuncitem)
    if claim is None:
        return None
    run = pyfuncitem.config.stash[_RUN]
    subject = run.subject(subject_name(pyfuncitem))
    if pyfuncitem.funcargs[FIXTURE] is not subject:
        pytest.fail(f"the fixture {FIXTURE} is overridden; a claim is evaluated on the run's subjects", pytrace=False)
    verdict = checked(pyfuncitem, claim, subject, run.controls)
    entries = records(verdict, subject, run.controls)
    pyfuncitem.stash[_RECORDS] = entries
    pyfuncitem.user_properties.append((PROPERTY, brief(entries[0])))
    if verdict.as_expected is None:
        pytest.skip(f"out of scope: {verdict.reason}")
    if not verdict.as_expected:
        fail(pyfuncitem, verdict, subject)
    return True


@pytest.hookimpl(wrapper=True)
@no_type_check  # as above
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    """Have the report of a claim carry its records to the process that keeps the ledger.

    Its line in pytest's summary ends where the terminal does: what was measured comes first.
    """
    report = yield
    if call.when == "call" and _RECORDS in item.stash:
        report.nopos_records = item.stash[_RECORDS]
        if crash := getattr(report.longrepr, "reprcrash", None):
            crash.message = OF_TYPE.sub("", crash.message)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Have a worker say what it was to run."""
    if is_worker(session.config):
        session.config.workeroutput[PROPERTY] = session.config.stash[_PLANNED]  # type: ignore[attr-defined]


def _runs_nothing(config: pytest.Config) -> bool:
    return any(config.getoption(name) for name in RUNNING_NOTHING)


def _add_markers(config: pytest.Config) -> None:
    """Say what the markers are, where there are claims."""
    if not config.stash.get(_HAS_MARKERS, False):
        config.stash[_HAS_MARKERS] = True
        for marker in MARKERS:
            config.addinivalue_line("markers", marker)
