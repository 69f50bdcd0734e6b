"""The files of a data set: in their folder, or staged as copies on a local disk."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Any

import fsspec

from msde.errors import DataDamaged, MsdeError
from msde.files import disk_full_as_error, write_atomically


class Folder:
    """Files that are read in place."""

    def __init__(self, root: Path) -> None:
        """Name the folder."""
        self.root = root

    def path(self, name: str, _: int) -> Path:
        """Return the path of a file."""
        return self.root / name


class StagedFolder:
    """Remote files, in object storage for example, that are copied to a local disk at first use.

    All processes of a machine share the copies: one copies, the others wait.

    Args:
        url: a URL that fsspec understands: a path, `s3://bucket/folder`, ...
        local: folder of the copies.
    """

    def __init__(self, url: str, local: Path) -> None:
        """Make the folder of the copies."""
        self._filesystem, self._remote = open_url(url)
        self.url, self.root = url, local
        try:
            local.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MsdeError(f"data.stage_dir {local} cannot be made: {error.strerror}") from error

    def path(self, name: str, size: int) -> Path:
        """Return the path of the copy of a file of `size` bytes; make the copy if there is none.

        Raises:
            DiskFull: there is no room for the copy.
            DataDamaged: the original is missing or has another size.
        """
        path = self.root / name
        if not path.exists():
            with open(self.root / f".{name}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():  # another process may have copied it meanwhile
                    with disk_full_as_error(path, size):
                        write_atomically(path, lambda temporary: self._copy(name, size, temporary))
        return path

    def _copy(self, name: str, size: int, to: Path) -> None:
        try:
            with (
                self._filesystem.open(f"{self._remote}/{name}", "rb") as source,
                open(to, "wb") as f,
            ):
                shutil.copyfileobj(source, f, 1 << 24)
        except FileNotFoundError as error:
            raise DataDamaged(f"{self.url}/{name} is missing") from error
        if to.stat().st_size != size:
            raise DataDamaged(
                f"{self.url}/{name} has {to.stat().st_size} bytes, the manifest says {size} bytes"
            )


def open_url(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it.

    Raises:
        MsdeError: no installed package can read URLs of this kind.
    """
    try:
        return fsspec.core.url_to_fs(url.rstrip("/"))
    except (ImportError, ValueError) as error:
        raise MsdeError(f"{url} cannot be opened: {' '.join(str(error).split())}") from error


def read_text(url: str, name: str) -> str | None:
    """Return the text of a file under a URL, or None if there is no such file."""
    filesystem, remote = open_url(url)
    try:
        return filesystem.cat_file(f"{remote}/{name}").decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise DataDamaged(f"{url}/{name} is damaged: it is not text ({error})") from error
    except Exception as error:  # the types of errors depend on the storage
        raise MsdeError(f"{url}/{name} cannot be read: {' '.join(str(error).split())}") from error
