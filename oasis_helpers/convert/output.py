"""The folder that a conversion writes, and the records from which it resumes.

The folder is called `<target>.unfinished` until everything is written.
"""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from oasis_helpers.convert.archives import sha256
from oasis_helpers.convert.subjects import Subject
from oasis_helpers.data import LAYOUT_FOLDER, SPLITS, read_json, write_bytes, write_json

PLAN, MANIFEST, MONTAGE = "conversion.json", "manifest.csv", "montage.png"
MADE_BY = "oasis_helpers.convert"
VERSION = 2  # of the output: raise it whenever the same source gives other files

_RECORDS = ".records"  # a file for each complete subject; removed at the end
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


def is_finished(target: Path, plan: dict) -> bool:
    """True if `target` holds this conversion, False if it holds nothing.

    Raises:
        FileExistsError: the target holds anything else, or an incomplete conversion.
    """
    if not _holds(target, plan):
        return False
    missing = [row["file"] for row in read_manifest(target) if not (target / row["file"]).is_file()]
    if missing:
        raise FileExistsError(
            f"{target} lacks {len(missing)} files of its {MANIFEST} ({missing[0]}, ...); nothing "
            "was changed: move it away and convert again."
        )
    shutil.rmtree(target / _RECORDS, ignore_errors=True)  # remain after a kill at the very end
    return True


def open_unfinished(target: Path, plan: dict) -> Path:
    """The folder to write into: a new one, or this conversion's unfinished one."""
    folder = target.with_name(f"{target.name}.unfinished")
    if not _holds(folder, plan):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PLAN, plan, indent=1)
    for split in SPLITS:
        (folder / LAYOUT_FOLDER / f"keras_png_slices_{split}").mkdir(parents=True, exist_ok=True)
    (folder / _RECORDS).mkdir(exist_ok=True)
    return folder


def _holds(folder: Path, plan: dict) -> bool:
    """True if a folder holds this conversion, False if it is missing or empty; else an error."""
    if not folder.exists():
        return False
    if folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir()):
        return False  # a hidden file is a half-written one
    advice = "nothing was changed: give another target, or move that one away."
    try:
        existing = read_json(folder / PLAN)
    except ValueError:
        existing = {}
    if existing.get("made_by") != MADE_BY:
        raise FileExistsError(
            f"{folder} holds something that no conversion made (no valid {PLAN}); {advice}"
        )
    different = [name for name in plan if existing.get(name) != plan[name]]
    if different:
        raise FileExistsError(
            f"{folder} holds another conversion (other {', '.join(different)}); {advice}"
        )
    return True


def write_subject(folder: Path, subject: Subject) -> None:
    """Writes the slices of a subject and, last, its record; a complete subject is left as it is."""
    record = folder / _RECORDS / f"case_{subject.case:03d}.json"
    sizes = {file.name: file.size for file in subject.files}
    if _is_complete(folder, record, sizes):
        return
    rows = []
    for slice_ in sorted(subject.make_slices()):
        columns = slice_._asdict()
        png = columns.pop("png")
        name = f"case_{subject.case:03d}_slice_{slice_.slice}.nii.png"
        file = f"{LAYOUT_FOLDER}/keras_png_slices_{subject.split}/{name}"
        (folder / file).write_bytes(png)
        row = {"file": file, "sha256": sha256(png), "case": f"{subject.case:03d}"}
        rows.append(row | {"split": subject.split, "session": subject.session} | columns)
    write_json(record, {"sizes": sizes, "rows": rows})


def _is_complete(folder: Path, record: Path, sizes: dict[str, int]) -> bool:
    """Whether all slices of a record are there, made from files of the same names and sizes."""
    try:
        content = read_json(record)
        return content["sizes"] == sizes and all(
            sha256((folder / row["file"]).read_bytes()) == row["sha256"] for row in content["rows"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def finish(folder: Path, target: Path) -> None:
    """Writes the manifest and the montage, then renames the unfinished folder to `target`."""
    records = (folder / _RECORDS).glob("case_*.json")
    rows = [row for record in records for row in read_json(record)["rows"]]
    rows.sort(key=lambda row: (SPLITS.index(row["split"]), int(row["case"]), row["slice"]))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(folder / MANIFEST, table.getvalue().encode())
    _montage(folder, rows).save(folder / MONTAGE)
    if target.is_dir():
        target.rmdir()  # fails unless the folder is empty
    folder.rename(target)
    shutil.rmtree(target / _RECORDS)


def read_manifest(target: Path) -> list[dict]:
    """The rows of the manifest, one for each slice."""
    with open(target / MANIFEST, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _montage(folder: Path, rows: list[dict]) -> Image.Image:
    """Two subjects of each split, one row each: eight slices from the lowest to the highest."""
    files_of = {split: {} for split in SPLITS}
    for row in rows:
        files_of[row["split"]].setdefault(row["case"], []).append(row["file"])
    lines = []
    for files in (
        f for split in SPLITS for f in list(files_of[split].values())[:_MONTAGE_SUBJECTS]
    ):
        indices = np.linspace(0, len(files) - 1, _MONTAGE_SLICES).round().astype(int)
        lines.append(np.hstack([_thumbnail(folder / files[index]) for index in indices]))
    return Image.fromarray(np.vstack(lines))


def _thumbnail(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.resize((_MONTAGE_SIDE, _MONTAGE_SIDE)))
