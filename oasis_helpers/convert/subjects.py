"""The subjects of a source, and their assignment to the splits."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from oasis_helpers.convert.archives import SourceFile
from oasis_helpers.data import SLICES_PER_SUBJECT, SPLITS, SliceDataError

HELD_OUT = 0.1  # fraction of the subjects in each of validate and test


class Slice(NamedTuple):
    """One converted slice; all attributes but `png` are columns of the manifest."""

    slice: int
    png: bytes
    position: str  # in the source
    source: str
    source_sha256: str
    remark: str = ""


@dataclass(frozen=True)
class Subject:
    """One subject of a source; `make_slices` gets the contents of `files`.

    It raises `SliceDataError` for unusable files.
    """

    case: int
    session: str
    files: tuple[SourceFile, ...]
    make_slices: Callable[[list[bytes]], list[Slice]]
    split: str = ""
    indices: tuple[int, ...] = tuple(range(SLICES_PER_SUBJECT))  # of the slices


def assign_splits(subjects: list[Subject], seed: int, table: str | Path | None) -> list[Subject]:
    """The subjects with their splits: from a CSV file if there is one, else at random.

    Raises:
        SliceDataError: a split would be empty, or the CSV file has faults or lacks subjects.
    """
    cases = sorted(subject.case for subject in subjects)
    split_of = _random_splits(cases, seed) if table is None else read_splits(Path(table))
    missing = (f"{case:03d}" for case in cases if case not in split_of)
    if faults := [f"{table}: assigns no split to subject {case}; add it." for case in missing]:
        raise SliceDataError(faults)
    subjects = [replace(subject, split=split_of[subject.case]) for subject in subjects]
    if empty := set(SPLITS) - {subject.split for subject in subjects}:
        raise SliceDataError([f"{table}: the split {min(empty)} is empty; expected three splits."])
    return subjects


def _random_splits(cases: list[int], seed: int) -> dict[int, str]:
    if len(cases) < 3:
        raise SliceDataError([f"{len(cases)} subjects; expected 3 or more, for three splits."])
    held_out = max(1, round(HELD_OUT * len(cases)))
    shuffled = np.random.default_rng(seed).permutation(cases).tolist()
    split_of = dict.fromkeys(shuffled, "train")
    split_of |= dict.fromkeys(shuffled[:held_out], "test")
    return split_of | dict.fromkeys(shuffled[held_out : 2 * held_out], "validate")


def read_splits(path: Path) -> dict[int, str]:
    """{case: split} of a CSV file, as Excel writes it as well (BOM, semicolons or tabs).

    Raises `SliceDataError` with a sentence for every bad line.
    """
    try:
        if not path.is_file():  # reading a device may have no end
            raise OSError("no regular file is there")
        with open(path, newline="", encoding="utf-8-sig") as file:
            delimiter = max(",;\t", key=file.readline().count)
            file.seek(0)
            rows = list(csv.DictReader(file, delimiter=delimiter))
    except (OSError, ValueError, csv.Error) as error:
        raise SliceDataError([f"{path}: not a readable table ({error})."]) from error
    split_of, faults = {}, []
    for line, row in enumerate(rows, start=2):
        case, split = ((row.get(column) or "").strip() for column in ("case", "split"))
        if not any(row.values()):  # Excel keeps empty rows
            continue
        if not re.fullmatch("[0-9]{1,9}", case) or split not in SPLITS:
            faults.append(
                f"{path}: line {line} has case {case!r} and split {split!r}; expected a number "
                f"and one of {', '.join(SPLITS)}."
            )
        elif split_of.setdefault(int(case), split) != split:
            faults.append(f"{path}: line {line} assigns a second split to subject {case}.")
    if faults:
        raise SliceDataError(faults)
    return split_of
