"""The folder that a conversion writes, and the manifest from which it resumes.

The folder is called `<target>.unfinished` until everything is written.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import tempfile
from pathlib import Path

import filelock
import numpy as np
from PIL import Image

from oasis_helpers.convert.archives import sha256
from oasis_helpers.convert.subjects import Slice, Subject
from oasis_helpers.data import LAYOUT_FOLDER, SPLITS, read_json, write_bytes, write_json

PLAN, MANIFEST, MONTAGE = "conversion.json", "manifest.csv", "montage.png"
MADE_BY = "oasis_helpers.convert"
VERSION = 4  # of the output: raise it whenever the same source gives other files

_COLUMNS = ["file", "sha256", "case", "split", "session", "files_sha256"]
_COLUMNS += [column for column in Slice._fields if column != "png"]
_MONTAGE_SUBJECTS, _MONTAGE_SLICES, _MONTAGE_SIDE = 2, 8, 128  # per split, per subject; pixels


def make_plan(source: Path, kind: str, subjects: list[Subject], remarks: list[str]) -> dict:
    """The content of `conversion.json`; two conversions with equal plans write equal files."""
    cases = sorted((subject.case, subject.split) for subject in subjects)
    names = sorted(file.name for subject in subjects for file in subject.files)
    return {
        "made_by": MADE_BY,
        "version": VERSION,
        "source": source.resolve().name,
        "kind": kind,
        "files": len(names),
        "file_names_sha256": sha256("\n".join(names).encode()),
        "subjects": {split: [case for case, of in cases if of == split] for split in SPLITS},
        "remarks": remarks,
    }


def lock(target: Path) -> contextlib.AbstractContextManager:
    """Lets one process at a time write a target; raises BlockingIOError in the second one."""
    name = sha256(os.path.realpath(target).encode(errors="replace"))
    held = filelock.FileLock(Path(tempfile.gettempdir(), f"oasis-convert-{name[:16]}.lock"))
    try:
        return held.acquire(timeout=0)
    except filelock.Timeout:
        raise BlockingIOError(
            f"Another process is converting into {target}; wait until it has ended, or stop it."
        ) from None


def open_folder(target: Path, plan: dict) -> Path:
    """The target if it is finished, else `<target>.unfinished`, new or of this conversion.

    Raises:
        FileExistsError: the target, or the unfinished folder, holds anything else.
    """
    folder = target.with_name(f"{target.name}.unfinished")
    if _holds(target, plan):
        return target
    if not _holds(folder, plan):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PLAN, plan, indent=1)
    for split in SPLITS:
        (folder / LAYOUT_FOLDER / f"keras_png_slices_{split}").mkdir(parents=True, exist_ok=True)
    return folder


def _holds(folder: Path, plan: dict) -> bool:
    """True if a folder holds this conversion, False if it is missing or empty; else an error."""
    hidden = folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())
    if hidden or not folder.exists():  # hidden files are of the system, or half-written
        return False
    advice = "nothing was changed: give another target, or move that one away."
    try:
        existing = read_json(folder / PLAN)
    except ValueError:
        existing = {}
    if existing.get("made_by") != MADE_BY:
        fault = f"something that no conversion made (no valid {PLAN})"
        raise FileExistsError(f"{folder} holds {fault}; {advice}")
    if different := [name for name in plan if existing.get(name) != plan[name]]:
        fault = f"another conversion (other {', '.join(different)})"
        raise FileExistsError(f"{folder} holds {fault}; {advice}")
    return True


def write_subject(folder: Path, target: Path, subject: Subject, rows: list[dict]) -> None:
    """Writes the slices of a subject, and puts their rows into `rows` and into the manifest.

    A subject is left as it is when its rows are there and its slices and source are unchanged.

    Raises:
        SliceDataError: a file of the subject is unusable.
        FileExistsError: the target is finished, and the subject's slices or source have changed.
    """
    case, contents = f"{subject.case:03d}", [file.content() for file in subject.files]
    digest = sha256("".join(map(sha256, contents)).encode())
    if _is_complete(folder, subject, [row for row in rows if row["files_sha256"] == digest]):
        return
    if folder == target:
        raise FileExistsError(
            f"{target}: the source, the slices or the {MANIFEST} of subject {case} have changed "
            "since the conversion; nothing was changed: move this folder away and convert again."
        )
    rows[:] = [row for row in rows if row["case"] != case]
    for slice_ in subject.make_slices(contents):
        columns = slice_._asdict()
        png, file = columns.pop("png"), _file_name(subject, slice_.slice)
        write_bytes(folder / file, png)
        values = file, sha256(png), case, subject.split, subject.session, digest
        rows.append(dict(zip(_COLUMNS, values)) | columns)
    rows.sort(key=lambda row: (SPLITS.index(row["split"]), int(row["case"]), int(row["slice"])))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(folder / MANIFEST, table.getvalue().encode())


def _file_name(subject: Subject, index: int) -> str:
    name = f"case_{subject.case:03d}_slice_{index}.nii.png"
    return f"{LAYOUT_FOLDER}/keras_png_slices_{subject.split}/{name}"


def _is_complete(folder: Path, subject: Subject, rows: list[dict]) -> bool:
    """Whether every slice of a subject is there, as in `rows`."""
    hashes = {row["file"]: row["sha256"] for row in rows}
    return all(
        (folder / name).is_file() and sha256((folder / name).read_bytes()) == hashes.get(name)
        for name in (_file_name(subject, index) for index in subject.indices)
    )


def finish(folder: Path, target: Path) -> None:
    """Writes the montage, then renames the unfinished folder to `target`."""
    montage = io.BytesIO()
    _montage(folder, read_manifest(folder)).save(montage, "PNG")
    write_bytes(folder / MONTAGE, montage.getvalue())
    for scrap in folder.rglob(".*-case_*.nii.png"):  # of a kill while a slice was written
        scrap.unlink()
    if target.exists():  # empty, or with hidden files
        for path in folder.iterdir():
            path.rename(target / path.name)
        folder.rmdir()
    else:
        folder.rename(target)


def read_manifest(folder: Path) -> list[dict]:
    """The rows of the manifest, one for each slice; none where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, csv.Error):
        with open(folder / MANIFEST, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames == _COLUMNS:
                return [row for row in reader if None not in row.values()]
    return []


def _montage(folder: Path, rows: list[dict]) -> Image.Image:
    """Two subjects of each split, one row each: eight slices from the lowest to the highest."""
    files_of = {split: {} for split in SPLITS}
    for row in rows:
        files_of[row["split"]].setdefault(row["case"], []).append(row["file"])
    lines = []
    for files in (f for x in files_of.values() for f in list(x.values())[:_MONTAGE_SUBJECTS]):
        indices = np.linspace(0, len(files) - 1, _MONTAGE_SLICES).round().astype(int)
        lines.append(np.hstack([_thumbnail(folder / files[index]) for index in indices]))
    return Image.fromarray(np.vstack(lines))


def _thumbnail(path: Path) -> np.ndarray:
    with Image.open(path, formats=["PNG"]) as picture:
        return np.asarray(picture.resize((_MONTAGE_SIDE, _MONTAGE_SIDE)))
