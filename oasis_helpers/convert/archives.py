"""The files of a folder or of an archive, read on demand and only into memory.

An archive with an unsafe member is rejected before anything is read from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from tqdm.auto import tqdm

from oasis_helpers import data
from oasis_helpers.data import SliceDataError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
PICTURES = (".png", ".jpg", ".jpeg")  # of a tar archive, held in memory: going back in it is slow
MAX_HELD = 2**30  # bytes of them
MAX_MEMBER = 256  # MiB that one member of an archive may declare
MAX_TOTAL = 64  # GiB that all members may declare; a disc of OASIS-1 has about 5 GiB
UNREADABLE = (*data.UNREADABLE, tarfile.TarError)  # raised for a damaged file, image or archive


class SourceFile(NamedTuple):
    """One file of a source; its name is the path inside the source, made printable."""

    name: str
    size: int
    read: Callable[[], bytes]

    def content(self) -> bytes:
        """All bytes of the file; raises `SliceDataError` for an empty or unreadable file."""
        try:
            if content := self.read():
                return content
            reason = "the file is empty"
        except UNREADABLE as error:
            reason = f"cannot be read ({error})"
        raise SliceDataError([f"{self.name}: {reason}; download it again."])


def sha256(content: bytes) -> str:
    """The SHA-256 hash in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def is_system_file(name: str) -> bool:
    """Whether a system wrote this, not a user; hidden files count as such."""
    return any(map(data.SYSTEM_FILE.fullmatch, PurePosixPath(name).parts))


def printable(text: str) -> str:
    """Text with escapes for control characters, and for bytes that are not UTF-8."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def list_files(source: Path, open_archives: contextlib.ExitStack) -> list[SourceFile]:
    """Every file of a folder or an archive, in an order in which reading is cheap.

    Links to folders are followed, except into a folder that holds the link. System files, FIFOs and
    devices are left out.

    Args:
        source: the folder or the archive. Archives in a folder are listed like subfolders.
        open_archives: keeps the archives open while their members are read.

    Raises:
        SliceDataError: the source is missing, or a part of it is unreadable or unsafe.
    """
    if source.is_file():
        return _list_archive(source, "", open_archives)
    if not source.is_dir():
        raise SliceDataError([f"{source}: no file and no folder; give one that holds OASIS files."])
    files, faults = [], []

    def add_fault(error: OSError) -> None:
        faults.append(f"{error.filename}: cannot be listed ({error.strerror}); allow reading it.")

    outer = {str(source): {os.path.realpath(source)}}  # of each folder: itself, and what holds it
    for folder, subfolders, names in os.walk(source, onerror=add_fault, followlinks=True):
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in subfolders}
        subfolders[:] = sorted(name for name in subfolders if real[name] not in outer[folder])
        outer |= {os.path.join(folder, name): outer[folder] | {real[name]} for name in subfolders}
        for path in (Path(folder, name) for name in sorted(names)):
            name = path.relative_to(source).as_posix()
            if is_system_file(name) or (path.exists() and not path.is_file()):
                continue  # opening a FIFO or a device may never end
            if name.lower().endswith(ARCHIVES):
                try:
                    files += _list_archive(path, f"{name}/", open_archives)
                except SliceDataError as error:
                    faults += error.faults
            else:
                files.append(SourceFile(printable(name), path.lstat().st_size, path.read_bytes))
    if faults:
        raise SliceDataError(faults)
    return files


def _list_archive(path: Path, prefix: str, open_archives: contextlib.ExitStack) -> list[SourceFile]:
    """The regular files of an archive, with `prefix` before their names."""
    try:
        if zipfile.is_zipfile(path):
            archive = open_archives.enter_context(zipfile.ZipFile(path))
            members = archive.infolist()
            files = [SourceFile(m.filename, m.file_size, partial(archive.read, m)) for m in members]
            regular = [not member.is_dir() for member in members]
            links = [stat.S_ISLNK(member.external_attr >> 16) for member in members]
        else:
            archive = open_archives.enter_context(tarfile.open(path))
            files, held = [], 0
            for m in tqdm(archive, f"listing {path.name}", unit="file", leave=False, delay=1):
                read = partial(lambda m: archive.extractfile(m).read(), m)
                if m.isfile() and m.name.lower().endswith(PICTURES) and held + m.size < MAX_HELD:
                    held, read = held + m.size, io.BytesIO(read()).getvalue
                files.append(SourceFile(m.name, m.size, read))
            _check_end(archive)
            members = archive.getmembers()
            regular = [member.isfile() for member in members]
            links = [member.issym() or member.islnk() for member in members]
    except UNREADABLE as error:
        expected = f"expected a folder, or an archive that ends in {', '.join(ARCHIVES)}"
        fault = f"{path}: not a readable archive ({error}); {expected}; download it again."
        raise SliceDataError([fault]) from error
    dangers = list(filter(None, map(_danger_of, files, links)))
    total = sum(file.size for file in files) / 2**30
    if total > MAX_TOTAL:
        dangers.append(f"declares {total:.0f} GiB of files, more than {MAX_TOTAL} GiB")
    if dangers:
        advice = "nothing was unpacked: get the archive from its publisher."
        raise SliceDataError([f"{path}: {danger}; {advice}" for danger in dangers])
    names = [prefix + file.name.removeprefix("./").replace("\\", "/") for file in files]
    return [
        file._replace(name=printable(name))
        for file, name, is_regular in zip(files, names, regular)
        if is_regular and not is_system_file(name)
    ]


def _check_end(archive: tarfile.TarFile) -> None:
    """Raises `tarfile.ReadError` unless zeros, and nothing else, follow the last member."""
    archive.fileobj.seek(archive.offset)
    blocks = iter(partial(archive.fileobj.read, 2**20), b"")  # to the end: a checksum is there
    if {block.strip(b"\0") for block in blocks} != {b""}:
        raise tarfile.ReadError("no end mark follows its last whole member")


def _danger_of(member: SourceFile, is_link: bool) -> str | None:
    """Why a member makes its archive unsafe to read; None for a safe member."""
    path = PureWindowsPath(member.name)  # knows drives, and separators of all systems
    size = member.size / 2**20
    reasons = {
        "points outside of the archive's folder": ".." in path.parts,
        "has an absolute path": path.anchor,
        "is a link": is_link,
        f"declares {size:.0f} MiB, more than {MAX_MEMBER} MiB": size > MAX_MEMBER,
    }
    return next((f"member {member.name!r} {reason}" for reason in reasons if reasons[reason]), None)
