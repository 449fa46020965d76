"""The kernel's library: compiled once on the user's machine, kept, and loaded only as it was compiled."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock

from nopos.environment import cache_folder

SOURCE = Path(__file__).with_name("kernel") / "kernel.cpp"
"""It includes the headers beside it."""
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 120
"""That compiling may take; it takes about 3."""


class NoLibraryError(Exception):
    """Why there is no library here, in a phrase."""


@dataclass(frozen=True)
class Library:
    """A library that was compiled here, and loaded."""

    calls: ctypes.CDLL
    key: str
    """16 hex digits that stand for code, compiler, flags and processor, all of which may decide last bits."""


def library() -> Library:
    """The library of this code, compiler and processor, compiled now if it has not been yet.

    Raises:
        NoLibraryError: another system or processor, no compiler, none that works, or no folder of the user's own.
    """
    found = loaded()
    if isinstance(found, str):
        raise NoLibraryError(found)
    return found


@cache
def loaded() -> Library | str:
    """The library, or why there is none: looked for once in a process, since a compiler that fails takes seconds."""
    try:
        return _load()
    except NoLibraryError as reason:
        return str(reason)


def files() -> list[Path]:
    """What is compiled: the source and its headers."""
    return [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]


def _load() -> Library:
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise NoLibraryError(f"it is for Linux on x86_64, and this is {system} on {machine}")
    compilers = list(dict.fromkeys(found for name in COMPILERS if (found := shutil.which(name)) is not None))
    if not compilers:
        raise NoLibraryError(f"there is no C++ compiler here ({', '.join(COMPILERS)})")
    folder, reasons = _own_folder(), list[str]()
    for compiler in compilers:
        try:
            return _by(compiler, folder)
        except NoLibraryError as reason:
            reasons.append(str(reason))
    raise NoLibraryError("; ".join(reasons))


def _by(compiler: str, folder: Path) -> Library:
    key = _key(compiler)
    path = folder / f"kernel-{key}.so"
    try:
        with FileLock(path.with_suffix(".lock")):
            if not _is_as_compiled(path):
                _compile(compiler, path)
        return Library(ctypes.CDLL(str(path)), key)
    except OSError as error:
        raise NoLibraryError(f"{path} cannot be made or loaded ({error.strerror or error})") from None


def _own_folder() -> Path:
    """A folder in the cache that nobody else can write: what lies there is run."""
    folder = cache_folder() / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found, around = folder.lstat(), folder.parent.stat()
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise NoLibraryError(f"{folder} cannot be written ({error.strerror})") from None
    if not stat.S_ISDIR(found.st_mode):
        raise NoLibraryError(f"{folder} is no folder but a link to one; remove it")
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NoLibraryError(f"{folder} can be written by others; make it your own, by chmod 700")
    if around.st_mode & stat.S_IWOTH and not around.st_mode & stat.S_ISVTX:
        raise NoLibraryError(f"{folder.parent} can be written by others; make it your own, by chmod 700")
    return folder


def _key(compiler: str) -> str:
    """16 hex digits that stand for code, compiler, flags and processor."""
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=SECONDS).stdout
        described = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        raise NoLibraryError(f"{compiler} does not run ({error})") from None
    processor = "\n".join(line for line in described if line.startswith(("vendor_id", "cpu family", "model", "flags")))
    code = (path.read_bytes() for path in files())
    parts = (*code, compiler.encode(), version, " ".join(FLAGS).encode(), processor.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _is_as_compiled(path: Path) -> bool:
    """Whether a library lies there, and is the one whose hash was written down when it was compiled."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _record(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return False


def _compile(compiler: str, path: Path) -> None:
    for left in path.parent.glob(f"{path.stem}-*"):  # by a process that was killed: nobody else has the lock
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-") as folder:
        made = Path(folder) / path.name
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(made)]
        try:
            ran = subprocess.run(
                command, check=False, capture_output=True, text=True, errors="replace", timeout=SECONDS
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise NoLibraryError(f"{compiler} does not run ({error})") from None
        if ran.returncode != 0:
            first = next((line for line in ran.stderr.splitlines() if "error" in line), f"exit code {ran.returncode}")
            raise NoLibraryError(f"{compiler} cannot compile it ({first.strip()})")
        try:
            made.chmod(0o700)
            ctypes.CDLL(str(made))  # what cannot be loaded is not kept
        except OSError as error:
            raise NoLibraryError(f"{compiler} makes what cannot be loaded ({error.strerror or error})") from None
        digest = hashlib.sha256(made.read_bytes()).hexdigest()
        _record(path).unlink(missing_ok=True)  # so that no old hash meets the new library
        made.replace(path)
        record = Path(folder) / "sha256"
        record.write_text(f"{digest}\n")
        record.replace(_record(path))


def _record(path: Path) -> Path:
    return path.with_suffix(".sha256")
