"""The manifest of a data set: what it holds, and how it is read and checked."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msde.errors import DataDamaged, MsdeError
from msde.files import unsealed

log = logging.getLogger("msde")

NAME = "manifest.json"
FORMAT = "msde-shards/2"
CONVERT = "'python -m msde.data_tools.convert INPUT --output DIR'"
AGAIN = "copy or convert the data again"


class Kind(NamedTuple):
    """The values that an entry of a manifest may have."""

    words: str
    fits: Callable[[Any], bool]


def _matches(words: str, pattern: str) -> Kind:
    return Kind(words, lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None)


COUNT = Kind("a number of at least 0", lambda v: type(v) is int and v >= 0)
POSITIVE = Kind("a number of at least 1", lambda v: type(v) is int and v >= 1)
TEXT = Kind("text", lambda v: isinstance(v, str))
UNIT = Kind("text or null", lambda v: v is None or isinstance(v, str))
HASH = _matches("a SHA-256 of 64 hexadecimal digits", "[0-9a-f]{64}")
PAIR = Kind(
    "a pair of texts", lambda v: isinstance(v, list) and [type(part) for part in v] == [str, str]
)
ANY = Kind("anything", lambda v: True)

# A list holds values of its one kind; a dict has entries of these names, `?` if they may be
# missing, and where the only name is `*`, any.
SHARD = {
    "file": _matches("the name of a shard", r"shard-\d{5,}\.lmdb"),
    "bytes": COUNT,
    "sha256": HASH,
    "index_sha256": HASH,
    "molecules": POSITIVE,
    "block_molecules": POSITIVE,
    "atoms": COUNT,
    "max_atoms": COUNT,
    "no_geometry": COUNT,
    "conformers?": COUNT,
    "forces?": COUNT,
}
MANIFEST = {
    "format": TEXT,
    "block_version": COUNT,
    "endianness": TEXT,
    "molecules": COUNT,
    "atoms": COUNT,
    "max_atoms": COUNT,
    "no_geometry": COUNT,
    "digest": HASH,
    "labels": [{"name": TEXT, "unit": TEXT}],
    "forces_unit": UNIT,
    "fields?": {"taken": [PAIR], "left_out": {"*": TEXT}},
    "source?": {"*": ANY},
    "counts?": {"*": COUNT},
    "rejects_by_reason?": {"*": COUNT},
    "notes_by_reason?": {"*": COUNT},
    "origin?": {"*": COUNT},
    "lists?": {"*": HASH},
    "shards": [SHARD],
    "sha256?": HASH,
}


def _problems(value: Any, kind: Any, where: str = "") -> Iterator[str]:
    """Yield what is wrong with a value that should be of a kind."""
    wrong = f"{where or 'it'} is {json.dumps(value)[:60]}, expected"
    if isinstance(kind, Kind):
        if not kind.fits(value):
            yield f"{wrong} {kind.words}"
    elif isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{wrong} a list"
            return
        for place, item in enumerate(value):
            yield from _problems(item, kind[0], f"{where}[{place}]")
    elif not isinstance(value, dict):
        yield f"{wrong} an object"
    else:
        names = {name.removesuffix("?"): name for name in kind}
        anything = kind.get("*")
        for name in sorted(names.keys() - value.keys()):
            if anything is None and names[name] == name:
                yield f"{where or 'it'} lacks {name}"
        for name, item in value.items():
            inside = f"{where}.{name}".lstrip(".")
            if anything is None and name not in names:
                yield f"{inside[:60]!r} is not known to this release"
            else:
                yield from _problems(item, anything or kind[names[name]], inside)


def digest_of(shards: Sequence[dict[str, Any]]) -> str:
    """Return the digest of a data set: a hash of the hashes of its shards."""
    return hashlib.sha256("".join(s["sha256"] for s in shards).encode()).hexdigest()


def root_and_weight(item: str | Path) -> tuple[str, float]:
    """Return the folder or URL and the weight of DIR=WEIGHT."""
    root, equals, weight = str(item).rpartition("=")
    try:
        return (root, float(weight)) if equals else (str(item), 1.0)
    except ValueError:  # an equals sign in the name of the folder
        return str(item), 1.0


def check_present(root: Path | str) -> None:
    """Raise an MsdeError if a path is not the folder of a data set; a URL is not checked."""
    if "://" in str(root):
        return
    if not Path(root).is_dir():
        found = "is a file" if Path(root).exists() else "does not exist"
        raise MsdeError(f"data folder {root} {found}; make one with {CONVERT}")
    if not (Path(root) / NAME).exists():
        raise _unfinished(root)


def _unfinished(root: Path | str) -> MsdeError:
    return MsdeError(f"{root} holds no finished data set (no {NAME}); make one with {CONVERT}")


def read_manifest(root: Path | str) -> dict[str, Any]:
    """Read and check the manifest of a data set in a folder or under a URL.

    Raises:
        MsdeError: the folder is missing, empty, or of a format this release does not read.
        DataDamaged: the manifest is not as it was written.
    """
    check_present(root)
    from msde.data import staging  # takes half a second, with fsspec

    path = f"{root}/{NAME}"
    text = staging.read_text(str(root), NAME)
    if text is None:
        raise _unfinished(root)
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise DataDamaged(f"{path} is not a shard manifest ({error}); {AGAIN}") from error
    found = manifest.get("format", FORMAT) if isinstance(manifest, dict) else FORMAT
    if found != FORMAT:
        raise MsdeError(
            f"{path}: format {found!r} is not the format {FORMAT!r} of this release; "
            "convert the data again or use the release that wrote it"
        )
    problem = next(_problems(manifest, MANIFEST), None)
    if problem:
        raise DataDamaged(f"{path}: {problem}; {AGAIN}")
    if not manifest["molecules"]:
        raise MsdeError(f"{path}: {root} holds no molecules; see its rejects.jsonl")
    if "sha256" in manifest:
        try:
            unsealed(text)
        except ValueError as error:
            raise DataDamaged(f"{path} is damaged ({error}); {AGAIN}") from error
    else:
        _warn_unsealed(path)
    return manifest


@functools.cache
def _warn_unsealed(path: str) -> None:
    log.warning(
        "%s was written by an earlier release, without a digest of its own: labels, units and "
        "counts in it cannot be checked; data_tools.reshard writes it anew",
        path,
    )
