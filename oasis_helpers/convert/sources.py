"""The four kinds of source, and the subjects that each one holds."""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from oasis_helpers import data
from oasis_helpers.convert import volumes
from oasis_helpers.convert.archives import UNREADABLE, SourceFile, sha256
from oasis_helpers.convert.layout import check_layout, path_class
from oasis_helpers.convert.subjects import Slice, Subject
from oasis_helpers.convert.synthetic import FRAME
from oasis_helpers.data import LAYOUT_FOLDER, SLICES_PER_SUBJECT, SPLITS, SliceDataError

ORIENTATION_SUBJECTS = 8  # the mean of their slices decides the orientation of a source
MAX_TINT = 8  # grey levels between the channels of a grey picture in colour, from JPEG's error
UPRIGHT = (0, 1)  # no turns, slices in order: the back of the head is at the top, slice 0 lowest

# The kinds of source, and the names of their files: subject, session and part of a subject.
PATTERNS = {
    "layout": rf"^((?:.*?/)?)keras_png_slices_(?:{'|'.join(SPLITS)})/",
    "T88_111": r"OAS1_([0-9]{4})_MR([0-9]{1,2})_[^/]*_t88_masked_gfc\.(hdr|img)$",
    "neurite-oasis": r"OASIS_OAS1_([0-9]{4})_MR([0-9]{1,2})/aligned_norm\.(nii\.gz)$",
    "pictures": r"(?i)OAS1_([0-9]{4})_MR([0-9]{1,2})_(mpr-?[0-9]_[0-9]{1,6})\.(?:jpe?g|png)$",
}

# What else is in circulation, and the reason why it cannot be converted.
UNUSABLE = {
    r"/(slice_)?norm\.nii\.gz$": "neurite-oasis without aligned_norm.nii.gz; norm.nii.gz is not in "
    "atlas space and slice_norm.nii.gz is one coronal slice: get the 3-D archive, unpack all of it",
    r"_t88_gfc\.": "T88_111 volumes with the skull; give the *_t88_masked_gfc.hdr and .img files",
    r"(^|/)case_\d+_slice_\d+\.nii\.png$": "slices (such as {example}) outside of the folders "
    f"keras_png_slices_{', _'.join(SPLITS)}; put them there",
    r"(?i)OAS1_[0-9]{4}_.*\.(jpe?g|png)$": "pictures with other names (such as {example}) than "
    "OAS1_NNNN_MRk_mpr-1_100.jpg, which has subject, session, scan and number; rename them",
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
        places = ", ".join(prefix or "." for prefix in sorted(prefixes))
        raise SliceDataError([f"{source}: holds the layout in several places, {places}; give one."])
    root = source.as_posix()
    file_at = {str(PurePosixPath(root, file.name)): file for file in files}
    folder = path_class(file_at)(root, prefixes.pop())
    stacks = defaultdict(dict)
    for split, paths in check_layout(folder).items():
        for (case, index), path in paths.items():
            stacks[split, case][index] = file_at[str(path)]
    training = [stack for (split, _), stack in stacks.items() if split == "train"]
    orientation, remark, _ = _find_orientation(training)
    if orientation != UPRIGHT:
        fault = f"{folder}: other orientation than the course's, which has the back of the head at"
        fault = f"{fault} the top and slice 0 lowest; turn the slices by {_angle(orientation)}."
        raise SliceDataError([fault])
    subjects = [
        Subject(case, "", tuple(stack.values()), partial(_copy_slices, stack), split, tuple(stack))
        for (split, case), stack in stacks.items()
    ]
    return subjects, [remark], []


def _copy_slices(stack: Stack, contents: list[bytes]) -> list[Slice]:
    _check_orientation(stack, _decode(stack, contents))
    return [
        Slice(index, png, f"slice {index}", file.name, sha256(png))
        for (index, file), png in zip(stack.items(), contents)
    ]


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
            make_slices = partial(_slices_of_volume, stack_from, volume)
            subjects.append(Subject(case, f"MR{session}", tuple(volume), make_slices))
    return subjects, remarks, faults


def _slices_of_volume(
    stack_from: Callable, files: list[SourceFile], contents: list[bytes]
) -> list[Slice]:
    """The slices of a volume; the manifest names the last of its files."""
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
        fault = f"{source}: {len(common)} numbers that most subjects have; expected 32 or more."
        raise SliceDataError([fault])
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
    orientation, remark, frame = _find_orientation(stacks.values())
    if orientation != UPRIGHT:
        remark = f"{remark} Turned by {_angle(orientation)}."
    subjects = []
    for (case, session), stack in stacks.items():
        make_slices = partial(_slices_of_pictures, stack, orientation, frame)
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


def _slices_of_pictures(
    stack: Stack, orientation: tuple[int, int], frame: tuple[int, int], contents: list[bytes]
) -> list[Slice]:
    """Pictures in grey, turned into the course's orientation, in the middle of the frame."""
    turns, order = orientation
    pictures = [np.rot90(pixels, turns).copy() for pixels in _decode(stack, contents, frame)]
    _check_orientation(stack, pictures[::order])
    slices = [
        Slice(-1, _png_in_frame(pixels), f"number {number}", file.name, sha256(content))
        for (number, file), content, pixels in zip(stack.items(), contents, pictures)
    ]
    return [slice_._replace(slice=index) for index, slice_ in enumerate(slices[::order])]


def _decode(
    stack: Stack, contents: list[bytes], frame: tuple[int, int] | None = None
) -> list[np.ndarray]:
    """The pixels of all pictures; raises `SliceDataError` with a sentence for each unusable one."""
    arrays, faults = [], []
    for file, content in zip(stack.values(), contents):
        try:
            arrays.append(_pixels(content, frame))
        except UNREADABLE as error:
            reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
            faults.append(f"{file.name}: not a usable picture ({reason}); replace it.")
    if faults:
        raise SliceDataError(faults)
    return arrays


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


def _find_orientation(stacks: Iterable[Stack]) -> tuple[tuple[int, int], str, tuple | None]:
    """What makes stacks upright (see `orientation_of`), a remark, and the first picture's shape."""
    complete = [stack for stack in stacks if len(stack) == SLICES_PER_SUBJECT]
    arrays = []
    for stack in complete[:ORIENTATION_SUBJECTS]:
        with contextlib.suppress(*UNREADABLE):  # reported with the faults of its subject
            arrays.append(np.stack([_pixels(file.read()) for file in stack.values()]))
    alike = [array for array in arrays if array.shape == arrays[0].shape]
    shape = alike[0].shape[1:] if alike else None
    if alike and (orientation := volumes.orientation_of(np.mean(alike, axis=0))):
        return orientation, "Orientation checked against the MNI152 template.", shape
    remark = "Orientation not checked: no subject with 32 slices resembles the MNI152 template "
    return UPRIGHT, f"{remark}enough; look at the montage.", shape


def _check_orientation(stack: Stack, pictures: list[np.ndarray]) -> None:
    """Raises `SliceDataError` where all slices of a subject are clearly not upright."""
    if len(pictures) == SLICES_PER_SUBJECT:
        orientation = volumes.orientation_of(np.stack(pictures)) or UPRIGHT
        if orientation != UPRIGHT:
            fault = f"{stack[min(stack)].name}: other orientation than in other subjects; turn the "
            raise SliceDataError([f"{fault}subject by {_angle(orientation)}."])


def _angle(orientation: tuple[int, int]) -> str:
    turns, order = orientation
    return f"{90 * turns} degrees{', from the top down' if order < 0 else ''}"


def _pixels(content: bytes, frame: tuple[int, int] | None = None) -> np.ndarray:
    """uint8 (height, width) of an opaque grey picture with 8 bits; raises ValueError for others."""
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
        shape = picture.height, picture.width
        if shape != (frame or shape) or max(shape) > data.MAX_SIDE:  # OASIS-1: up to 256
            size = f"{picture.width} x {picture.height}"
            raise ValueError(f"{size} pixels; expected one size, at most {data.MAX_SIDE} a side")
        depth = content[24] if picture.format == "PNG" else 8  # Pillow reduces 16 bits to 8
        if depth != 8 or picture.mode not in ("L", "LA", "P", "RGB", "RGBA"):
            raise ValueError(f"{depth} bits, mode {picture.mode}; expected 8-bit grey or colour")
        if picture.format == "PNG":
            data.verify_rows(content, picture.width * len(picture.getbands()), picture.height)
        *channels, alpha = picture.convert("RGBA").split()
        if np.ptp(channels, axis=0).max() > MAX_TINT or np.min(alpha) < 255:
            raise ValueError("coloured or transparent; expected grey and opaque pixels")
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
    "T88_111": partial(_volume_subjects, volumes.stack_from_t88, ("hdr", "img")),
    "neurite-oasis": partial(_volume_subjects, volumes.stack_from_neurite, ("nii.gz",)),
    "pictures": _picture_subjects,
}
