"""The four kinds of source, and the subjects that each one holds."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from oasis_helpers.convert import volumes
from oasis_helpers.convert.archives import UNREADABLE, SourceFile, sha256
from oasis_helpers.convert.layout import check_layout
from oasis_helpers.convert.subjects import Slice, Subject
from oasis_helpers.convert.synthetic import FRAME
from oasis_helpers.data import LAYOUT_FOLDER, SLICES_PER_SUBJECT, SPLITS, SliceDataError

ORIENTATION_SUBJECTS = 8  # the mean of their slices decides the orientation of a source
UPRIGHT = (0, 1)  # no turns, slices in order: the back of the head is at the top, slice 0 lowest

# The kinds of source, and the names of their files: subject, session and part of a subject.
PATTERNS = {
    "layout": rf"(.*?)keras_png_slices_(?:{'|'.join(SPLITS)})/",
    "T88_111": r"OAS1_(\d{4})_MR(\d+)_[^/]*_t88_masked_gfc\.(hdr|img)$",
    "neurite-oasis": r"OASIS_OAS1_(\d{4})_MR(\d+)/aligned_norm\.(nii\.gz)$",
    "pictures": r"(?i)OAS1_(\d{4})_MR(\d+)_(mpr-?\d+_\d+)\.(?:jpe?g|png)$",
}

# What else is in circulation, and the reason why it cannot be converted.
UNUSABLE = {
    r"/(slice_)?norm\.nii\.gz$": "neurite-oasis without aligned_norm.nii.gz; norm.nii.gz is not in "
    "atlas space and slice_norm.nii.gz is one coronal slice: get the 3-D archive, unpack all of it",
    r"_t88_gfc\.": "T88_111 volumes with the skull; give the *_t88_masked_gfc.hdr and .img files",
    r"(?i)\.(parquet|jpe?g|png)$": "slices without subject identifiers (such as {example}), so no "
    "split by subject is possible, and a split by slice shares subjects between training and test; "
    "use official OASIS-1 or neurite-oasis",
}

Subjects = tuple[list[Subject], list[str], list[str]]  # and remarks, and faults of the others
Stack = dict[int, SourceFile]  # {slice index, or number of the picture: picture}


def find_subjects(source: Path, files: list[SourceFile]) -> tuple[str, Subjects]:
    """The kind of a source (a key of `PATTERNS`), and its subjects.

    Raises:
        SliceDataError: the source is of no known kind, of several, or unusable as a whole.
    """
    names = [file.name for file in files]
    kinds = [kind for kind in PATTERNS if any(re.search(PATTERNS[kind], name) for name in names)]
    if len(kinds) == 1:
        return kinds[0], FIND[kinds[0]](source, files, PATTERNS[kinds[0]])
    reason = f"holds {' and '.join(kinds)} at once; give one of them" if kinds else _unusable(names)
    raise SliceDataError([f"{source}: {reason}."])


def _unusable(names: list[str]) -> str:
    for pattern, reason in UNUSABLE.items():
        if matches := [name for name in names if re.search(pattern, name)]:
            return reason.format(example=matches[0])
    return (
        f"{len(names)} files, none of them known; expected {LAYOUT_FOLDER}/, "
        "*_t88_masked_gfc.hdr and .img, OASIS_OAS1_*/aligned_norm.nii.gz or OAS1_*_mpr-*_*.jpg"
    )


def _layout_subjects(source: Path, files: list[SourceFile], pattern: str) -> Subjects:
    """The course's own layout: every file is checked here, and copied later."""
    prefixes = {match[1] for file in files if (match := re.match(pattern, file.name))}
    if len(prefixes) > 1:
        raise SliceDataError(
            [f"{source}: holds {len(prefixes)} sets of slices, {sorted(prefixes)}; give one."]
        )
    prefix = prefixes.pop()
    folder = zipfile.Path(source, prefix) if zipfile.is_zipfile(source) else source / prefix
    if not folder.exists():
        raise SliceDataError([f"{source}: give the folder of the slices itself, or its zip."])
    file_named = {file.name: file for file in files}
    stacks = defaultdict(dict)
    for split, paths in check_layout(folder).items():
        for (case, index), path in paths.items():
            name = f"{prefix}keras_png_slices_{split}/{path.name}"
            stacks[split, case][index] = file_named[name]
    training = [stack for (split, _), stack in stacks.items() if split == "train"]
    orientation, remark = _find_orientation(training)
    if orientation != UPRIGHT:
        raise SliceDataError(
            [
                f"{folder}: other orientation than the course's, which has the back of the head at "
                f"the top and slice 0 lowest; turn the slices by {_angle(orientation)}."
            ]
        )
    subjects = [
        Subject(case, "", tuple(stack.values()), functools.partial(_copy_slices, stack), split)
        for (split, case), stack in stacks.items()
    ]
    return subjects, [remark], []


def _copy_slices(stack: Stack) -> list[Slice]:
    slices = []
    for index, file in stack.items():
        png = file.content()
        slices.append(Slice(index, png, f"slice {index}", file.name, sha256(png)))
    return slices


def _volume_subjects(
    stack_from: Callable, parts: tuple, source: Path, files: list[SourceFile], pattern: str
) -> Subjects:
    """Volumes; `stack_from` makes an axial stack of the contents of a volume's `parts`."""
    sessions, remarks, faults = _first_sessions(files, pattern)
    subjects = []
    for (case, session), file_of in sessions.items():
        if missing := [part for part in parts if part not in file_of]:
            (present,) = file_of.values()
            faults.append(f"{present.name}: its .{missing[0]} is missing; both are needed.")
        else:
            volume = [file_of[part] for part in parts]
            make_slices = functools.partial(_slices_of_volume, stack_from, volume)
            subjects.append(Subject(case, f"MR{session}", tuple(volume), make_slices))
    return subjects, remarks, faults


def _slices_of_volume(stack_from: Callable, files: list[SourceFile]) -> list[Slice]:
    """The slices of a volume; the manifest names the last of its files."""
    contents = [file.content() for file in files]
    source, digest = files[-1].name, sha256(contents[-1])
    try:
        stack, remark = stack_from(*contents)
    except volumes.UnusableVolume as error:
        raise SliceDataError([f"{source}: {error}."]) from error
    return [
        Slice(index, _png_in_frame(pixels), f"z {height} mm", source, digest, remark)
        for index, (pixels, height) in enumerate(zip(stack, volumes.HEIGHTS))
    ]


def _picture_subjects(source: Path, files: list[SourceFile], pattern: str) -> Subjects:
    """Numbered pictures: the middle 32 of the numbers that most subjects have."""
    sessions, remarks, faults = _first_sessions(files, pattern)
    scans = {key: _first_scan(pictures) for key, pictures in sessions.items()}
    counts = Counter(number for pictures in scans.values() for number in pictures)
    common = sorted(number for number, count in counts.items() if 2 * count >= len(scans))
    if len(common) < SLICES_PER_SUBJECT:
        raise SliceDataError(
            [f"{source}: {len(common)} numbers that most subjects have; expected 32 or more."]
        )
    chosen = common[(len(common) - SLICES_PER_SUBJECT) // 2 :][:SLICES_PER_SUBJECT]
    stacks = {}
    for (case, session), pictures in scans.items():
        if missing := [number for number in chosen if number not in pictures]:
            faults.append(
                f"{source}: OAS1_{case:04d}_MR{session} has no picture number {missing[0]} "
                f"({len(missing)} of 32 are missing); add them, or remove the subject."
            )
        else:
            stacks[case, session] = {number: pictures[number] for number in chosen}
    orientation, remark = _find_orientation(stacks.values())
    if orientation != UPRIGHT:
        remark = f"{remark} Turned by {_angle(orientation)}."
    subjects = []
    for (case, session), stack in stacks.items():
        make_slices = functools.partial(_slices_of_pictures, stack, orientation)
        subjects.append(Subject(case, f"MR{session}", tuple(stack.values()), make_slices))
    remarks.append(
        f"Pictures {chosen[0]} to {chosen[-1]}, the middle 32 numbers, in the scanner's frame: "
        "not the course's axial stack, so train weights of your own."
    )
    return subjects, [*remarks, remark], faults


def _first_scan(pictures: dict[str, SourceFile]) -> Stack:
    """The pictures of the first of a session's scans (mpr-1, mpr-2, ...)."""
    scans = defaultdict(dict)
    for part, file in pictures.items():
        scan, number = part.lower().split("_")
        scans[scan][int(number)] = file
    return scans[min(scans)]


def _slices_of_pictures(stack: Stack, orientation: tuple[int, int]) -> list[Slice]:
    """Pictures in grey, turned into the course's orientation, in the middle of the frame."""
    turns, order = orientation
    slices, faults = [], []
    for index, (number, file) in enumerate(sorted(stack.items(), reverse=order < 0)):
        try:
            content = file.read()
            pixels = np.rot90(_pixels(content), turns)
        except UNREADABLE as error:
            reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
            faults.append(f"{file.name}: not a readable image ({reason}); download it again.")
        else:
            png = _png_in_frame(np.ascontiguousarray(pixels))
            slices.append(Slice(index, png, f"number {number}", file.name, sha256(content)))
    if faults:
        raise SliceDataError(faults)
    return slices


def _first_sessions(
    files: list[SourceFile], pattern: str
) -> tuple[dict[tuple[int, int], dict[str, SourceFile]], list[str], list[str]]:
    """The files of each subject's first session, in the source's order.

    A second session is no new subject, and the layout has one set of 32 slices for a subject.

    Returns:
        {(case, session): {part: file}}, remarks on other sessions, and faults.
    """
    sessions, faults = defaultdict(dict), []
    for file in files:
        if match := re.search(pattern, file.name):
            case, session, part = int(match[1]), int(match[2]), match[3]
            first = sessions[case, session].setdefault(part, file)
            if first is not file:
                faults.append(f"{file.name}: the same as {first.name}; remove one of them.")
    first_of = dict(sorted(sessions, reverse=True))  # of equal keys, the last one stays
    chosen = {key: parts for key, parts in sessions.items() if first_of[key[0]] == key[1]}
    repeated = len(sessions) - len(chosen)
    return chosen, [f"{repeated} repeated sessions left out."] if repeated else [], faults


def _find_orientation(stacks: Iterable[Stack]) -> tuple[tuple[int, int], str]:
    """The turns and the order that make stacks upright (see `orientation_of`), and a remark."""
    complete = [stack for stack in stacks if len(stack) == SLICES_PER_SUBJECT]
    arrays = []
    for stack in complete[:ORIENTATION_SUBJECTS]:
        with contextlib.suppress(*UNREADABLE):  # reported with the faults of its subject
            arrays.append(np.stack([_pixels(stack[index].read()) for index in sorted(stack)]))
    alike = [array for array in arrays if array.shape == arrays[0].shape]
    if alike and (orientation := volumes.orientation_of(np.mean(alike, axis=0))):
        return orientation, "Orientation checked against the MNI152 template."
    return UPRIGHT, (
        "Orientation not checked: no subject with 32 slices resembles the MNI152 template enough; "
        "look at the montage."
    )


def _angle(orientation: tuple[int, int]) -> str:
    turns, order = orientation
    return f"{90 * turns} degrees{', from the top down' if order < 0 else ''}"


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("L"))


def _png_in_frame(pixels: np.ndarray) -> bytes:
    """A PNG of 256 x 256 pixels with a picture in its middle; a larger picture is reduced."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((FRAME, FRAME), Image.Resampling.BICUBIC)
    frame = Image.new("L", (FRAME, FRAME))
    frame.paste(picture, ((FRAME - picture.width) // 2, (FRAME - picture.height) // 2))
    file = io.BytesIO()
    frame.save(file, "PNG")
    return file.getvalue()


FIND = {
    "layout": _layout_subjects,
    "T88_111": functools.partial(_volume_subjects, volumes.stack_from_t88, ("hdr", "img")),
    "neurite-oasis": functools.partial(_volume_subjects, volumes.stack_from_neurite, ("nii.gz",)),
    "pictures": _picture_subjects,
}
