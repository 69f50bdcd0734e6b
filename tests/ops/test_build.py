import ctypes
import multiprocessing
import subprocess
from pathlib import Path

import pytest

from msde.ops import build

FLAGS = ("-O1", "-shared", "-fPIC")


@pytest.fixture
def source(tmp_path):
    """A C++ file whose library answers 42."""
    path = tmp_path / "answer.cpp"
    path.write_text('#include "number.hpp"\nextern "C" int answer() { return kNumber; }\n')
    (tmp_path / "number.hpp").write_text("constexpr int kNumber = 42;\n")
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of libraries, empty as on a new machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/msde"


@pytest.fixture
def machine_compiler():
    """The compiler of this machine."""
    try:
        return build.compiler()[0]
    except FileNotFoundError:
        pytest.skip("there is no C++ compiler")


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that does what `command` of a shell says; "$@" are its arguments."""

    def make(command):
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{command}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))

    return make


def test_a_library_is_compiled_once(machine_compiler, source, cache, monkeypatch):
    path = build.compiled(source, FLAGS)
    assert ctypes.CDLL(str(path)).answer() == 42
    assert sorted(p.name for p in cache.iterdir()) == sorted([".lock", path.name])
    monkeypatch.setattr(subprocess, "run", None)
    assert build.compiled(source, FLAGS) == path


def test_a_line_says_why_the_first_call_takes_long(machine_compiler, source, cache, caplog):
    build.compiled(source, FLAGS)
    (said,) = caplog.messages
    assert said.startswith("compiling answer.cpp for this machine") and str(cache) in said
    build.compiled(source, FLAGS)
    assert len(caplog.messages) == 1


def test_another_header_or_other_flags_make_another_library(machine_compiler, source, cache):
    first = build.compiled(source, FLAGS)
    assert build.compiled(source, (*FLAGS, "-DOTHER")) != first
    source.with_name("number.hpp").write_text("constexpr int kNumber = 43;\n")
    second = build.compiled(source, FLAGS)
    assert second != first and ctypes.CDLL(str(second)).answer() == 43


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("CXX", "/no/compiler", FileNotFoundError),
        ("CXX", "false", RuntimeError),
        ("PATH", "", FileNotFoundError),
    ],
)
def test_a_compiler_that_is_missing_or_fails_is_an_error(
    source, cache, monkeypatch, variable, value, error
):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(error):
        build.compiled(source, FLAGS)
    assert not list(cache.glob("*.so"))


def test_the_error_quotes_the_compiler(source, cache, compiler):
    compiler("echo no such header >&2; exit 1")
    with pytest.raises(RuntimeError, match="no such header"):
        build.compiled(source, FLAGS)


def test_without_a_home_folder_there_is_an_error(machine_compiler, source, monkeypatch):
    def no_home(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    with pytest.raises(RuntimeError, match="home directory"):
        build.compiled(source, FLAGS)


def test_of_processes_that_need_a_library_at_the_same_time_one_compiles(
    machine_compiler, source, cache, compiler, tmp_path
):
    log = tmp_path / "log"
    compiler(f'echo compiled >> {log}\n{machine_compiler} "$@"')
    start = multiprocessing.get_context("fork").Process
    running = [start(target=build.compiled, args=(source, FLAGS)) for _ in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert log.read_text() == "compiled\n"
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".so"]


def test_a_library_in_use_is_not_replaced(source, cache, compiler):
    # Another machine with the same home, where locks do not reach, compiles it meanwhile.
    find = 'while [ "$1" != -o ]; do shift; done'
    compiler(f'{find}\necho ours > "$2"\necho theirs > {cache}/"$(basename "$2")"')
    assert build.compiled(source, FLAGS).read_text() == "theirs\n"
