"""A sweep's folder: whose it is, what lies in it, and what of it is done.

    sweep.json      what was asked, and by what: the sweep's identity
    models/         NAME.safetensors and NAME.json, a checkpoint of each model that was trained
    ledgers/        NAME.json, every claim on that model
    controls.json   every claim on the controls, by the size of the models that they are for
    index.jsonl     a line for each model when it is trained, failed or checked, and for each group that is split;
                    lines are only ever added
    cost.json       what each run took
    summary.json    what came out, and summary.md, the same to read

Files are written whole, and decide what is done: the index may lack the last thing that happened before a crash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nopos.claims.ledger import SCHEMA as LEDGER_SCHEMA
from nopos.errors import CheckpointError, StorageError
from nopos.populations.results import claims_in
from nopos.populations.settings import Model
from nopos.storage import checkpoints, files
from nopos.storage.checkpoints import Checkpoint, Serialised

SCHEMA = 1
IDENTITY, LOCK, INDEX, CONTROLS = "sweep.json", ".lock", "index.jsonl", "controls.json"

Event = dict[str, Any]


class Folder:
    """The folder of one sweep; made by `opened`, whose process alone writes in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def weights(self, model: Model) -> Path:
        """Where a model's weights lie."""
        return self.path / "models" / f"{model.name}.safetensors"

    def ledger(self, model: Model) -> Path:
        """Where a model's ledger lies."""
        return self.path / "ledgers" / f"{model.name}.json"

    def save(self, model: Model, given: Serialised) -> None:
        """Write a model's checkpoint; a StorageError says why it cannot be written."""
        checkpoints.save_serialised(given, self.weights(model))

    def write(self, path: Path | str, content: Mapping[str, Any] | str) -> None:
        """Write a JSON object or a text, whole or not at all; a StorageError says why it cannot be written."""
        data = content.encode() if isinstance(content, str) else files.json_bytes(content)
        files.write_atomically(self.path / path, data)

    def trained(self, model: Model) -> Checkpoint | str | None:
        """The model's checkpoint if it lies there whole, None if it does not lie there, and else what is wrong."""
        try:
            found = checkpoints.load(self.weights(model))
        except CheckpointError as error:
            there = self.weights(model).exists() and self.weights(model).with_suffix(".json").exists()
            return str(error) if there else None
        recipe = model.setting.recipe
        if (found.recipe, found.config, found.train, found.seed) != (
            recipe.name, recipe.model, recipe.train, model.seed,
        ):  # fmt: skip
            return f"{self.weights(model)}: is of another model than its name says"
        return found

    def checked(self, model: Model, sha256: str) -> dict[str, dict[str, Any]] | None:
        """What came out, by claim, if a whole ledger of these weights lies there."""
        try:
            content = json.loads(self.ledger(model).read_bytes())
            (subject,) = content["subjects"]
            whole = content["complete"] and content["schema"] == LEDGER_SCHEMA
            return claims_in(subject) if whole and subject["sha256"] == sha256 else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def add_controls(self, ledgers: Mapping[str, Mapping[str, Any]], *, order: Sequence[str]) -> None:
        """Write the ledgers of the controls, those of an earlier run too: a later one has but the sizes that are left.

        Args:
            ledgers: by size.
            order: of the sizes.

        Raises:
            StorageError: they cannot be written.
        """
        try:
            content = json.loads((self.path / CONTROLS).read_bytes())
            earlier = dict(content["sizes"]) if content["schema"] == LEDGER_SCHEMA else {}
        except (OSError, ValueError, KeyError, TypeError):
            earlier = {}  # they are evaluated again when a model of their size is checked
        known = {**earlier, **ledgers}
        sizes = {size: known[size] for size in order if size in known}
        self.write(CONTROLS, {"schema": LEDGER_SCHEMA, "sizes": sizes})

    def note(self, event: Event) -> None:
        """Add a line to the index, and have it on disk."""
        path = self.path / INDEX
        try:
            with path.open("ab") as file:
                file.write((json.dumps(event) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror or error}); make room for it") from None

    def events(self) -> list[Event]:
        """What the index has, in its order; a last line that is torn is dropped, from the file too.

        Raises:
            StorageError: another line is no event, or the file cannot be read.
        """
        path = self.path / INDEX
        try:
            data = path.read_bytes() if path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                with path.open("r+b") as file:
                    file.truncate(len(whole))
                    os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{path}: cannot be read and mended ({error.strerror or error})") from None
        return [_event(path, number, line) for number, line in enumerate(whole.splitlines(), 1)]

    def runs(self) -> list[dict[str, Any]]:
        """What each run before took, as far as it came to its end."""
        try:
            return list(json.loads((self.path / "cost.json").read_bytes())["runs"])
        except (OSError, ValueError, KeyError, TypeError):
            return []  # it says nothing that anything depends on

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())


def _event(path: Path, number: int, line: bytes) -> Event:
    try:
        event = json.loads(line)
        wanted = ("model", "event", *(("during", "reason") if event["event"] == "failed" else ()))
        if all(isinstance(event[name], str) for name in wanted):
            return dict(event)
    except (ValueError, KeyError, TypeError):
        pass
    raise StorageError(f"{path}: line {number} is no event; remove that line, and what it was about is looked at again")


@contextmanager
def opened(
    path: Path, identity: Mapping[str, Any], *, command: str, environment: Mapping[str, Any]
) -> Iterator[Folder]:
    """A sweep's folder, made now or found as that sweep left it, with no other driver on it.

    Args:
        path: of the folder; it is made if need be.
        identity: what was asked and by what it is made, as JSON values; only the same may go on.
        command: the line that began it, for a reader.
        environment: the machine that began it, likewise.

    Raises:
        StorageError: the folder cannot be written, is another sweep's, holds other files, or another driver has it.
    """
    _require_ours(path)
    files.require_writable(path)
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StorageError(f"{path}: another nopos sweep is at work on it; wait for its end") from None
    except OSError as error:
        raise StorageError(f"{lock.lock_file}: cannot be locked ({error.strerror or error})") from None
    try:
        _require_ours(path)
        for left in path.rglob(".*.partial"):  # of a driver that was killed: nobody else has the lock
            left.unlink(missing_ok=True)
        folder = Folder(path)
        if (path / IDENTITY).exists():
            _require_same(path, identity)
        else:
            folder.write(IDENTITY, {"schema": SCHEMA, **identity, "command": command, "environment": environment})
        yield folder
    finally:
        lock.release()


def _require_ours(path: Path) -> None:
    """Raise StorageError unless nothing lies there but a sweep, or a sweep that was not even begun."""
    try:
        if path.exists() and not path.is_dir():
            raise StorageError(f"{path}: is a file; give the name of a folder for the sweep")
        if not path.exists() or (path / IDENTITY).exists():
            return
        names = [each.name for each in path.iterdir()]
    except OSError as error:
        raise StorageError(f"{path}: cannot be looked into ({error.strerror or error}); give another folder") from None
    others = [name for name in names if name != LOCK and not name.endswith((".partial", ".probe"))]
    if others:
        raise StorageError(f"{path}: holds {min(others)} and is no sweep's folder; give an empty or a new one")


def _require_same(path: Path, identity: Mapping[str, Any]) -> None:
    try:
        found = json.loads((path / IDENTITY).read_bytes())
        schema, parts = found["schema"], {name: dict(found[name]) for name in identity}
    except (OSError, ValueError, KeyError, TypeError):
        raise StorageError(f"{path / IDENTITY}: is not what a sweep is known by; give another folder") from None
    if schema != SCHEMA:
        raise StorageError(
            f"{path / IDENTITY}: has schema {schema}, and this version writes {SCHEMA}; give another folder"
        )
    for part, wanted in identity.items():
        for name in {**wanted, **parts[part]}:
            old, new = parts[part].get(name), wanted.get(name)
            if old != new:
                raise StorageError(
                    f"{path}: is the folder of another sweep ({_difference(name, old, new)}); give another"
                )


def _difference(name: str, old: Any, new: Any) -> str:
    """What two sweeps differ in, in a phrase."""
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(key for key in {**old, **new} if old.get(key) != new.get(key))
        return _difference(
            f"{name} {inner}" if name != "settings" else f"setting {inner}", old.get(inner), new.get(inner)
        )
    shown = ["none" if value is None else "one" if isinstance(value, dict) else str(value) for value in (old, new)]
    return f"its {name} is {shown[0]}, not {shown[1]}"
