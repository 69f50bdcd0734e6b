"""Writing files atomically, hashing them, files that hold their own hash, tables, full disks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

from msde.errors import DataDamaged, DiskFull, InUse, MsdeError

MANIFEST = "MANIFEST.json"  # the files of a folder with their sizes and hashes, and its own hash
MODEL = "model.safetensors"  # weights, in a folder of theirs or of a checkpoint
LOCK = ".lock"  # in a folder that one process at a time works on
LOCK_SECONDS = 5  # that a killed process may take to release a lock
Shipped = Literal["base", "conformers", "bonds"]  # weights that come with the package


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sealed(values: dict[str, Any]) -> str:
    """Return JSON that holds its own digest, `sha256`; `unsealed` reads it."""
    rest = {key: value for key, value in values.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**rest, "sha256": digest}, indent=1) + "\n"


def unsealed(text: str) -> dict[str, Any]:
    """Return the values of a text that `sealed` has made.

    Raises:
        ValueError: the text is another one; the message is the reason.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"it holds {type(values).__name__}, expected a JSON object")
    if text != sealed(values):
        raise ValueError("its SHA-256 differs from the one in it")
    return values


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Sync files to the disk and return their sizes and hashes."""
    facts = {}
    for name in names:
        path = folder / name
        sync(path)
        facts[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return facts


def write_folder_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write MANIFEST, of which `files` are what `hash_files` returned."""
    write_text(folder / MANIFEST, sealed(facts))


def read_folder_manifest(folder: Path) -> dict[str, Any]:
    """Return MANIFEST, with its `files`.

    Raises:
        DataDamaged: it cannot be read, or is not as it was written.
    """
    try:
        facts = unsealed((folder / MANIFEST).read_text())
        _ = facts["files"]
    except OSError as error:
        raise DataDamaged(f"{MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError) as error:
        raise DataDamaged(f"{MANIFEST} is damaged ({error})") from error
    return facts


def file_problem(folder: Path, name: str, facts: dict[str, Any]) -> str | None:
    """Return in what a file differs from its size and hash in MANIFEST, or None."""
    path = folder / name
    if not path.exists():
        return f"{name} is missing"
    if path.stat().st_size != facts["bytes"]:
        return f"{name} has {path.stat().st_size} bytes, expected {facts['bytes']}"
    if file_sha256(path) != facts["sha256"]:
        return f"{name} is damaged (SHA-256 differs, expected {facts['sha256'][:16]}...)"
    return None


def check_file(path: Path) -> bool:
    """Check a file against MANIFEST beside it; return whether there is one that names the file.

    Raises:
        DataDamaged: the file or MANIFEST is not as it was written.
    """
    folder, name = path.parent, path.name
    if not (folder / MANIFEST).exists():
        return False
    try:
        files = read_folder_manifest(folder)["files"]
    except DataDamaged as error:
        raise DataDamaged(f"{folder}: {error}") from error
    problem = file_problem(folder, name, files[name]) if name in files else None
    if problem:
        raise DataDamaged(f"{folder}: {problem}; restore it, or move it if you changed it yourself")
    return name in files


@contextlib.contextmanager
def disk_full_as_error(path: Path | None = None, needed: int = 0) -> Iterator[None]:
    """Turn the system's error of a full disk into one that says what to do.

    Args:
        path, needed: what is written, and how many bytes it needs, where that is known.

    Raises:
        DiskFull: the disk filled up inside.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needs = f": {path} needs {needed:,} bytes" if path else ""
            kept = ": finished parts are kept" if path else ""
            raise DiskFull(
                f"disk full{needs}; free some space and run the same command again{kept}"
            ) from error
        raise


def write_atomically(path: Path, write: Callable[[Path], object], durable: bool = True) -> None:
    """Let `write` write a temporary file beside `path`, sync it and rename it.

    Args:
        durable: whether the file must survive a crash of the machine; without it there is no sync.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        # Some libraries create files that only their owner can read.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write a text in UTF-8 as a whole, as `write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"), durable)


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, the file as a whole; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(values), indent=1, allow_nan=False) + "\n")


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table in Markdown, without a line feed at its end.

    Args:
        head: names of the columns.
        rows: cells, a row as long as the head; each is written as `str` has it.
    """
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def locked(path: Path, message: str) -> TextIO:
    """Lock a file, which is made if need be, against other processes; closing it ends the lock.

    A killed process releases its lock a moment later. File systems without locks are taken as free.

    Raises:
        InUse: another process holds it, as `message` says.
        MsdeError: it cannot be made.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            file = open(path, "a")
        except OSError as error:
            raise MsdeError(f"{path} cannot be locked: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, file):  # or else the process that held it has removed it
                return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                raise InUse(message) from None
        except OSError:
            return file
        file.close()
        time.sleep(0.1)


def _is_still(path: Path, file: TextIO) -> bool:
    """Return whether an open file is the one that a path names."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def make_output(output: Path) -> None:
    """Make the folder of an output and those above it.

    Raises:
        MsdeError: it cannot be made, or is a file.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MsdeError(f"--output {output} cannot be written: {error.strerror}") from error


def user_cache() -> Path:
    """Return the folder for what is made once and kept for the user.

    Raises:
        RuntimeError: the user has no home folder nor XDG_CACHE_HOME.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msde"


def sync(path: Path) -> None:
    """Write a file's bytes, or a folder's entries, from the system's cache to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shipped_checkpoint(name: Shipped = "base") -> Path:
    """Return the folder of weights that come with msde; the README.md beside is their model card.

    Args:
        name: `base` has the encoders, the others sample conformers and find bonds.
    """
    return Path(__file__).parent / "shipped" / name
