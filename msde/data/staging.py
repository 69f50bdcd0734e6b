"""The files of a data set: in their folder, or staged as copies on a local disk."""

from __future__ import annotations

import fcntl
import hashlib
import time
import uuid
from pathlib import Path
from typing import Any, TextIO

import fsspec

from msde.errors import DataDamaged, DiskFull, MsdeError
from msde.files import disk_full_as_error, write_atomically

PAUSES = (1.0, 5.0, 15.0)  # seconds before each further attempt to copy a file


class Folder:
    """Files that are read in place."""

    def __init__(self, root: Path) -> None:
        """Name the folder."""
        self.root = root

    def path(self, name: str, _size: int, _sha256: str) -> Path:
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

    def path(self, name: str, size: int, sha256: str) -> Path:
        """Return the path of the copy of a file; make the copy if there is none.

        Args:
            size: of the file in bytes.
            sha256: of the file, as hexadecimal digits.

        Raises:
            DiskFull: there is no room for the copy.
            DataDamaged: the original is missing, or is not as the manifest says.
            MsdeError: the original cannot be read, or the copy cannot be written.
        """
        path = self.root / name
        if path.exists():
            return path
        try:
            with disk_full_as_error(path, size), open(self.root / f".{name}.lock", "w") as lock:
                alone = _wait_for_lock(lock)
                if not path.exists():  # another process may have copied it meanwhile
                    # Processes that cannot exclude each other must not share a temporary file.
                    own = path if alone else path.with_name(f".{name}.{uuid.uuid4().hex}")
                    write_atomically(own, lambda to: self._copy(name, size, sha256, to))
                    own.replace(path)
        except OSError as error:
            raise MsdeError(
                f"{path} cannot be written: {error.strerror}; mend that or choose another "
                "data.stage_dir"
            ) from error
        return path

    def _copy(self, name: str, size: int, sha256: str, to: Path) -> None:
        """Copy a file and check the copy; try again if that fails, as networks do at times."""
        path = self.root / name
        for pause in (0.0, *PAUSES):
            time.sleep(pause)
            try:
                with disk_full_as_error(path, size):
                    return self._copy_once(name, size, sha256, to)
            except FileNotFoundError as error:
                raise DataDamaged(f"{self.url}/{name} is missing") from error
            except DiskFull:
                raise
            except DataDamaged as error:
                failure: MsdeError = error
            except Exception as error:  # the types of errors depend on the storage
                failure = MsdeError(
                    f"{self.url}/{name} cannot be copied to {path}, after {len(PAUSES) + 1} "
                    f"attempts: {' '.join(str(error).split())}; run the same command again"
                )
        raise failure

    def _copy_once(self, name: str, size: int, sha256: str, to: Path) -> None:
        digest = hashlib.sha256()
        with (
            self._filesystem.open(f"{self._remote}/{name}", "rb") as source,
            open(to, "wb") as file,
        ):
            while chunk := source.read(1 << 24):
                digest.update(chunk)
                file.write(chunk)
        found = to.stat().st_size
        if found != size:
            raise DataDamaged(
                f"{self.url}/{name} has {found} bytes, the manifest says {size} bytes"
            )
        if digest.hexdigest() != sha256:
            raise DataDamaged(
                f"the copy of {self.url}/{name} to {self.root / name} is damaged (SHA-256 "
                "differs); if it is so again, the original is: copy or convert it again"
            )


def _wait_for_lock(file: TextIO) -> bool:
    """Lock a file against other processes; return whether its file system has locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


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
