"""The pytest side: options, the session's subjects, claims run on them and on their controls, the table and the JSON.

Load it with `pytest_plugins = ["nopos.pytest_plugin"]` in a conftest.py. It imports torch when a subject is wanted.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from nopos.errors import ClaimError, NoposError
from nopos.ledger import Ledger, Record, claim_record, subject_record

if TYPE_CHECKING:
    from nopos.claims import Claim, Outcome
    from nopos.controls import Control
    from nopos.subject import Subject

_PROPERTY = "nopos claim"
SLOW_SPRINT_SEEDS = (100, 101)
"""Seeds of the sprint models that the slow tier trains; no bound was set from them."""


@dataclass(frozen=True)
class Source:
    """A subject that the session can ask for."""

    name: str
    load: Callable[[], Subject]
    slow: bool = False


@dataclass
class Session:
    """What one pytest process knows: its sources, the subjects it has loaded, and the outcomes on controls by claim."""

    config: pytest.Config
    sources: dict[str, Source] = field(default_factory=dict)
    subjects: dict[str, Subject] = field(default_factory=dict)
    controls: dict[str, Subject] = field(default_factory=dict)
    on_controls: dict[str, dict[str, Outcome]] = field(default_factory=dict)

    def subject(self, name: str) -> Subject:
        """Load a subject the first time it is wanted, with its progress bar on the terminal."""
        if name not in self.subjects:
            with _capture_off(self.config):
                self.subjects[name] = self.sources[name].load()
        return self.subjects[name]

    def control(self, control: Control) -> Subject:
        """Build a control the first time it is wanted."""
        if control.name not in self.controls:
            self.controls[control.name] = control.build()
        return self.controls[control.name]


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
    group.addoption("--nopos-json", metavar="FILE", type=Path, help="write what was measured as one JSON object")
    group.addoption("--nopos-retrain", action="store_true", help="train again what the cache holds")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: trains from scratch or takes long; `pytest -m slow` runs these")
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
    config.addinivalue_line("markers", "claim: a finding, evaluated on subjects and controls; put there by @claim")
    config.stash[_SESSION] = Session(config)
    config.stash[_PLANNED] = []
    if not _is_worker(config):
        config.pluginmanager.register(LedgerKeeper(config), "nopos ledger")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Settle which subjects there are; load those that the command line names, so that a mistake ends the run."""
    config = session.config
    try:
        known = config.stash[_SESSION]
        for source in _sources(config):
            if source.name in known.sources:
                raise NoposError(f"{source.name}: is named twice; name each model once")
            known.sources[source.name] = source
        if config.getoption("nopos_json") and not _is_worker(config):
            from nopos.storage import require_writable

            require_writable(config.getoption("nopos_json").absolute().parent)
        if _named(config):
            for name in known.sources:
                known.subject(name)
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
    if isinstance(item, pytest.Function) and _claim_of(item) is not None:
        item.add_marker("claim")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Remember which claims are to run, so that those that then do not are told apart from those that hold."""
    config = session.config
    for item in session.items:
        if isinstance(item, pytest.Function) and (claim := _claim_of(item)) is not None:
            subject = item.callspec.params["subject"]
            record = claim_record(_claim_id(item), claim, outcome=None, controls=())
            config.stash[_PLANNED].append({"subject": subject, "claim": record})


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
    subject = getattr(item, "funcargs", {}).get("subject")
    is_claim = isinstance(item, pytest.Function) and _claim_of(item) is not None
    with nullcontext() if subject is None or is_claim else subject.proven_unchanged():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a claim on its subject and its controls, and fail unless it came out as it should."""
    claim = _claim_of(pyfuncitem)
    if claim is None:
        return None
    from nopos import claims

    session = pyfuncitem.config.stash[_SESSION]
    claim_id = _claim_id(pyfuncitem)
    subject = cast("Subject", pyfuncitem.funcargs["subject"])
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    outcome = claims.evaluate(pyfuncitem.obj, subject, arguments)
    if claim_id not in session.on_controls:
        session.on_controls[claim_id] = {
            control.name: claims.evaluate(pyfuncitem.obj, session.control(control), arguments)
            for control in claim.controls
        }
    controls = session.on_controls[claim_id]
    solving = {name for name in controls if session.controls[name].solves_the_task()}
    toothless = claims.toothlessness(claim, outcome, controls, solving=solving)

    record = claim_record(claim_id, claim, outcome, controls.values())
    record["problems"] = [*claims.unexpected(claim, outcome), *toothless]
    if toothless:
        record["verdict"] = "error"
    entries = [{"subject": subject_record(subject, "subject"), "claim": record}]
    for name, on_control in controls.items():
        entry = subject_record(session.controls[name], "control")
        entries.append({"subject": entry, "claim": claim_record(claim_id, claim, on_control, ())})
    pyfuncitem.user_properties.append((_PROPERTY, entries))

    if outcome.exception is not None and not isinstance(outcome.exception, ClaimError):
        raise outcome.exception
    if record["problems"]:
        pytest.fail("\n".join(f"{subject.name}: {problem}" for problem in record["problems"]), pytrace=False)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _is_worker(session.config):
        session.config.workeroutput[_PROPERTY] = session.config.stash[_PLANNED]  # type: ignore[attr-defined]


class LedgerKeeper:
    """Lives in the one process that sees every report; fills the ledger, prints the table, writes the JSON."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.ledger = Ledger()
        self.started = time.perf_counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            for name, entries in report.user_properties:
                if name == _PROPERTY:
                    for entry in entries:  # type: ignore[attr-defined]
                        self.ledger.add(entry["subject"], entry["claim"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.ledger.plan(getattr(node, "workeroutput", {}).get(_PROPERTY, []))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        planned = self.config.stash[_PLANNED]
        self.ledger.plan(planned)
        path: Path | None = self.config.getoption("nopos_json")
        if path is None or not self.ledger:
            return
        from nopos.storage import write_atomically

        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        text = self.ledger.to_json(command=command, seconds=time.perf_counter() - self.started)
        try:
            write_atomically(path.absolute(), text.encode())
        except NoposError as error:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
            print(f"nopos: {error}", file=sys.stderr)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.ledger:
            terminalreporter.section("nopos: what was measured")
            for line in self.ledger.table():
                terminalreporter.write_line(line)


def _sources(config: pytest.Config) -> list[Source]:
    """The subjects of this session: those that the command line names, else the default ones."""
    option = config.getoption
    if not _named(config):
        return [
            Source("reference", _load_reference),
            *(_recipe_source(config, "sprint", seed, slow=True) for seed in SLOW_SPRINT_SEEDS),
        ]
    if option("nopos_seed") is not None and option("nopos_recipe") is None:
        raise NoposError("seed is given without a recipe; name the recipe too, or leave the seed out")
    sources = [Source(name, partial(_load_file, name)) for name in option("nopos_checkpoint")]
    if option("nopos_recipe") is not None:
        sources.append(_recipe_source(config, option("nopos_recipe"), option("nopos_seed") or 0))
    return sources


def _named(config: pytest.Config) -> bool:
    option = config.getoption
    return bool(option("nopos_checkpoint")) or option("nopos_recipe") is not None or option("nopos_seed") is not None


def _load_reference() -> Subject:
    from nopos.controls import reference

    return reference()


def _load_file(name: str) -> Subject:
    from nopos import checkpoints
    from nopos.subject import Subject

    return Subject(name, checkpoints.load(Path(name)))


def _recipe_source(config: pytest.Config, recipe: str, seed: int, *, slow: bool = False) -> Source:
    retrain = config.getoption("nopos_retrain") and not _is_worker(config)
    load = partial(_train, recipe, seed, config.getoption("nopos_device"), retrain=retrain)
    return Source(f"{recipe} seed {seed}", load, slow)


def _train(recipe: str, seed: int, device: str | None, *, retrain: bool) -> Subject:
    from nopos import checkpoints
    from nopos.config import recipe_named
    from nopos.subject import Subject

    wanted, where = recipe_named(recipe), checkpoints.device_named(device)
    if retrain:
        checkpoints.forget(wanted, seed, where)
    return Subject(f"{recipe} seed {seed}", checkpoints.load_or_train(wanted, seed, where))


def _claim_of(item: pytest.Function) -> Claim | None:
    return getattr(item.function, "__nopos_claim__", None)


def _claim_id(item: pytest.Function) -> str:
    """File and function, with parameters other than the subject: the same wherever the claim is run from."""
    others = [f"{name}={value}" for name, value in item.callspec.params.items() if name != "subject"]
    return f"{item.path.name}::{item.originalname}" + (f"[{', '.join(others)}]" if others else "")


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _capture_off(config: pytest.Config) -> AbstractContextManager[None]:
    manager = config.pluginmanager.getplugin("capturemanager")
    return nullcontext() if manager is None else manager.global_and_fixture_disabled()
