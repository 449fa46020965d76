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


def library() -> ctypes.CDLL:
    """The library of this source, compiler and processor, compiled now if it has not been yet.

    Raises:
        NoLibraryError: another system or processor, no compiler, one that fails, or no folder of the user's own.
    """
    found = loaded()
    if isinstance(found, str):
        raise NoLibraryError(found)
    return found


@cache
def loaded() -> ctypes.CDLL | str:
    """The library, or why there is none: looked for once in a process, since a compiler that fails takes seconds."""
    try:
        return _load()
    except NoLibraryError as reason:
        return str(reason)


def _load() -> ctypes.CDLL:
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise NoLibraryError(f"it is for Linux on x86_64, and this is {system} on {machine}")
    compiler = next((found for name in COMPILERS if (found := shutil.which(name)) is not None), None)
    if compiler is None:
        raise NoLibraryError(f"there is no C++ compiler here ({', '.join(COMPILERS)})")
    folder = _own_folder()
    path = folder / f"kernel-{_key(compiler)}.so"
    with FileLock(path.with_suffix(".lock")):
        if not _is_as_compiled(path):
            _compile(compiler, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoLibraryError(f"it cannot be loaded ({error})") from None


def files() -> list[Path]:
    """What is compiled: the source and its headers."""
    return [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]


def _own_folder() -> Path:
    """A folder in the cache that nobody else can write: what lies there is run."""
    folder = cache_folder() / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise NoLibraryError(f"{folder} cannot be written ({error.strerror})") from None
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NoLibraryError(f"{folder} can be written by others; make it your own, by chmod 700")
    return folder


def _key(compiler: str) -> str:
    """16 hex digits that stand for source, compiler, flags and processor."""
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=SECONDS).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NoLibraryError(f"{compiler} does not run ({error})") from None
    described = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    processor = "\n".join(line for line in described if line.startswith(("vendor_id", "cpu family", "model", "flags")))
    parts = (*(path.read_bytes() for path in files()), version, " ".join(FLAGS).encode(), processor.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _is_as_compiled(path: Path) -> bool:
    """Whether a library lies there, and is the one whose hash was written down when it was compiled."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _record(path).read_text().strip()
    except OSError:
        return False


def _compile(compiler: str, path: Path) -> None:
    for left in path.parent.glob(f"{path.stem}-*"):  # by a process that was killed: nobody else has the lock
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-") as folder:
        made = Path(folder) / path.name
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(made)]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            raise NoLibraryError(f"{compiler} does not run ({error})") from None
        if ran.returncode != 0:
            first = next((line for line in ran.stderr.splitlines() if "error" in line), f"exit code {ran.returncode}")
            raise NoLibraryError(f"{compiler} cannot compile it ({first.strip()})")
        made.chmod(0o700)
        digest = hashlib.sha256(made.read_bytes()).hexdigest()
        _record(path).unlink(missing_ok=True)  # so that no old hash meets the new library
        made.replace(path)
        record = Path(folder) / "sha256"
        record.write_text(f"{digest}\n")
        record.replace(_record(path))


def _record(path: Path) -> Path:
    return path.with_suffix(".sha256")
