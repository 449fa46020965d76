"""The library is compiled once, kept where only its user can write, and loaded only as it was compiled."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile

import pytest

from nopos.training import compiled

WITH_COMPILER = next((name for name in compiled.COMPILERS if shutil.which(name)), None)
ON_X86 = (platform.system(), platform.machine()) == ("Linux", "x86_64")
pytestmark = pytest.mark.skipif(WITH_COMPILER is None or not ON_X86, reason="no kernel can be compiled here")

TRIVIAL = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def library(own_cache, tmp_path, monkeypatch):
    """Compile a trivial source in a cache of the test's own, anew at each call."""
    (tmp_path / "source").mkdir()
    source = tmp_path / "source" / "trivial.cpp"
    source.write_text(TRIVIAL)
    monkeypatch.setattr(compiled, "SOURCE", source)

    def compile_it():
        compiled.loaded.cache_clear()
        return compiled.library().calls

    yield compile_it
    compiled.loaded.cache_clear()


def libraries(own_cache):
    return sorted((own_cache / "kernels").glob("*.so"))


def test_it_is_compiled_once_and_kept_for_its_user_alone(library, own_cache, monkeypatch):
    assert library().answer() == 42
    (path,) = libraries(own_cache)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(compiled, "_compile", None)  # calling it would fail
    assert library().answer() == 42


def test_a_compiler_that_fails_is_asked_once(library, monkeypatch):
    asked, real = [], compiled._compile
    monkeypatch.setattr(compiled, "COMPILERS", (WITH_COMPILER,))
    monkeypatch.setattr(compiled, "_compile", lambda *arguments: asked.append(1) or real(*arguments))
    compiled.SOURCE.write_text("no C++")
    with pytest.raises(compiled.NoLibraryError, match="cannot compile it"):
        library()
    with pytest.raises(compiled.NoLibraryError, match="cannot compile it"):
        compiled.library()
    assert asked == [1]


def test_another_source_is_another_library(library, own_cache):
    library()
    compiled.SOURCE.write_text(TRIVIAL.replace("42", "43"))
    assert library().answer() == 43
    assert len(libraries(own_cache)) == 2


def test_another_header_is_another_library(library, own_cache):
    header = compiled.SOURCE.with_name("answer.h")
    header.write_text("constexpr int ANSWER = 42;\n")
    compiled.SOURCE.write_text('#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n')
    assert library().answer() == 42
    header.write_text("constexpr int ANSWER = 43;\n")
    assert library().answer() == 43
    assert len(libraries(own_cache)) == 2


def test_nothing_is_left_beside_the_library(library, own_cache):
    library()
    left = {each.suffix for each in (own_cache / "kernels").iterdir()}
    assert left == {".so", ".sha256", ".lock"}


def test_what_a_killed_process_left_is_swept(library, own_cache):
    library()
    (path,) = libraries(own_cache)
    left, of_another = (path.with_name(f"{stem}-abc") for stem in (path.stem, "kernel-of-another"))
    for folder in (left, of_another):
        folder.mkdir()
        (folder / path.name).write_bytes(b"half")
    path.unlink()
    assert library().answer() == 42
    assert not left.exists()
    assert of_another.exists()


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"no library"), lambda path: path.unlink()])
def test_a_library_that_is_not_as_it_was_compiled_is_compiled_again(library, own_cache, damage):
    """In a process of its own, since one that has loaded a library keeps it."""
    code = f"""
import json, sys
from pathlib import Path
from nopos.training import compiled
compiled.SOURCE = Path({str(compiled.SOURCE)!r})
print(json.dumps(compiled.library().calls.answer()))
"""
    environment = os.environ | {"NOPOS_CACHE_DIR": str(own_cache)}

    def answer():
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        return json.loads(ran.stdout)

    assert answer() == 42
    (path,) = libraries(own_cache)
    damage(path)
    assert answer() == 42
    assert compiled._is_as_compiled(path)


def test_a_library_without_its_hash_is_not_taken(library, own_cache):
    library()
    (path,) = libraries(own_cache)
    path.with_suffix(".sha256").unlink()
    assert not compiled._is_as_compiled(path)


def only(patch, folder, script):
    """Leave one compiler, which does what the script says."""
    path = folder.parent.parent / "bin"
    path.mkdir()
    (path / "c++").write_text(f"#!/bin/bash\n{script}\n")
    (path / "c++").chmod(0o755)
    patch.setenv("PATH", str(path))


def full(*arguments, **options):
    raise OSError(28, "No space left on device")


def test_a_compiler_that_works_is_found_behind_one_that_does_not(library, own_cache, monkeypatch):
    others = os.environ["PATH"]
    own_cache.mkdir(parents=True, exist_ok=True)
    only(monkeypatch, own_cache / "kernels", "exit 1")
    monkeypatch.setattr(compiled, "COMPILERS", ("c++", "g++"))
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{others}")
    assert library().answer() == 42


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda patch, folder: patch.setenv("PATH", ""),
            r"^there is no C\+\+ compiler here \(c\+\+, g\+\+, clang\+\+\)$",
        ),
        (lambda patch, folder: patch.setattr(platform, "machine", lambda: "arm64"), "and this is Linux on arm64$"),
        (lambda patch, folder: patch.setattr(platform, "system", lambda: "Darwin"), "and this is Darwin on x86_64$"),
        (lambda patch, folder: compiled.SOURCE.write_text("no C++"), r"cannot compile it \(.*error.*\)$"),
        (lambda patch, folder: patch.setattr(compiled, "FLAGS", ("-fno-such",)), r"cannot compile it \(.*\)$"),
        (
            lambda patch, folder: folder.chmod(0o777),
            "kernels can be written by others; make it your own, by chmod 700$",
        ),
        (
            lambda patch, folder: folder.parent.chmod(0o777),
            "cache can be written by others; make it your own, by chmod 700$",
        ),
        (
            lambda patch, folder: (folder.rename(folder.with_name("other")), folder.symlink_to("other")),
            "kernels is no folder but a link to one; remove it$",
        ),
        (lambda patch, folder: only(patch, folder, "exit 0"), r"makes what cannot be loaded \(No such file"),
        (
            lambda patch, folder: only(patch, folder, 'case $1 in --version) ;; *) echo no > "${@: -1}" ;; esac'),
            r"makes what cannot be loaded \(",
        ),
        (
            lambda patch, folder: only(
                patch, folder, r"case $1 in --version) ;; *) printf 'error \377' >&2; exit 1 ;; esac"
            ),
            r"cannot compile it \(error \ufffd\)$",
        ),
        (lambda patch, folder: patch.setattr(tempfile, "TemporaryDirectory", full), "No space left on device"),
        (lambda patch, folder: (folder.rmdir(), folder.write_text("")), "kernels cannot be written"),
    ],
    ids=[
        "no compiler",
        "another processor",
        "another system",
        "no C++",
        "a flag",
        "a folder of all",
        "a cache of all",
        "a link",
        "a compiler that makes nothing",
        "one that makes no library",
        "one that writes no UTF-8",
        "a full disk",
        "no folder",
    ],
)
def test_where_it_cannot_be_compiled_the_reason_is_a_phrase(library, own_cache, monkeypatch, spoil, reason):
    folder = own_cache / "kernels"
    folder.mkdir(mode=0o700, parents=True)
    spoil(monkeypatch, folder)
    with pytest.raises(compiled.NoLibraryError, match=reason):
        library()
    assert not folder.is_dir() or libraries(own_cache) == []


SHAPES = """
#include "{source}"
#include <cstdio>
#include <random>

std::mt19937 random_numbers(0);

std::vector<float> drawn(long count) {{
    std::vector<float> made(count);
    for (float &value : made) value = float(random_numbers() % 1000) / 1000 - 0.5f;
    return made;
}}

int main() {{
    const Sizes shapes[] = {{
        {{2, 9, 7, 1, 2, 1, 24, 24, 40, 11, 0, 1, 1, 2}},
        {{1, 3, 5, 2, 3, 2, 30, 10, 37, 11, 0, 1, 0, 2}},
        {{2, 2, 33, 1, 2, 3, 16, 5, 20, 7, 1, 0, 0, 1}},
        {{1, 17, 20, 1, 1, 1, 17, 19, 33, 30, 1, 1, 1, 3}},
        {{40, 9, 4, 1, 1, 1, 5, 5, 3, 6, 0, 1, 1, 1}},
    }};
    for (const Sizes &z : shapes) {{
        const long d = z.d_model, attention = long(z.heads) * d * z.d_head, biases = z.heads * z.d_head;
        std::vector<long> counts{{z.d_vocab * d, z.learned_positions ? z.pos * d : 0}};
        for (int layer = 0; layer < z.layers; ++layer)
            counts.insert(counts.end(), {{d, d, attention, attention, attention, biases, biases, biases, attention, d,
                                         d, d, d * z.d_mlp, z.d_mlp, z.d_mlp * d, d}});
        counts.insert(counts.end(), {{d, d, d * z.d_vocab, z.d_vocab}});
        std::vector<std::vector<float>> parameters, gradients;
        std::vector<const float *> given;
        std::vector<float *> made;
        for (long count : counts) parameters.push_back(drawn(z.models * count)), gradients.push_back(parameters.back());
        for (auto &each : parameters) given.push_back(each.empty() ? nullptr : each.data());
        for (auto &each : gradients) made.push_back(each.empty() ? nullptr : each.data());
        std::vector<int64_t> tokens(z.models * z.batch * z.pos);
        std::vector<int64_t> wanted(z.models * z.batch * (z.pos - z.first));
        for (auto *each : {{&tokens, &wanted}})
            for (int64_t &token : *each) token = random_numbers() % z.d_vocab;
        std::vector<float> work(workspace(&z)), losses(z.models);
        losses_and_gradients(&z, given.data(), counts.data(), tokens.data(), wanted.data(), work.data(), losses.data(),
                             made.data(), counts.data());
        for (float loss : losses) std::printf("%.3f\\n", loss);
    }}
    const float coefficients[] = {{3.4445f, -4.7750f, 2.0315f}};
    for (auto [rows, columns] : {{std::pair{{5, 9}}, std::pair{{33, 7}}, std::pair{{1, 1}}}}) {{
        std::vector<float> matrices = drawn(3L * rows * columns);
        std::vector<float> work(workspace_to_orthogonalize(rows, columns, 2)), out(matrices.size());
        orthogonalize(3, rows, columns, 2, coefficients, 5, matrices.data(), work.data(), out.data());
        std::printf("%.3f\\n", std::abs(out[0]) + 1);
    }}
}}
"""


@pytest.mark.slow
def test_the_sanitisers_find_nothing(tmp_path):
    """Addresses and undefined behaviour, on small shapes that fill no tile."""
    source, program = tmp_path / "shapes.cpp", tmp_path / "shapes"
    source.write_text(SHAPES.format(source=compiled.SOURCE))
    flags = [flag for flag in compiled.FLAGS if flag not in ("-O3", "-shared", "-fPIC")]
    sanitise = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([WITH_COMPILER, *flags, *sanitise, str(source), "-o", str(program)], check=True)
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False, env=environment)
    assert ran.stderr == ""
    losses = [float(line) for line in ran.stdout.split()]
    assert len(losses) == 2 + 1 + 2 + 1 + 40 + 3
    assert all(0 < loss < 10 for loss in losses)
