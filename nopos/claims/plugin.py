"""The pytest side: the fixtures of claims, and claims run on their subject and on their controls.

It knows no model: `pytest_nopos_subjects` (in `hooks`) names the subjects. A project of one's own loads it with
`pytest_plugins = ["nopos.claims.plugin"]` in its conftest.py and implements that hook there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import no_type_check

import pytest

from nopos.claims import hooks
from nopos.claims.claim import FIXTURE, Claim, claim_of, require_distinct
from nopos.claims.control import Subject
from nopos.claims.keeper import PROPERTY, LedgerKeeper, require_ledger_place
from nopos.claims.records import Record, brief, planned_record, records
from nopos.claims.run import Run, is_worker
from nopos.claims.verdict import check
from nopos.errors import ClaimError, NoposError

NO_SUBJECT = "nopos: no provider names a subject; implement pytest_nopos_subjects in conftest.py"
RUNNING_NOTHING = ("collectonly", "setuponly", "setupplan", "showfixtures", "show_fixtures_per_test")
"""Options of pytest with which no test is to run."""
_RUN = pytest.StashKey[Run]()
_PLANNED = pytest.StashKey[list[Record]]()
_RECORDS = pytest.StashKey[list[Record]]()


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nopos", "findings about models, as tests that can fail")
    group.addoption("--nopos-json", metavar="FILE", help="write what was measured as one JSON object")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: trains from scratch or takes long; `pytest -m slow` runs these")
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
    config.addinivalue_line("markers", "claim: a finding, evaluated on subjects and controls; put there by @claim")
    config.addinivalue_line("markers", "requested: a claim that the user asked for by name; put there by @claim")
    config.stash[_RUN] = Run(config)
    config.stash[_PLANNED] = []
    if not is_worker(config):
        config.pluginmanager.register(LedgerKeeper(config, config.stash[_PLANNED]), "nopos ledger")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    try:
        if config.getoption("nopos_json") is not None and not is_worker(config):
            require_ledger_place(config.getoption("nopos_json"))
        config.stash[_RUN].start()
    except NoposError as error:
        raise pytest.UsageError(f"nopos: {error}") from None


def pytest_report_header(config: pytest.Config) -> str | None:
    names = ", ".join(config.stash[_RUN].loaders)
    return f"nopos: claims are checked on {names}" if names else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if FIXTURE in metafunc.fixturenames:
        loaders = metafunc.config.stash[_RUN].loaders.values()
        if not loaders and is_worker(metafunc.config) and claim_of(metafunc.function) is not None:
            raise pytest.Collector.CollectError(NO_SUBJECT)  # of a worker's UsageError xdist would make a crash
        parameters = [
            pytest.param(loader.name, id=loader.name, marks=[pytest.mark.slow] if loader.slow else [])
            for loader in loaders
        ]
        metafunc.parametrize(FIXTURE, parameters, indirect=True, scope="session")


def pytest_itemcollected(item: pytest.Item) -> None:
    claim = _claim_of(item)
    if claim is not None:
        item.add_marker("claim")
        if claim.requested:
            item.add_marker("requested")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Remember which claims are to run, so that those that then do not are not taken for some that hold."""
    config = session.config
    if any(config.getoption(name) for name in RUNNING_NOTHING):
        return
    if not config.stash[_RUN].loaders and any(_claim_of(item) is not None for item in session.items):
        raise pytest.UsageError(NO_SUBJECT)
    of_subjects: dict[str, list[Claim]] = {}
    for item in session.items:
        if isinstance(item, pytest.Function) and (claim := _claim_of(item)) is not None:
            planned, subject = replace(claim, id=_claim_id(item)), _subject_name(item)
            of_subjects.setdefault(subject, []).append(planned)
            config.stash[_RUN].controls.plan(planned)
            entry = {"node": item.nodeid, "subject": subject, "claim": planned_record(planned)}
            config.stash[_PLANNED].append(entry)
    try:
        for claims in of_subjects.values():
            require_distinct(claims)
    except ClaimError as error:
        raise pytest.UsageError(f"nopos: {error}") from None


@pytest.fixture(scope="session")
def nopos_subject(request: pytest.FixtureRequest) -> Subject:
    """The model under test: each one that a provider names. A claim gets it as `subject`."""
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
    ours = [] if _claim_of(item) is not None else [one for one in known if one is subject]
    with ours[0].proven_unchanged() if ours else nullcontext():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Have a claim checked, keep the records, and fail unless it came out as it should."""
    marked = _claim_of(pyfuncitem)
    if marked is None:
        return None
    run = pyfuncitem.config.stash[_RUN]
    subject = run.subject(_subject_name(pyfuncitem))
    if pyfuncitem.funcargs[FIXTURE] is not subject:
        pytest.fail(f"the fixture {FIXTURE} is overridden; a claim is evaluated on the run's subjects", pytrace=False)
    verdict = check(_bound(pyfuncitem, marked), subject, run.controls)
    entries = records(verdict, subject, run.controls)
    pyfuncitem.stash[_RECORDS] = entries
    pyfuncitem.user_properties.append((PROPERTY, brief(entries[0])))
    if verdict.exception is not None and not isinstance(verdict.exception, ClaimError):
        raise verdict.exception
    if not verdict.as_expected:
        pytest.fail(str(verdict.reason), pytrace=False)
    return True


@pytest.hookimpl(wrapper=True)
@no_type_check  # as above
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    """Have the report of a claim carry its records to the process that keeps the ledger."""
    report = yield
    if call.when == "call" and _RECORDS in item.stash:
        report.nopos_records = item.stash[_RECORDS]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if is_worker(session.config):
        session.config.workeroutput[PROPERTY] = session.config.stash[_PLANNED]  # type: ignore[attr-defined]


def _claim_of(item: pytest.Item) -> Claim | None:
    return claim_of(item.function) if isinstance(item, pytest.Function) else None


def _bound(item: pytest.Function, claim: Claim) -> Claim:
    """The claim of this test: its id says the parameters, its body has the values of the other fixtures."""
    others = {name: item.funcargs[name] for name in item._fixtureinfo.argnames if name != FIXTURE}
    return replace(claim, id=_claim_id(item), body=partial(item.obj, **others))


def _subject_name(item: pytest.Function) -> str:
    return str(item.callspec.params[FIXTURE])


def _claim_id(item: pytest.Function) -> str:
    """File, class and function, and parameters other than the subject: the same wherever the claim is run from."""
    path = item.nodeid.split("[", 1)[0].partition("::")[2]
    others = [f"{name}={value!r}" for name, value in item.callspec.params.items() if name != FIXTURE]
    return f"{item.path.name}::{path}" + (f"[{', '.join(others)}]" if others else "")
