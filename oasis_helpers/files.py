"""Files that are never seen half written, and folders that one process at a time works in."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what was written takes its place at the end of the block.

    So a file is never seen half written, and after an error the old one is as it was.
    """
    beside = path.with_name(f".{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        error.filename = str(path)  # a full disk doesn't say which file it was
        raise
    finally:
        beside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file beside its place and renames it, so that it is never seen half written."""
    with written_beside(path) as beside:
        beside.write_bytes(content)


def write_json(path: Path, content: dict, indent: int | None = None) -> None:
    """Writes a JSON file as `write_bytes` does."""
    write_bytes(path, f"{json.dumps(content, indent=indent)}\n".encode())


def read_json(path: Path) -> dict:
    """What a JSON file of ours holds.

    Raises:
        ValueError: for a missing or damaged file, and one that holds something else than a dict.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        content = error
    if not isinstance(content, dict):
        found = f"can't be read ({content})" if isinstance(content, Exception) else "holds no names"
        raise ValueError(
            f"{path}: {found}; expected a JSON file of ours: get it back with git, or remove it "
            "and make it anew."
        )
    return content


@contextmanager
def only_one(work: Path, what: str) -> Iterator[None]:
    """Lets one process at a time into a folder; the second one is told so.

    The lock is an SQLite transaction: the operating system ends it with the process, however
    that dies, on every system alike.

    Raises:
        BlockingIOError: when another process is at it.
    """
    work.mkdir(parents=True, exist_ok=True)
    lock = sqlite3.connect(work / "in-use.lock", timeout=0, isolation_level=None)
    try:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise OSError(
                    f"{work} can't be written ({error}); allow it, or free space."
                ) from None
            raise BlockingIOError(
                f"Another process is {what} in {work}; wait until it has ended, or stop it."
            ) from None
        yield
    finally:
        lock.close()
