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
import hmac
import io
import itertools
import json
import os
import re
import statistics
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import ndimage
from tqdm.auto import tqdm

from oasis_helpers import REPOSITORY, own_folder

SPLITS = ("train", "validate", "test")
SLICES_PER_SUBJECT = 32
LAYOUT_FOLDER = "keras_png_slices_data"
BRAIN_THRESHOLD = 10 / 255  # grey level above which a pixel counts as brain
CROP_MARGIN = 4  # source pixels of black left around the brains' bounding box
MAX_SIDE, MAX_BYTES = 2048, 2**24  # of a picture; one that declares more pixels is not decoded
READER = 2  # version of what is cached: raise it whenever the same files give other pixels
# What reading an image raises, from a folder or a zip archive (RuntimeError: it is encrypted).
_DAMAGED = (LookupError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError)
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, *_DAMAGED)

_NAME = re.compile(r"case_([0-9]{1,9})_slice_([0-9]{1,9})\.nii\.png")  # numbers fit into int32
_NAMES = "case_NNN_slice_K.nii.png, with up to 9 digits"  # as messages describe them
# What a system writes, not a user; hidden files count as such.
SYSTEM_FILE = re.compile(r"(?is)\..*|(eh)?thumbs\.db|desktop\.ini|icon\r|@eadir|__macosx")
_FAULTS_SHOWN = 20
_size = "{} x {}".format  # for messages

Box = tuple[int, int, int]  # top, left, side of a square, in source pixels


class SliceDataError(ValueError):
    """Slices that cannot be used; the message has one sentence for every fault found."""

    def __init__(self, faults: list[str]):
        self.faults = [  # a terminal obeys control characters in the names of files
            "".join(c if c.isprintable() else repr(c)[1:-1] for c in fault) for fault in faults
        ]
        hidden = len(faults) - _FAULTS_SHOWN
        tail = [f"... and {hidden} more faults."] if hidden > 0 else []
        super().__init__("\n".join(self.faults[:_FAULTS_SHOWN] + tail))


@dataclass(frozen=True)
class SliceSet:
    """The slices of one split, sorted by subject and slice index.

    Attributes:
        images: float32 (N, size, size, 1) in [0, 1].
        subjects: int32 (N,), the subject's number in the file names.
        slices: int32 (N,), the slice index 0 ... 31.
        split: "train", "validate" or "test".
        root: the folder that was read.
        crop: (top, left, side) of the square cut from each picture; None for the whole frame.
        side: of the source pictures that `crop` was measured on, in pixels.
    """

    images: np.ndarray
    subjects: np.ndarray
    slices: np.ndarray
    split: str
    root: Path
    crop: Box | None = None
    side: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def of_subject(self, subject: int) -> SliceSet:
        """The slices of one subject, in the order of the slice index."""
        chosen = self.subjects == subject
        parts = {name: getattr(self, name)[chosen] for name in ("images", "subjects", "slices")}
        return replace(self, **parts)

    def below(self) -> np.ndarray:
        """int (N,): the position of each slice's lower neighbour; -1 where there is none."""
        steps = np.diff([self.subjects, self.slices], prepend=-1)
        return np.where((steps == [[0], [1]]).all(0), np.arange(len(self)) - 1, -1)

    def codes_below(self, codes: np.ndarray) -> np.ndarray:
        """int (N, h, w): of code maps (N, h, w), each one's lower neighbour; -1 without one."""
        below = self.below()
        return np.where(below[:, None, None] < 0, -1, codes[below])


def load_slices(
    root: str | Path, split: str, size: int = 80, crop: str | Box | None = None, side: int = 0
) -> SliceSet:
    """Reads, checks and resizes one split; the second call for the same files is instant.

    Args:
        root: the folder that holds `keras_png_slices_data/`, or that folder itself.
        split: "train", "validate" or "test".
        size: side of the square pictures returned, in pixels (bicubic, antialiased).
        crop: None for the whole frame, "brain" for the box that the training split's brains occupy
            with a small margin (`brain_box`), or such a box as (top, left, side) in source pixels.
        side: of the source pictures that weights were trained on and `crop` was measured on. For
            pictures of another side the box is scaled, with a warning. 0: of these pictures.

    Returns:
        A `SliceSet`, sorted naturally: subject 2 before subject 10, slice 2 before slice 10.

    Raises:
        SliceDataError: with one sentence for every fault: in folders, names or images, between
            images (one size) and between subjects (the same slices, one split each).
        ValueError: for a split, size or crop that makes no sense.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(SPLITS)}.")
    if not isinstance(size, (int, np.integer)) or size < 8:
        raise ValueError(f"size = {size!r}: expected a whole number of pixels, 8 or more.")
    is_box = np.shape(crop) == (3,) and np.asarray(crop).dtype.kind in "iu"
    if not (is_box or crop in (None, "brain")):
        raise ValueError(f'Unknown crop {crop!r}: use None, "brain" or (top, left, side).')
    files = checked_files(root, split)
    if crop == "brain":
        crop, side = brain_box(root), 0
    paths, box = list(files.values()), crop
    own = declared_size(paths[0])[0]
    if side and own and own != side:
        warnings.warn(
            f"{paths[0].parent}: {own} x {own} pixels; the weights' frame is of {side} x {side}, "
            "so it is scaled: expected pictures that show as much of the head.",
            stacklevel=2,
        )
        box = crop and tuple(line * own / side for line in crop)
    images = _cached(paths, f"{size} {box}", lambda paths: read_images(paths, size, box))
    subjects, indices = np.array(list(files), dtype="int32").T
    images = images.astype("float32")[..., None] / 255
    return SliceSet(images, subjects, indices, split, Path(root), crop, side or own)


def with_mirrored(images: np.ndarray) -> np.ndarray:
    """Slices (N, size, size, 1), followed by the same slices with left and right exchanged."""
    return np.concatenate([images, images[:, :, ::-1]])


def shifted_and_mirrored(images: np.ndarray, seed: int | tuple[int, ...]) -> np.ndarray:
    """Slices (N, size, size, 1), each shifted by up to a pixel each way, and mirrored by chance.

    Whole pixels, because interpolation would blur, and blur has codes of its own.
    """
    rng = np.random.default_rng(seed)
    moved = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, images, images[:, :, ::-1])
    for number, shift in enumerate(rng.integers(-1, 2, (len(images), 2))):
        moved[number] = np.roll(moved[number], shift, axis=(0, 1))
    return moved


def fingerprint(slices: SliceSet) -> str:
    """A hash of these slices: shows whether stored scores belong to them."""
    pixels = np.rint(slices.images * 255).astype("uint8")
    keys = np.stack([slices.subjects, slices.slices])
    return hashlib.sha256(keys.tobytes() + pixels.tobytes()).hexdigest()


def brain_box(root: str | Path) -> Box:
    """The square (top, left, side), in source pixels, that holds every training brain.

    Reads the training split once; raises `SliceDataError` as `load_slices` does. Grey pixels apart
    from the brains do not count; outside of the box or at the frame's edge they are a warning.
    """
    paths = list(checked_files(root, "train").values())
    brightest = _cached(paths, "brightest", lambda paths: reduce(np.maximum, open_images(paths)))
    labels, count = ndimage.label(brightest > 255 * BRAIN_THRESHOLD)
    if not count:
        raise SliceDataError([f"{paths[0].parent}: every slice is black; expected brains."])
    brains = ndimage.find_objects(labels)[np.bincount(labels[labels > 0]).argmax() - 1]
    frame, extent = len(brightest), max(line.stop - line.start for line in brains)
    side = min(extent + 2 * CROP_MARGIN, frame)
    middle = ((line.start + line.stop) // 2 for line in brains)
    top, left = (min(max(centre - side // 2, 0), frame - side) for centre in middle)
    labels[max(top, 1) : min(top + side, frame - 1), max(left, 1) : min(left + side, frame - 1)] = 0
    if labels.any():
        stray = (image[labels > 0].max() > 255 * BRAIN_THRESHOLD for image in open_images(paths))
        names = [path.name for path, is_stray in zip(paths, stray) if is_stray]
        warnings.warn(
            f"{paths[0].parent}: grey pixels at the frame's edge or far from the brains in "
            f"{len(names)} files, {', '.join(names[:3])}; expected black there: look at them.",
            stacklevel=2,
        )
    return top, left, side


def _layout_folder(root: str | Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        fault = f"this folder is missing; give the one that holds {LAYOUT_FOLDER}/"
        if root.is_file():
            command = f"python -m oasis_helpers convert {root} FOLDER"
            fault = f"this is a file, not a folder; convert an archive with `{command}`"
        raise SliceDataError([f"{root}: {fault}."])
    inner = root / LAYOUT_FOLDER
    return inner if inner.is_dir() else root


def checked_files(root: str | Path, split: str) -> dict[tuple[int, int], Path]:
    """{(subject, slice index): path} of a split, sorted naturally.

    With a fault among the names, the images are opened too, so that one message has all faults.
    """
    folder = _layout_folder(root)
    files, faults = list_split(folder, split)
    others = (o for o in SPLITS if o != split and (folder / f"keras_png_slices_{o}").is_dir())
    faults += compare_splits(folder, {split: files} | {o: list_split(folder, o)[0] for o in others})
    if faults:
        for _ in open_images(list(files.values()), faults):
            pass
        raise SliceDataError(faults)
    return dict(sorted(files.items()))


def list_split(folder: Path, split: str) -> tuple[dict[tuple[int, int], Path], list[str]]:
    """The files whose names are valid, and a sentence for every other file, or if there is none."""
    folder = folder / f"keras_png_slices_{split}"
    if not folder.is_dir():
        raise SliceDataError([f"{folder}: this folder is missing; expected the {split} split."])
    try:
        paths = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        fault = f"{folder}: this folder cannot be read ({error.strerror}); allow reading it."
        raise SliceDataError([fault]) from None
    files, faults = {}, []
    for path in paths:
        match = _NAME.fullmatch(path.name)
        key = tuple(map(int, match.groups())) if match else None
        if SYSTEM_FILE.fullmatch(path.name):
            continue
        elif not match:
            faults.append(f"{path}: the name does not parse; expected {_NAMES}.")
        elif key[1] >= SLICES_PER_SUBJECT:
            faults.append(f"{path}: slice index {key[1]}; expected 0 to {SLICES_PER_SUBJECT - 1}.")
        elif key in files:
            faults.append(f"{path}: the same subject and slice as {files[key].name}; keep one.")
        elif not path.is_file():  # a pipe or a device is never opened
            faults.append(f"{path}: not a regular file; expected a PNG file.")
        else:
            files[key] = path
    if not files and not faults:
        faults = [f"{folder}: this folder is empty; expected files named {_NAMES}."]
    return files, faults


def compare_splits(folder: Path, layout: dict[str, dict[tuple[int, int], Path]]) -> list[str]:
    """A sentence for each subject in two splits, which would make test scores false.

    Where there is none: for each subject that lacks slices, and for splits of different sizes.
    """
    subjects = {split: sorted({key[0] for key in files}) for split, files in layout.items()}
    if shared := [
        f"{folder}: subject {subject:03d} is in both {one} and {other}; "
        "keep each subject in one split."
        for one, other in itertools.combinations(layout, 2)
        for subject in sorted({*subjects[one]} & {*subjects[other]})
    ]:
        return shared
    indices = sorted({index for files in layout.values() for _, index in files})
    faults = [
        f"{folder}: subject {subject:03d} of {split} has no slice {', '.join(missing)}, which "
        "others have; add it, or remove the subject."
        for split, files in layout.items()
        for subject in subjects[split]
        if (missing := [str(index) for index in indices if (subject, index) not in files])
    ]
    firsts = [next(iter(files.values())) for files in layout.values() if files]
    sizes = {path: size for path in firsts if any(size := declared_size(path))}
    if len(set(sizes.values())) > 1:
        named = (f"{path.parent.name}/{path.name} of {_size(*sizes[path])}" for path in sizes)
        faults.append(f"{folder}: {', '.join(named)} pixels; expected one size in all splits.")
    return faults


def declared_size(path: Path) -> tuple[int, int]:
    """(width, height) of a PNG, of which no pixel is read; (0, 0) for what is none."""
    with suppress(*UNREADABLE), path.open("rb") as f, Image.open(f, formats=("PNG",)) as picture:
        return picture.size
    return 0, 0


def _open(path: Path) -> tuple[np.ndarray | None, str | None]:
    """One image as uint8 (height, width), or the sentence that says why not."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            more = " with transparency" if "transparency" in picture.info else ""
            more = more if content[24] == 8 else f" with {content[24]} bits"
            if picture.mode != "L" or more:
                return None, f"{path}: mode {picture.mode}{more}; expected 8-bit grey (mode L)."
            verify_rows(content, *picture.size)
            return np.asarray(picture), None
    except UnidentifiedImageError:
        reason = "no PNG file" if content else "the file is empty"
    except UNREADABLE as error:
        reason = str(error)
    return None, f"{path}: not a readable image ({reason}); copy or download it again."


def verify_rows(content: bytes, width: int, height: int) -> None:
    """Raises ValueError for a damaged chunk or missing rows of a PNG, which Pillow passes over.

    The width is in bytes: of a pixel with 8 bits, one for each channel.
    """
    at, packed = 8, []
    while (kind := content[at + 4 : at + 8]) != b"IEND":
        end = at + 8 + int.from_bytes(content[at : at + 4])
        if zlib.crc32(content[at + 4 : end]).to_bytes(4) != content[end : end + 4]:
            kind = kind.decode("latin-1") or "IEND"
            raise ValueError(f"its chunk {kind} is damaged or truncated")
        packed += [content[at + 8 : end]] if kind == b"IDAT" else []
        at = end + 4
    row = 1 + width  # interlaced rows are more and shorter: in sum longer, by less than one row
    rows = len(zlib.decompressobj().decompress(b"".join(packed), 2 * height * row)) // row
    if rows < height:
        raise ValueError(f"it holds {rows} of {height} rows")


def open_images(paths: list[Path], faults: list[str] | None = None) -> Iterator[np.ndarray]:
    """Yields every image that can be used; adds a sentence for each other one to `faults`.

    Without `faults`, raises `SliceDataError` at the end. Sizes are read first, so an image of
    another size than most is never decoded.
    """
    if not paths:
        return
    problems = [] if faults is None else faults
    sizes = [declared_size(path) for path in paths]
    usual = statistics.mode([size for size in sizes if any(size)] or [(0, 0)])
    fits, folder = usual[0] == usual[1] <= MAX_SIDE, paths[0].parent
    bar = tqdm(paths, desc=f"reading {folder.name}", unit="slice", leave=False, delay=1)
    for path, size in zip(bar, sizes):
        if not any(size) or (fits and size == usual):
            picture, fault = _open(path)
            if fault:
                problems.append(fault)
            else:
                yield picture
    problems += [
        f"{path}: {_size(*size)} pixels; the rest of the split is {_size(*usual)}."
        for path, size in zip(paths, sizes)
        if any(size) and size != usual
    ]
    if not fits:
        problems.append(f"{folder}: {_size(*usual)} pixels; expected squares of up to {MAX_SIDE}.")
    if problems and faults is None:
        raise SliceDataError(problems)


def read_images(paths: list[Path], size: int, crop: Box | None) -> np.ndarray:
    """uint8 (N, size, size)."""
    resized = []
    for picture in open_images(paths):
        frame = len(picture)
        top, left, side = crop or (0, 0, frame)
        if min(top, left) < 0 or side < 1 or max(top, left) + side > frame:
            raise ValueError(f"The crop {crop} (top, left, side) leaves the {frame}-pixel frame.")
        square, box = (size, size), (left, top, left + side, top + side)
        image = Image.fromarray(picture).resize(square, Image.Resampling.BICUBIC, box)
        resized.append(np.asarray(image))
    return np.stack(resized)


def cache_folders() -> list[Path]:
    """Of resized copies: `OASIS_CACHE_DIR`, else this user's, to write to, and the checkout's."""
    named = os.environ.get("OASIS_CACHE_DIR")
    folders = [own_folder("data/cache"), REPOSITORY / "data" / "cache"]
    return [Path(os.path.expanduser(named))] if named else folders


def _cached(paths: list[Path], settings: str, make) -> np.ndarray:
    """`make(paths)`, cached under a key of the source files and of `settings`.

    The key also holds when each file was changed in any way (ctime), which no program can set. A
    copy ends with a hash of its key and content: what is damaged or of another kind is made again.
    """
    key = hashlib.sha256(os.fsencode(f"{READER} {paths[0].parent.resolve()} {settings}"))
    for path in paths:
        of = path.stat()
        key.update(f"{path.name} {of.st_size} {of.st_mtime_ns} {of.st_ctime_ns}\n".encode())
    name = f"{paths[0].parent.name}-{key.hexdigest()[:24]}.npy"
    cached, *others = (folder / name for folder in cache_folders())
    for file in (cached, *others):
        with suppress(OSError):
            whole = file.read_bytes() if file.is_file() else b""
            if hmac.digest(key.digest(), whole[:-32], "sha256") == whole[-32:]:
                return np.load(io.BytesIO(whole), allow_pickle=False)
    array, content = make(paths), io.BytesIO()
    np.save(content, array, allow_pickle=False)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        content.write(hmac.digest(key.digest(), content.getvalue(), "sha256"))
        write_bytes(cached, content.getvalue())  # NumPy's own writing overlooks a full disk
    except OSError as error:  # slower next time, but nothing is wrong with the slices
        warnings.warn(
            f"{cached.parent}: the resized slices cannot be stored there ({error.strerror}), so "
            "they are read again each time; free space, or set OASIS_CACHE_DIR to another folder.",
            stacklevel=2,
        )
    return array


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
    reason = "is no object"
    try:
        if isinstance(content := json.loads(path.read_text(encoding="utf-8")), dict):
            return content
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({error})"
    raise ValueError(
        f"{path}: {reason}; expected a JSON file of this course: restore it with git, or remove it "
        "and make it again."
    )
