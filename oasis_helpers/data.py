"""A folder of brain slices becomes a checked `SliceSet`.

The folder has the layout of the course's data set::

    <root>/keras_png_slices_data/keras_png_slices_train/case_001_slice_0.nii.png
                                 keras_png_slices_validate/...
                                 keras_png_slices_test/...

Pictures are square 8-bit grey PNGs (256 x 256 in the course's copy), the subject and the slice
index (0 = midbrain ... 31 = top of the ventricles) come from the name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import threading
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

SPLITS = ("train", "validate", "test")
SLICES_PER_SUBJECT = 32
LAYOUT_FOLDER = "keras_png_slices_data"
BRAIN_THRESHOLD = 10 / 255  # grey level above which a pixel counts as brain
CROP_MARGIN = 4  # source pixels of black left around the brains' bounding box
REPOSITORY = Path(__file__).resolve().parents[1]
UNREADABLE = (  # what reading an image raises, from a folder or from a zip archive
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,  # encrypted, or compressed in a way that this Python lacks
    zipfile.BadZipFile,
    zlib.error,
    Image.DecompressionBombError,
)

_NAME = re.compile(r"case_([0-9]{1,9})_slice_([0-9]{1,9})\.nii\.png")
_FAULTS_SHOWN = 20

Box = tuple[int, int, int]  # top, left, side of a square, in source pixels


class SliceDataError(ValueError):
    """Slices that cannot be used; the message has one sentence for every fault found."""

    def __init__(self, faults: list[str]):
        self.faults = faults
        hidden = len(faults) - _FAULTS_SHOWN
        tail = [f"... and {hidden} more faults."] if hidden > 0 else []
        super().__init__("\n".join(faults[:_FAULTS_SHOWN] + tail))


@dataclass(frozen=True)
class SliceSet:
    """The slices of one split, sorted by subject and slice index.

    Attributes:
        images: float32 (N, size, size, 1) in [0, 1].
        subjects: int32 (N,), the subject's number in the file names.
        slices: int32 (N,), the slice index 0 ... 31.
        split: "train", "validate" or "test".
        root: the folder that was read.
        crop: (top, left, side) of the square cut from each source picture, or None for the
            whole frame.
    """

    images: np.ndarray
    subjects: np.ndarray
    slices: np.ndarray
    split: str
    root: Path
    crop: Box | None = None

    def __len__(self) -> int:
        return len(self.images)

    def of_subject(self, subject: int) -> SliceSet:
        """The slices of one subject, in the order of the slice index."""
        chosen = self.subjects == subject
        return SliceSet(
            self.images[chosen],
            self.subjects[chosen],
            self.slices[chosen],
            self.split,
            self.root,
            self.crop,
        )


def load_slices(
    root: str | Path, split: str, size: int = 80, crop: str | Box | None = None
) -> SliceSet:
    """Reads, checks and resizes one split; the second call for the same files is instant.

    Args:
        root: the folder that holds `keras_png_slices_data/`, or that folder itself.
        split: "train", "validate" or "test".
        size: side of the square pictures returned, in pixels (bicubic, antialiased).
        crop: None for the whole frame, "brain" for the square box that the training split's
            brains occupy with a small margin, or such a box as (top, left, side) in source
            pixels.

    Returns:
        A `SliceSet`, sorted naturally: subject 2 before subject 10, slice 2 before slice 10.

    Raises:
        SliceDataError: with one sentence for every fault found: a missing or empty folder, a
            file that is not a readable image, not 8-bit grey, not square or not of the size of the
            rest, a name that does not parse, a subject in two splits.
        ValueError: for a split, size or crop that makes no sense.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(SPLITS)}.")
    if not isinstance(size, (int, np.integer)):
        raise ValueError(f"size = {size!r}: expected a whole number of pixels, such as 80.")
    if size < 8:
        raise ValueError(f"A size of {size} pixels is too small for a slice: use 8 or more.")
    if crop not in (None, "brain") and not _is_box(crop):
        raise ValueError(f'Unknown crop {crop!r}: use None, "brain" or (top, left, side).')
    files = checked_files(root, split)
    if crop == "brain":
        crop = brain_box(root)
    paths, settings = list(files.values()), f"{size} {crop}"
    images = _cached(paths, settings, lambda paths: read_images(paths, size, crop))
    keys = np.array(list(files), dtype="int32")
    return SliceSet(
        images=images.astype("float32")[..., None] / 255,
        subjects=keys[:, 0],
        slices=keys[:, 1],
        split=split,
        root=Path(root),
        crop=crop,
    )


def _is_box(crop) -> bool:
    whole_numbers = isinstance(crop, (tuple, list)) and all(
        isinstance(number, (int, np.integer)) for number in crop
    )
    return whole_numbers and len(crop) == 3


def with_mirrored(images: np.ndarray) -> np.ndarray:
    """Slices (N, size, size, 1), followed by the same slices with left and right exchanged."""
    return np.concatenate([images, images[:, :, ::-1]])


def shifted_and_mirrored(images: np.ndarray, seed: int, distance: int = 1) -> np.ndarray:
    """Every slice shifted by up to `distance` whole pixels each way, and mirrored by chance.

    Whole pixels, because interpolation would blur, and blur has codes of its own.

    Args:
        images: float (N, size, size, 1), black at the border.
        seed: of the random choices.
        distance: in pixels.
    """
    rng = np.random.default_rng(seed)
    moved = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, images, images[:, :, ::-1])
    for number, shift in enumerate(rng.integers(-distance, distance + 1, (len(images), 2))):
        moved[number] = np.roll(moved[number], shift, axis=(0, 1))
    return moved


def fingerprint(slices: SliceSet) -> str:
    """A hash of these slices: shows whether stored scores belong to them."""
    pixels = np.rint(slices.images * 255).astype("uint8")
    keys = np.stack([slices.subjects, slices.slices])
    return hashlib.sha256(keys.tobytes() + pixels.tobytes()).hexdigest()


def brain_box(root: str | Path) -> Box:
    """The square (top, left, side), in source pixels, that holds every training brain.

    Reads the training split once; raises `SliceDataError` as `load_slices` does.
    """
    folder = _layout_folder(root)
    paths = list(checked_files(root, "train").values())
    brightest = _cached(paths, "brightest", _brightest)
    rows, columns = (
        np.flatnonzero((brightest > 255 * BRAIN_THRESHOLD).any(axis)) for axis in (1, 0)
    )
    if not len(rows):
        raise SliceDataError([f"{folder}: every training slice is black; expected brains."])
    frame = len(brightest)
    extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = min(int(extent) + 2 * CROP_MARGIN, frame)
    middle = [(int(line[0]) + int(line[-1]) + 1) // 2 for line in (rows, columns)]
    top, left = (min(max(centre - side // 2, 0), frame - side) for centre in middle)
    return top, left, side


def _layout_folder(root: str | Path) -> Path:
    root = Path(root)
    if root.is_file():
        raise SliceDataError(
            [
                f"{root}: this is a file, not a folder; convert an archive "
                f"with `python -m oasis_helpers convert {root} FOLDER`."
            ]
        )
    if not root.is_dir():
        raise SliceDataError(
            [f"{root}: this folder is missing; give the one that holds {LAYOUT_FOLDER}/."]
        )
    inner = root / LAYOUT_FOLDER
    return inner if inner.is_dir() else root


def checked_files(root: str | Path, split: str) -> dict[tuple[int, int], Path]:
    """{(subject, slice index): path} of a split, sorted naturally.

    With a fault among the names, the images are opened too, so that one message has all faults.
    """
    folder = _layout_folder(root)
    files, faults = list_split(folder, split)
    faults += shared_subjects(folder, split, {subject for subject, _ in files}, SPLITS)
    if faults:
        raise SliceDataError(faults + open_images(list(files.values()))[1])
    if not files:
        raise SliceDataError([empty_split(folder, split)])
    return dict(sorted(files.items()))


def empty_split(folder: Path, split: str) -> str:
    """The sentence for a split without files."""
    folder = folder / f"keras_png_slices_{split}"
    return f"{folder}: this folder is empty; expected files named case_NNN_slice_K.nii.png."


def list_split(folder: Path, split: str) -> tuple[dict[tuple[int, int], Path], list[str]]:
    """The files whose names are valid, and a sentence for every other file."""
    folder = folder / f"keras_png_slices_{split}"
    if not folder.is_dir():
        raise SliceDataError(
            [f"{folder}: this folder is missing; the {split} split is expected there."]
        )
    files, faults = {}, []
    for path in _listed(folder):
        if path.name.startswith("."):
            continue
        match = _NAME.fullmatch(path.name)
        if not match:
            faults.append(f"{path}: the name does not parse; expected case_NNN_slice_K.nii.png.")
            continue
        key = int(match[1]), int(match[2])
        if key[1] >= SLICES_PER_SUBJECT:
            faults.append(f"{path}: slice index {key[1]}; expected 0 to {SLICES_PER_SUBJECT - 1}.")
        elif key in files:
            faults.append(f"{path}: the same subject and slice as {files[key].name}; keep one.")
        elif not path.is_file():
            faults.append(f"{path}: a folder or a link that leads nowhere; expected a PNG file.")
        else:
            files[key] = path
    return files, faults


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise SliceDataError(
            [f"{folder}: this folder cannot be read ({error.strerror}); allow reading it."]
        ) from None


def shared_subjects(
    folder: Path, split: str, subjects: set[int], others: Iterable[str]
) -> list[str]:
    """One sentence for each subject in two splits, which would make test scores false."""
    faults = []
    for other in others:
        other_folder = folder / f"keras_png_slices_{other}"
        if other == split or not other_folder.is_dir():
            continue
        names = (_NAME.fullmatch(path.name) for path in _listed(other_folder))
        shared = subjects & {int(name[1]) for name in names if name}
        faults += [
            f"{folder}: subject {subject:03d} is in both {split} and {other}; "
            "keep each subject in one split."
            for subject in sorted(shared)
        ]
    return faults


def _open(path: Path) -> tuple[np.ndarray | None, str | None]:
    """One image as uint8 (height, width), or the sentence that says why not."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            if picture.mode != "L":
                return None, f"{path}: mode {picture.mode}; expected 8-bit grey (mode L)."
            return np.asarray(picture), None
    except UnidentifiedImageError:
        reason = "no known format" if content else "the file is empty"
    except UNREADABLE as error:
        reason = str(error)
    return None, f"{path}: not a readable image ({reason}); copy or download it again."


def open_images(paths: list[Path]) -> tuple[list[np.ndarray], list[str]]:
    """Every image that can be used, and a sentence for each one that cannot."""
    if not paths:
        return [], []
    folder = paths[0].parent
    bar = tqdm(paths, desc=f"reading {folder.name}", unit="slice", leave=False, delay=1)
    opened = [_open(path) for path in bar]
    faults = [fault for _, fault in opened if fault]
    shapes = Counter(picture.shape for picture, _ in opened if picture is not None)
    usual = shapes.most_common(1)[0][0] if shapes else (0, 0)
    faults += [
        f"{path}: {_size(picture.shape)} pixels; the rest of the split is {_size(usual)}."
        for path, (picture, _) in zip(paths, opened)
        if picture is not None and picture.shape != usual
    ]
    if usual[0] != usual[1]:
        faults.append(f"{folder}: {_size(usual)} pixels; expected square slices.")
    return [picture for picture, _ in opened if picture is not None], faults


def _read_all(paths: list[Path]) -> list[np.ndarray]:
    """Opens every image; reports all faults at once."""
    pictures, faults = open_images(paths)
    if faults:
        raise SliceDataError(faults)
    return pictures


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[1]} x {shape[0]}"


def read_images(paths: list[Path], size: int, crop: Box | None) -> np.ndarray:
    """uint8 (N, size, size)."""
    pictures = _read_all(paths)
    frame = len(pictures[0])
    top, left, side = crop or (0, 0, frame)
    if min(top, left) < 0 or side < 1 or max(top, left) + side > frame:
        raise ValueError(f"The crop {crop} (top, left, side) leaves the {frame}-pixel frame.")
    box = (left, top, left + side, top + side)
    return np.stack(
        [
            np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC, box))
            for picture in pictures
        ]
    )


def _brightest(paths: list[Path]) -> np.ndarray:
    """uint8 (frame, frame): the maximum over all slices."""
    return np.maximum.reduce(_read_all(paths))


def cache_folder() -> Path:
    """The folder of resized copies: `OASIS_CACHE_DIR`, or `data/cache` in the repository."""
    return Path(os.environ.get("OASIS_CACHE_DIR") or REPOSITORY / "data" / "cache")


def _cached(paths: list[Path], settings: str, make) -> np.ndarray:
    """`make(paths)`, cached under a key of the source files and of `settings`."""
    folder = paths[0].parent.resolve()
    digest = hashlib.sha256(f"{folder} {settings}".encode())
    for path in paths:
        facts = path.stat()
        digest.update(f"{path.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    cached = cache_folder() / f"{folder.name}-{digest.hexdigest()[:24]}.npy"
    try:
        return np.load(cached, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        pass  # missing or damaged: made again below
    array = make(paths)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # NumPy's own writing to files overlooks that a disk is full
        np.save(content, array, allow_pickle=False)
        write_bytes(cached, content.getvalue())
    except OSError as error:  # slower next time, but nothing is wrong with the slices
        warnings.warn(
            f"{cached.parent}: the resized slices cannot be stored there ({error.strerror}), so "
            "they are read again each time; free space, or set OASIS_CACHE_DIR to another folder.",
            stacklevel=2,
        )
    return array


# --------------------------------------------------------------------------- files, written whole


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`, which replaces `path` at the end.

    So a file is never seen half written, and after an error the old one is unchanged.
    """
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say which file it was
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file as a whole, by way of `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: dict, indent: int | None = None) -> None:
    """Writes a JSON file as a whole."""
    write_bytes(path, f"{json.dumps(content, indent=indent)}\n".encode())


def read_json(path: Path) -> dict:
    """Reads a JSON file that `write_json` wrote.

    Raises:
        ValueError: for a missing or damaged file, and for JSON that is not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        content = error
    if not isinstance(content, dict):
        reason = f"cannot be read ({content})" if isinstance(content, Exception) else "is no object"
        raise ValueError(
            f"{path}: {reason}; expected a JSON file of this course: restore it with git, or "
            "remove it and make it again."
        )
    return content
