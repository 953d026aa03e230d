"""OASIS-1 in the forms it goes about in becomes the course's folder of slices.

A source is a folder or an archive that holds one of

- the course's own layout (`oasis_helpers.data`), which is checked and copied;
- official OASIS-1, disc folders or the disc archives as they are downloaded:
  `OAS1_NNNN_MRk/PROCESSED/MPRAGE/T88_111/*_t88_masked_gfc.{hdr,img}`;
- neurite-oasis: `OASIS_OAS1_NNNN_MRk/aligned_norm.nii.gz`;
- pictures in class folders whose names say the subject: `OAS1_NNNN_MRk_mpr-1_100.jpg`.

`oasis_helpers.slab` says where the 32 slices of a volume lie, and why there. Of an archive nothing
is unpacked onto the disk: members are read one by one, and only those that a slice is made of.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from oasis_helpers.convert import slab
from oasis_helpers.data import (
    LAYOUT_FOLDER,
    SLICES_PER_SUBJECT,
    SPLITS,
    UNREADABLE,
    SliceDataError,
    atomic_write,
    check_layout,
)

PLAN, MANIFEST, MONTAGE = "conversion.json", "manifest.csv", "montage.png"
MADE_BY = "oasis_helpers.convert"
VERSION = 1  # of what comes out: raise it whenever the same source gives other files
HELD_OUT = 0.1  # share of the subjects in each of validate and test
LOOKED_AT = 8  # subjects whose mean tells how pictures lie

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
LARGEST = 256 * 2**20  # bytes that a member of an archive may declare
LARGEST_IN_ALL = 64 * 2**30  # and all of them; a disc of OASIS-1 has about 5 GiB

_RECORDS = ".records"  # of subjects that are whole; goes when all are
_LAYOUT = re.compile(rf"(.*?)keras_png_slices_(?:{'|'.join(SPLITS)})/")
_T88 = re.compile(r"OAS1_(\d{4})_MR(\d+)_[^/]*_t88_masked_gfc\.(hdr|img)$")
_NEURITE = re.compile(r"OASIS_OAS1_(\d{4})_MR(\d+)/aligned_norm\.(nii\.gz)$")
_PICTURE = re.compile(r"OAS1_(\d{4})_MR(\d+)_(mpr-?\d+_\d+)\.(?:jpe?g|png)$", re.IGNORECASE)
_BROKEN = (*UNREADABLE, tarfile.TarError)


class Entry(NamedTuple):
    """One file of a source, be it in a folder or in an archive."""

    name: str
    size: int
    read: Callable[[], bytes]


class Slice(NamedTuple):
    """One slice on its way: the PNG and where it comes from."""

    index: int
    png: bytes
    source: str
    source_sha256: str
    level: str


@dataclass(frozen=True)
class Job:
    """One subject: `draw` gives its slices and a remark, which is mostly empty."""

    case: int
    session: str
    files: tuple[Entry, ...]
    draw: Callable[[], tuple[list[Slice], str]]
    split: str = ""


def convert(
    source: str | Path, target: str | Path, seed: int = 0, splits: str | Path | None = None
) -> Path:
    """Writes the slices of a source in the course's layout; interrupted, goes on where it was.

    Makes `<target>/keras_png_slices_data/...` as `load_slices` reads it, and beside it
    `manifest.csv` (a row for every file: SHA-256, subject, session, level, what it was made from),
    `conversion.json` (settings and remarks) and `montage.png` (to look at). Until all is there it
    stands in `<target>.unfinished`.

    A subject keeps its OASIS number: OAS1_0028 becomes case_028. Of a subject's sessions the first
    is used. Subjects are dealt to the splits at random, a tenth each to validate and test; the
    course's own layout keeps its splits.

    Args:
        source: folder, zip or tar archive; a folder may hold archives (OASIS's discs).
        target: folder to make; may exist if it is empty.
        seed: of the deal.
        splits: CSV with the columns `case` and `split` that deals instead of the seed, such as
            the manifest of another conversion.

    Returns:
        target, as a path.

    Raises:
        SliceDataError: with one sentence for every fault of the source. Of volumes, the good
            ones stay in `<target>.unfinished`, so that a repaired source costs little time.
        FileExistsError: the target holds anything but this very conversion.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}.")
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(source)):
        raise ValueError(f"{target} is inside of {source}; give a target outside of the source.")
    with contextlib.ExitStack() as opened:
        entries = _entries(source, opened)
        kind = _kind(source, entries)
        jobs, remarks, faults = _KINDS[kind](source, entries)
        if faults:  # nothing is written, but one message is to tell all
            raise SliceDataError(faults + _faults_of(jobs))
        if kind != "layout":
            jobs = _dealt(jobs, seed, splits)
        elif splits is not None:
            raise ValueError(f"{source} has splits of its own; leave {splits} out.")
        plan = _plan(source, kind, jobs, remarks)
        if _is_done(target, plan):
            return target
        unfinished = _claimed(target, plan)
        for split in SPLITS:
            (unfinished / LAYOUT_FOLDER / f"keras_png_slices_{split}").mkdir(
                parents=True, exist_ok=True
            )
        (unfinished / _RECORDS).mkdir(exist_ok=True)
        for job in tqdm(jobs, f"converting {source.name}", unit="subject"):
            if _is_drawn(unfinished, job):
                continue
            try:
                slices, remark = job.draw()
            except SliceDataError as error:
                faults += error.faults
            else:
                _write(unfinished, job, slices, remark)
    if faults:
        raise SliceDataError(faults)
    _finish(unfinished, target, jobs)
    return target


def _faults_of(jobs: list[Job]) -> list[str]:
    """A sentence for each subject that can't be drawn; nothing is written."""
    faults = []
    for job in tqdm(jobs, "checking the rest", unit="subject"):
        try:
            job.draw()
        except SliceDataError as error:
            faults += error.faults
    return faults


def describe(target: Path) -> str:
    """What a conversion has written, for a person to read."""
    plan = json.loads((target / PLAN).read_text(encoding="utf-8"))
    rows = _rows(target)
    of_subjects = {row["case"]: row["remark"] for row in rows}
    turned = sum(remark.startswith("turned") for remark in of_subjects.values())
    subjects = " / ".join(str(len(plan["subjects"][split])) for split in SPLITS)
    lines = [
        f"{target}: {len(rows)} slices of {subjects} subjects ({' / '.join(SPLITS)}).",
        *plan["remarks"],
        *([f"{turned} volumes turned into atlas position; see {MANIFEST}."] if turned else []),
        f"Look at {target / MONTAGE}; {MANIFEST} says where each slice comes from.",
        f"To use it: OASIS_DATA_DIR={target} make run",
    ]
    return "\n".join(lines)


# ----------------------------------------------------------------------------- what a source holds


def _entries(source: Path, opened: contextlib.ExitStack) -> list[Entry]:
    """Every file of a source, in the order in which reading is cheap."""
    if source.is_file():
        return _archived(source, "", opened)
    if not source.is_dir():
        raise SliceDataError(
            [f"{source}: not there; give a folder of OASIS slices or volumes, or their archive."]
        )
    found, faults = [], []

    def complain(error: OSError) -> None:
        faults.append(f"{error.filename}: can't be listed ({error.strerror}); allow it to be read.")

    for folder, inner, files in os.walk(source, onerror=complain):  # follows no links to folders
        inner.sort()
        for name in sorted(files):
            path = Path(folder, name)
            inside = path.relative_to(source).as_posix()
            if name.endswith(ARCHIVES):
                try:
                    found += _archived(path, f"{inside}/", opened)
                except SliceDataError as error:
                    faults += error.faults
            elif path.is_file():
                found.append(Entry(inside, path.stat().st_size, path.read_bytes))
    if faults:
        raise SliceDataError(faults)
    return found


def _archived(path: Path, prefix: str, opened: contextlib.ExitStack) -> list[Entry]:
    """The files of an archive, which is refused if it isn't safe to read."""
    try:
        if zipfile.is_zipfile(path):
            archive = opened.enter_context(zipfile.ZipFile(path))
            members = archive.infolist()
            names = [member.filename for member in members]
            sizes = [member.file_size for member in members]
            links = [stat.S_ISLNK(member.external_attr >> 16) for member in members]
            plain = [not member.is_dir() for member in members]
            reader = archive.read
        else:
            archive = opened.enter_context(tarfile.open(path))
            bar = tqdm(archive, f"listing {path.name}", unit="file", leave=False, delay=1)
            members = list(bar)
            names = [member.name for member in members]
            sizes = [member.size for member in members]
            links = [member.issym() or member.islnk() for member in members]
            plain = [member.isfile() for member in members]

            def reader(member: tarfile.TarInfo) -> bytes:
                return archive.extractfile(member).read()

    except _BROKEN as error:
        raise SliceDataError(
            [
                f"{path}: not a readable archive ({error}); expected a folder, or an archive that "
                f"ends in {', '.join(ARCHIVES)}; download it again."
            ]
        ) from error
    faults = [
        f"{path}: {reason}; nothing was unpacked: get the archive from its publisher."
        for name, size, link in zip(names, sizes, links)
        if (reason := _danger(name, size, link))
    ]
    if sum(sizes) > LARGEST_IN_ALL:
        faults.append(
            f"{path}: declares {sum(sizes) / 2**30:.0f} GiB of files, more than "
            f"{LARGEST_IN_ALL / 2**30:.0f} GiB; nothing was unpacked."
        )
    if faults:
        raise SliceDataError(faults)
    return [
        Entry(prefix + name.removeprefix("./"), size, functools.partial(reader, member))
        for name, size, member, is_plain in zip(names, sizes, members, plain)
        if is_plain and not name.startswith("__MACOSX/")
    ]


def _danger(name: str, size: int, link: bool) -> str | None:
    """Why a member makes its archive unsafe to read, if it does."""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts:
        return f"member {name!r} climbs out of the archive's folder"
    if parts[0] == "" or parts[0].endswith(":"):
        return f"member {name!r} has an absolute path"
    if link:
        return f"member {name!r} is a link"
    if size > LARGEST:
        return f"member {name!r} declares {size / 2**20:.0f} MiB, more than {LARGEST / 2**20:.0f}"
    return None


def _kind(source: Path, entries: list[Entry]) -> str:
    """Which of `_KINDS` the source is, or the reason why it is none."""
    names = [entry.name for entry in entries]
    found = {
        kind for kind, pattern in _PATTERNS.items() if any(pattern.search(name) for name in names)
    }
    if len(found) == 1:
        return found.pop()
    if found:
        raise SliceDataError(
            [f"{source}: holds {' and '.join(sorted(found))} at once; give one of them alone."]
        )
    endings = Counter(Path(name).suffix.lower() for name in names)
    first = {Path(name).suffix.lower(): name for name in reversed(names)}
    if any(name.endswith(("/norm.nii.gz", "/slice_norm.nii.gz")) for name in names):
        reason = (
            "neurite-oasis without aligned_norm.nii.gz; norm.nii.gz is not in atlas space and "
            "slice_norm.nii.gz is one coronal slice: get the 3-D archive, and unpack all of it"
        )
    elif any("_t88_gfc." in name for name in names):
        reason = "T88_111 volumes with the skull; the *_t88_masked_gfc.hdr and .img are needed"
    elif endings[".parquet"]:
        reason = (
            f"tables of slices ({first['.parquet']}) that don't say whose they are, so no split "
            "by subject can be made; use official OASIS-1 or neurite-oasis"
        )
    elif pictures := endings[".jpg"] + endings[".jpeg"] + endings[".png"]:
        example = first.get(".jpg") or first.get(".jpeg") or first[".png"]
        reason = (
            f"{pictures} pictures whose names (such as {example}) don't say whose they are, so no "
            "split by subject can be made, and a split by slice shares subjects between training "
            "and test; use official OASIS-1 or neurite-oasis"
        )
    else:
        reason = (
            f"{len(names)} files, none of them known; expected {LAYOUT_FOLDER}/, "
            "*_t88_masked_gfc.hdr and .img, OASIS_OAS1_*/aligned_norm.nii.gz or "
            "OAS1_*_mpr-*_*.jpg"
        )
    raise SliceDataError([f"{source}: {reason}."])


def _layout_jobs(source: Path, entries: list[Entry]) -> tuple[list[Job], list[str], list[str]]:
    """The course's layout: files are checked, then copied.

    Returns, as the functions for the other kinds: jobs, remarks, and faults of what gives no job.
    """
    prefixes = {match[1] for entry in entries if (match := _LAYOUT.match(entry.name))}
    if len(prefixes) > 1:
        raise SliceDataError(
            [f"{source}: holds {len(prefixes)} sets of slices, {sorted(prefixes)}; give one."]
        )
    inside = prefixes.pop()
    folder = zipfile.Path(source, inside) if zipfile.is_zipfile(source) else source / inside
    if not folder.exists():
        raise SliceDataError([f"{source}: give the folder of the slices itself, or its zip."])
    layout = check_layout(folder)
    remark = _layout_remark(layout, folder)
    known = {entry.name: entry for entry in entries}
    of_subjects = defaultdict(dict)
    for split, files in layout.items():
        for (subject, index), path in files.items():
            name = f"{inside}keras_png_slices_{split}/{path.name}"
            of_subjects[split, subject][index] = known[name]
    jobs = [
        Job(subject, "", tuple(files.values()), functools.partial(_copied, files), split)
        for (split, subject), files in of_subjects.items()
    ]
    return jobs, [remark], []


def _copied(files: dict[int, Entry]) -> tuple[list[Slice], str]:
    slices = []
    for index, entry in files.items():
        png = _content(entry)
        slices.append(Slice(index, png, entry.name, _digest(png), f"slice {index}"))
    return slices, ""


def _layout_remark(layout: dict[str, dict], folder: Path) -> str:
    """How the slices lie, as far as that can be told; another way up is refused."""
    by_subject = defaultdict(dict)
    for (subject, index), path in layout["train"].items():
        by_subject[subject][index] = path
    whole = [paths for paths in by_subject.values() if len(paths) == SLICES_PER_SUBJECT][:LOOKED_AT]
    if not whole:
        return "Orientation not checked: no training subject has all 32 slices."
    levels = range(SLICES_PER_SUBJECT)
    stacks = [[_pixels(paths[level].read_bytes()) for level in levels] for paths in whole]
    lie = slab.lie_of(np.mean(stacks, axis=0))
    if lie is None:
        return "Orientation not checked: the slices don't resemble the MNI152 template enough."
    if lie != (0, 1):
        raise SliceDataError(
            [
                f"{folder}: the slices don't lie as the course's do, the back of the head at the "
                f"top and slice 0 lowest; turn them by {_words(*lie)}."
            ]
        )
    return "Orientation checked against the MNI152 template: back of the head at the top."


def _t88_jobs(source: Path, entries: list[Entry]) -> tuple[list[Job], list[str], list[str]]:
    sessions, remarks, faults = _first_sessions(entries, _T88)
    jobs = []
    for (subject, session), files in sessions.items():
        if missing := {"hdr", "img"} - set(files):
            (there,) = files.values()
            faults.append(f"{there.name}: its .{missing.pop()} is missing; both are needed.")
        else:
            draw = functools.partial(_cut, slab.cut_t88, files["hdr"], files["img"])
            jobs.append(Job(subject, f"MR{session}", tuple(files.values()), draw))
    return jobs, remarks, faults


def _neurite_jobs(source: Path, entries: list[Entry]) -> tuple[list[Job], list[str], list[str]]:
    sessions, remarks, faults = _first_sessions(entries, _NEURITE)
    jobs = [
        Job(subject, f"MR{session}", (entry,), functools.partial(_cut, slab.cut_neurite, entry))
        for (subject, session), files in sessions.items()
        for entry in files.values()
    ]
    return jobs, remarks, faults


def _picture_jobs(source: Path, entries: list[Entry]) -> tuple[list[Job], list[str], list[str]]:
    """Numbered pictures: the middle 32 of the numbers that most subjects have."""
    sessions, remarks, faults = _first_sessions(entries, _PICTURE)
    of_sessions = {key: _first_scan(files) for key, files in sessions.items()}
    counts = Counter(number for numbers in of_sessions.values() for number in numbers)
    usual = sorted(number for number, n in counts.items() if 2 * n >= len(of_sessions))
    if len(usual) < SLICES_PER_SUBJECT:
        raise SliceDataError(
            [f"{source}: {len(usual)} numbers that most subjects have; expected 32 or more."]
        )
    chosen = usual[(len(usual) - SLICES_PER_SUBJECT) // 2 :][:SLICES_PER_SUBJECT]
    stacks = {}
    for (subject, session), numbers in of_sessions.items():
        if missing := [number for number in chosen if number not in numbers]:
            faults.append(
                f"{source}: OAS1_{subject:04d}_MR{session} has no picture number {missing[0]} "
                f"({len(missing)} of 32 are missing); add them, or take the subject out."
            )
        else:
            stacks[subject, session] = {number: numbers[number] for number in chosen}
    lie, remark = _picture_lie(list(stacks.values())[:LOOKED_AT])
    jobs = [
        Job(subject, f"MR{session}", tuple(files.values()), functools.partial(_framed, files, lie))
        for (subject, session), files in stacks.items()
    ]
    remarks.append(
        f"Pictures {chosen[0]} to {chosen[-1]}, the middle 32 numbers, in the scanner's frame: "
        "not the course's slab, so train weights of your own."
    )
    return jobs, [*remarks, remark], faults


def _first_scan(files: dict[str, Entry]) -> dict[int, Entry]:
    """{number: picture} of the first of a session's scans (mpr-1, mpr-2, ...)."""
    scans = defaultdict(dict)
    for role, entry in files.items():
        scan, number = role.lower().split("_")
        scans[scan][int(number)] = entry
    return scans[min(scans)]


def _first_sessions(
    entries: list[Entry], pattern: re.Pattern
) -> tuple[dict[tuple[int, int], dict[str, Entry]], list[str], list[str]]:
    """{(subject, session): {role: entry}} of first sessions; a remark on others; faults.

    In the source's order. A second session is the same person again: it would neither be an unseen
    subject nor fit into the layout, which has one set of 32 slices a subject.
    """
    sessions, faults = defaultdict(dict), []
    for entry in entries:
        if not (match := pattern.search(entry.name)):
            continue
        subject, session, role = int(match[1]), int(match[2]), match[3]
        files = sessions[subject, session]
        if role in files:
            faults.append(f"{entry.name}: the same as {files[role].name}; keep one.")
        files.setdefault(role, entry)
    first = {}
    for subject, session in sessions:
        first[subject] = min(session, first.get(subject, session))
    kept = {key: files for key, files in sessions.items() if first[key[0]] == key[1]}
    repeats = len(sessions) - len(kept)
    return kept, [f"{repeats} repeat sessions left out."] if repeats else [], faults


# The order of the keys is the order in which `_kind` names them.
_PATTERNS = {"layout": _LAYOUT, "T88_111": _T88, "neurite-oasis": _NEURITE, "pictures": _PICTURE}
_KINDS = {
    "layout": _layout_jobs,
    "T88_111": _t88_jobs,
    "neurite-oasis": _neurite_jobs,
    "pictures": _picture_jobs,
}


# ------------------------------------------------------------------------- from a source to slices


def _cut(cutter: Callable, *files: Entry) -> tuple[list[Slice], str]:
    """A volume's slices; the last of its files stands for it in the manifest."""
    contents = [_content(entry) for entry in files]
    source, digest = files[-1].name, _digest(contents[-1])
    try:
        levels, remark = cutter(*contents)
    except slab.UnusableVolume as error:
        raise SliceDataError([f"{source}: {error}."]) from error
    slices = [
        Slice(level, _png(pixels), source, digest, f"z {slab.LEVELS[level]} mm")
        for level, pixels in enumerate(levels)
    ]
    return slices, remark


def _framed(files: dict[int, Entry], lie: tuple[int, int]) -> tuple[list[Slice], str]:
    """Pictures as they are, grey, turned the course's way up, in the frame's middle."""
    turns, order = lie
    slices, faults = [], []
    for level, (number, entry) in enumerate(sorted(files.items(), reverse=order < 0)):
        try:
            content = entry.read()
            pixels = np.rot90(_pixels(content), turns)
        except _BROKEN as error:
            reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
            faults.append(f"{entry.name}: not a readable image ({reason}); download it again.")
            continue
        png = _png(np.ascontiguousarray(pixels))
        slices.append(Slice(level, png, entry.name, _digest(content), f"number {number}"))
    if faults:
        raise SliceDataError(faults)
    return slices, ""


def _picture_lie(stacks: Iterable[dict[int, Entry]]) -> tuple[tuple[int, int], str]:
    """(quarter turns, order of levels) that bring pictures into the course's position."""
    pictures = []
    for stack in stacks:
        with contextlib.suppress(*_BROKEN):  # said when its turn comes
            pictures.append(np.stack([_pixels(stack[number].read()) for number in sorted(stack)]))
    alike = [levels for levels in pictures if levels.shape == pictures[0].shape]
    lie = slab.lie_of(np.mean(alike, axis=0)) if alike else None
    if lie is None:
        return (0, 1), (
            "Orientation not known: the pictures don't resemble the MNI152 template enough; they "
            f"lie as in their files, so look at {MONTAGE}."
        )
    if lie == (0, 1):
        return lie, "Orientation checked against the MNI152 template."
    return lie, f"Pictures turned by {_words(*lie)}."


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("L"))


def _words(turns: int, order: int) -> str:
    return f"{90 * turns} degrees{', from the top down' if order < 0 else ''}"


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(slab.in_frame(pixels)).save(file, "PNG")
    return file.getvalue()


# ------------------------------------------------------------------- the deal, and what is written


def _dealt(jobs: list[Job], seed: int, splits: str | Path | None) -> list[Job]:
    """The jobs with their splits."""
    cases = sorted(job.case for job in jobs)
    if splits is not None:
        deal = _read_splits(Path(splits))
        missing = [case for case in cases if case not in deal]
        if missing:
            raise SliceDataError(
                [f"{splits}: says no split for subject {case:03d}; add it." for case in missing]
            )
    else:
        held = max(1, round(HELD_OUT * len(cases)))
        if len(cases) < 3:
            raise SliceDataError(
                [f"{len(cases)} subjects; expected 3 or more, for three splits by subject."]
            )
        mixed = np.random.default_rng(seed).permutation(cases).tolist()
        deal = dict.fromkeys(mixed, "train")
        deal |= dict.fromkeys(mixed[:held], "test")
        deal |= dict.fromkeys(mixed[held : 2 * held], "validate")
    jobs = [replace(job, split=deal[job.case]) for job in jobs]
    if unused := set(SPLITS) - {job.split for job in jobs}:
        raise SliceDataError([f"{splits}: leaves the split {min(unused)} empty; expected three."])
    return jobs


def _read_splits(path: Path) -> dict[int, str]:
    """{case: split} of a CSV with the columns `case` and `split`."""
    deal, faults = {}, []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise SliceDataError([f"{path}: not a readable table ({error})."]) from error
    for number, row in enumerate(rows, start=2):
        case, split = row.get("case") or "", row.get("split")
        if not case.isdigit() or split not in SPLITS:
            faults.append(
                f"{path}: line {number} has case {case!r} and split {split!r}; expected a number "
                f"and one of {', '.join(SPLITS)}."
            )
        elif deal.setdefault(int(case), split) != split:
            faults.append(f"{path}: line {number} puts subject {case} into a second split.")
    if faults:
        raise SliceDataError(faults)
    return deal


def _plan(source: Path, kind: str, jobs: list[Job], remarks: list[str]) -> dict:
    """What `conversion.json` says; two conversions with one plan write the same files."""
    names = sorted(entry.name for job in jobs for entry in job.files)
    return {
        "made_by": MADE_BY,
        "version": VERSION,
        "source": source.resolve().name,
        "kind": kind,
        "files": len(names),
        "file_names_sha256": _digest("\n".join(names).encode()),
        "subjects": {
            split: sorted(job.case for job in jobs if job.split == split) for split in SPLITS
        },
        "remarks": remarks,
    }


def _is_done(target: Path, plan: dict) -> bool:
    """True if target holds this very conversion, False if there is nothing."""
    if not _holds_something(target):
        return False
    _check_plan(target, plan)
    lost = [row["file"] for row in _rows(target) if not (target / row["file"]).is_file()]
    if lost:
        raise FileExistsError(
            f"{target} lacks {len(lost)} files of its {MANIFEST} ({lost[0]}, ...); nothing was "
            "changed: move it away and convert again."
        )
    shutil.rmtree(target / _RECORDS, ignore_errors=True)  # left where a kill came at the very end
    return True


def _claimed(target: Path, plan: dict) -> Path:
    """The folder to work in: new, or one that this very conversion left unfinished."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    if _holds_something(unfinished):
        _check_plan(unfinished, plan)
        return unfinished
    unfinished.mkdir(parents=True, exist_ok=True)
    _write_whole(unfinished / PLAN, f"{json.dumps(plan, indent=1)}\n")
    return unfinished


def _holds_something(path: Path) -> bool:
    """Whether there is more than a folder that is empty but for half-written files."""
    return path.is_file() or (
        path.is_dir() and not all(inner.name.startswith(".") for inner in path.iterdir())
    )


def _check_plan(folder: Path, plan: dict) -> None:
    advice = "nothing was changed: give another target, or move that one away."
    try:
        found = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        known = found["made_by"] == MADE_BY
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise FileExistsError(
            f"{folder} holds something that no conversion made (no valid {PLAN}); {advice}"
        )
    differ = [name for name in plan if found.get(name) != plan[name]]
    if differ:
        raise FileExistsError(
            f"{folder} holds another conversion (its {', '.join(differ)} differ); {advice}"
        )


def _record(folder: Path, case: int) -> Path:
    return folder / _RECORDS / f"case_{case:03d}.json"


def _is_drawn(folder: Path, job: Job) -> bool:
    """Whether a subject is there whole, of the same files as now."""
    try:
        kept = json.loads(_record(folder, job.case).read_text(encoding="utf-8"))
        pictures = {row["file"]: row["sha256"] for row in kept["rows"]}
        return kept["sizes"] == {entry.name: entry.size for entry in job.files} and all(
            _digest((folder / file).read_bytes()) == digest for file, digest in pictures.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(folder: Path, job: Job, slices: list[Slice], remark: str) -> None:
    """A subject's pictures and, last, the record that says they are whole."""
    rows = []
    for drawn in sorted(slices):
        name = f"case_{job.case:03d}_slice_{drawn.index}.nii.png"
        file = f"{LAYOUT_FOLDER}/keras_png_slices_{job.split}/{name}"
        (folder / file).write_bytes(drawn.png)
        rows.append(
            {
                "file": file,
                "sha256": _digest(drawn.png),
                "case": f"{job.case:03d}",
                "split": job.split,
                "slice": drawn.index,
                "level": drawn.level,
                "session": job.session,
                "source": drawn.source,
                "source_sha256": drawn.source_sha256,
                "remark": remark,
            }
        )
    sizes = {entry.name: entry.size for entry in job.files}
    _write_whole(_record(folder, job.case), json.dumps({"sizes": sizes, "rows": rows}))


def _finish(unfinished: Path, target: Path, jobs: list[Job]) -> None:
    """The manifest and the montage; then the folder takes its name."""
    rows = []
    for job in sorted(jobs, key=lambda job: (SPLITS.index(job.split), job.case)):
        rows += json.loads(_record(unfinished, job.case).read_text(encoding="utf-8"))["rows"]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write_whole(unfinished / MANIFEST, table.getvalue())
    _montage(unfinished, rows).save(unfinished / MONTAGE)
    if target.is_dir():
        target.rmdir()  # refuses unless it is empty
    unfinished.rename(target)
    shutil.rmtree(target / _RECORDS)


def _montage(folder: Path, rows: Iterable[dict]) -> Image.Image:
    """Two subjects of each split, a row each, eight levels from low to high."""
    of_subjects = defaultdict(list)
    for row in rows:
        of_subjects[row["split"], row["case"]].append(folder / row["file"])
    chosen = [key for split in SPLITS for key in [k for k in of_subjects if k[0] == split][:2]]
    side = slab.FRAME // 2
    montage = Image.new("L", (8 * side, len(chosen) * side))
    for line, key in enumerate(chosen):
        files = of_subjects[key]
        for column, place in enumerate(np.linspace(0, len(files) - 1, 8).round().astype(int)):
            with Image.open(files[place]) as picture:
                montage.paste(picture.resize((side, side)), (column * side, line * side))
    return montage


def _rows(target: Path) -> list[dict]:
    """The manifest, a dictionary for each slice."""
    with open(target / MANIFEST, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _content(entry: Entry) -> bytes:
    if entry.size == 0:
        raise SliceDataError([f"{entry.name}: the file is empty; download it again."])
    try:
        return entry.read()
    except _BROKEN as error:
        raise SliceDataError(
            [f"{entry.name}: can't be read ({error}); download it again."]
        ) from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_whole(path: Path, text: str) -> None:
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")
