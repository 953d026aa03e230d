"""A brain volume, or a stack of pictures, becomes 32 slices that lie as the course's do.

**The slab.** Slice K = 0 ... 31 lies K mm above the plane through both commissures, in Talairach
space, 1 mm a pixel, the back of the head at the top and its right side on the left. That is where
the slices of the public copies lie: the MNI152 template, fitted to the mean of 180 subjects' slices
(scales, pitch and shift free), has its commissures (MNI 0, 3, -4.5 and 0, -25, -2.5 mm) at the
height of slice 0.0 and 0.0, the anterior one at column 86.6 and row 122.8 of 176 x 208. In T88_111
volumes Talairach's origin is voxel (87, 123, 75): their grid is that of 711-2B atlas images, whose
4dfp centre is 89 -85 -101 mm, counted from 1 and from the other ends. Two of these three numbers
can be compared with the fit. The sides follow from the heads: on average the frontal lobe reaches
further on the left of these pictures, and the occipital lobe on their right.

**The frame.** The 176 x 208 voxels of a level lie in the middle of 256 x 256 pixels, unchanged.

**Grey levels.** In the public copies every slice's brightest pixel is white (255, give or take
JPEG), so neighbouring slices of one subject differ in scale by several per cent. So it is here:
255 x voxel / brightest voxel of the slice. Voxels that are 8-bit already are grey levels and stay.

Sources: Marcus et al., Open Access Series of Imaging Studies, J. Cogn. Neurosci. 19:1498-1507,
2007; Buckner et al., A unified approach for morphometric and functional data analysis, NeuroImage
23:724-738, 2004 (the atlas space); Hoopes et al., HyperMorph, 2021, arXiv:2101.01035
(neurite-oasis).
"""

from __future__ import annotations

import functools
import gzip
import io
import itertools
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage
from nibabel.wrapstruct import WrapStructError
from nilearn import datasets
from PIL import Image
from scipy import fft, ndimage
from skimage.registration import phase_cross_correlation
from skimage.transform import downscale_local_mean, resize

from oasis_helpers.convert.synthetic import FRAME, STACK_CENTRE, STACK_PITCH, STACK_SPACING
from oasis_helpers.data import SLICES_PER_SUBJECT

SHAPE = (176, 208, 176)  # voxels of T88_111: to the left, to the front, up; 1 mm each
ORIGIN = np.array([87, 123, 75])  # the voxel of Talairach's 0, 0, 0, the anterior commissure
LEVELS = np.arange(SLICES_PER_SUBJECT)  # mm above the commissures
MNI_ORIGIN = np.array([98, 134, 72])  # the voxel of MNI's 0, 0, 0 in nilearn's template at 1 mm
MIDDLE = np.array([0, -19.5, 15.5])  # mm from the anterior commissure to the cohort's slab's middle

COARSE = 4  # mm, for the check of orientation
REACH = 8  # mm that a head may lie beside the atlas's place
ALIKE, CLEARLY = 0.2, 1.25  # correlation with the template, and its ratio to the runner-up's
SPLINE_REACH = 16  # voxels; what lies further off has no weight
BRAIN = 0.2  # of the brightest voxel: what is brighter counts as brain
LARGEST = 256 * 2**20  # bytes of a volume; T88_111 has 13 MB

_BROKEN = (OSError, EOFError, ValueError, zlib.error)  # what reading a damaged volume raises
_BROKEN += (ImageFileError, HeaderDataError, WrapStructError)


class UnusableVolume(ValueError):
    """A volume that gives no slab; the message says why, and is to follow its name."""


def cut_t88(header: bytes, image: bytes) -> tuple[np.ndarray, str]:
    """The slab of an official T88_111 volume (Analyze); no voxel is interpolated.

    Analyze headers tell no orientation, so a volume that lies otherwise is turned the way in which
    it resembles the MNI152 template. Left and right are taken as they are stored.

    Returns:
        uint8 (32, 208, 176), and a remark, empty unless the volume had to be turned.

    Raises:
        UnusableVolume: not readable, of another size, not 1 mm, with voxels that are no number, no
            masked brain, or not in its place.
    """
    files = {"header": header, "image": image}
    files = {
        part: nibabel.FileHolder(fileobj=io.BytesIO(content)) for part, content in files.items()
    }
    voxels = _voxels(lambda: nibabel.AnalyzeImage.from_file_map(files))
    if sorted(voxels.shape) != sorted(SHAPE):
        raise UnusableVolume(f"{by(voxels.shape)} voxels; expected {by(SHAPE)} (T88_111)")
    pose = _pose(voxels, _t88_template)
    voxels = np.flip(voxels.transpose(pose.axes), pose.flipped)
    if voxels.shape != SHAPE or max(map(abs, pose.shift)) > REACH:
        raise UnusableVolume(
            f"the brain lies {by(pose.shift)} mm (left, front, up) beside its place in T88_111, in "
            f"{by(voxels.shape)} voxels; expected {REACH} mm at most"
        )
    turned = pose.axes != (0, 1, 2) or pose.flipped
    remark = f"turned: axes {pose.axes}, of them reversed {pose.flipped}" if turned else ""
    return _grey(voxels[:, :, ORIGIN[2] + LEVELS].transpose(2, 1, 0)), remark


def cut_neurite(packed: bytes) -> tuple[np.ndarray, str]:
    """The slab of neurite-oasis's `aligned_norm.nii.gz`, resampled (cubic) into T88_111's frame.

    The volume is in FreeSurfer's Talairach space, of the size of MNI's; its header tells the axes
    but has the middle of a crop for its origin. So its place is found by laying the brain onto the
    MNI152 template.

    Returns:
        uint8 (32, 208, 176), and a remark that says how far the brain was moved.

    Raises:
        UnusableVolume: as `cut_t88`.
    """

    def load() -> SpatialImage:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            unpacked = file.read(LARGEST + 1)
        if len(unpacked) > LARGEST:
            raise ValueError(f"it unpacks to more than {LARGEST / 2**20:.0f} MiB")
        image = nibabel.Nifti1Image.from_bytes(unpacked)
        wanted = nibabel.orientations.axcodes2ornt("LAS")
        stored = nibabel.io_orientation(image.affine)
        return image.as_reoriented(nibabel.orientations.ornt_transform(stored, wanted))

    voxels = _voxels(load)
    if max(voxels.shape) > FRAME:
        raise UnusableVolume(f"{by(voxels.shape)} voxels; expected 160 x 224 x 192")
    pose = _pose(voxels, _mni_template)
    if pose.axes != (0, 1, 2) or pose.flipped:
        raise UnusableVolume("the brain doesn't lie as the header says; get the archive again")
    shift = _fine_shift(voxels)
    affine = _t88_to_mni()
    turn, offset = affine[:3, :3], affine[:3, 3] + affine[:3, 2] * ORIGIN[2] - shift
    shape = (*SHAPE[:2], SLICES_PER_SUBJECT)
    # Only what the slab can reach: a spline through all of the volume takes seconds.
    heights = [turn[2] @ corner for corner in itertools.product(*((0, n) for n in shape))]
    lowest = max(0, int(min(heights) + offset[2]) - SPLINE_REACH)
    voxels = voxels[:, :, lowest : int(max(heights) + offset[2]) + SPLINE_REACH]
    offset[2] -= lowest
    levels = ndimage.affine_transform(voxels, turn, offset, shape, order=3)
    inside = ndimage.affine_transform(voxels > 0, turn, offset, shape, order=0)
    levels = np.where(inside, levels, 0).transpose(2, 1, 0)
    return _grey(levels), f"laid onto MNI152, moved by {by(shift)} mm (left, front, up)"


def lie_of(stack: np.ndarray) -> tuple[int, int] | None:
    """How slices lie: what brings them into the course's position.

    Proportions don't matter, and left and right can't be told apart.

    Args:
        stack: (32, height, width), one subject's slices or the mean of several.

    Returns:
        (quarter turns counterclockwise, 1 or -1 for the order of the levels), or None where no
        position resembles the MNI152 template clearly more than the others.
    """
    fixed = _boxed(_t88_template()[:, :, ORIGIN[2] + LEVELS].transpose(2, 1, 0))
    moving = _boxed(stack.astype(np.float32))
    likeness = {
        (turns, order): float((fixed * np.rot90(moving, turns, (1, 2))[::order]).sum())
        for turns in range(4)
        for order in (1, -1)
    }
    best, second = sorted(likeness, key=likeness.get, reverse=True)[:2]
    return best if likeness[best] >= max(ALIKE, CLEARLY * likeness[second]) else None


def in_frame(pixels: np.ndarray) -> np.ndarray:
    """uint8 (256, 256) with the picture in its middle; one that is too large is made smaller."""
    if max(pixels.shape) > FRAME:
        picture = Image.fromarray(pixels)
        picture.thumbnail((FRAME, FRAME), Image.Resampling.BICUBIC)
        pixels = np.asarray(picture)
    height, width = pixels.shape
    top, left = (FRAME - height) // 2, (FRAME - width) // 2
    frame = np.zeros((FRAME, FRAME), np.uint8)
    frame[top : top + height, left : left + width] = pixels
    return frame


def by(numbers: Iterable[float]) -> str:
    """A size in words: 176 x 208."""
    return " x ".join(f"{number:g}" for number in numbers)


def _voxels(load: Callable[[], SpatialImage]) -> np.ndarray:
    """A volume's voxels: three axes, 1 mm a side; uint8, or float32 of 0 or more."""
    try:
        image = load()
        # A damaged header may promise terabytes.
        if np.prod(image.shape, dtype=float) * image.get_data_dtype().itemsize > LARGEST:
            raise ValueError(f"its header promises {by(image.shape)} voxels")
        voxels = np.asanyarray(image.dataobj)
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        raise UnusableVolume(f"not a readable volume ({reason}); download it again") from error
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise UnusableVolume(f"{by(voxels.shape)} voxels; expected three axes")
    sides = np.abs(image.header.get_zooms()[:3])
    if not np.allclose(sides, 1, atol=0.01):
        raise UnusableVolume(f"voxels of {by(sides)} mm; expected 1 x 1 x 1 mm")
    if voxels.dtype == np.uint8:
        return voxels
    if voxels.dtype.kind not in "iuf":
        raise UnusableVolume(f"voxels of type {voxels.dtype}; expected grey levels")
    if not np.isfinite(voxels).all():
        raise UnusableVolume("holds voxels that are no number (NaN or infinite)")
    return voxels.astype(np.float32).clip(0)


def _grey(levels: np.ndarray) -> np.ndarray:
    """uint8 (32, height, width): each slice's brightest voxel is 255; 8-bit voxels stay."""
    brightest = levels.max((1, 2), keepdims=True)
    if not brightest.all():
        black = LEVELS[brightest.ravel() == 0]
        raise UnusableVolume(f"black {black[0]} mm above the commissures; expected brain there")
    if levels.dtype == np.uint8:
        return levels
    return np.rint(255 * (levels / brightest).clip(0, 1)).astype(np.uint8)


class Pose(NamedTuple):
    """How a volume lies.

    `np.flip(volume.transpose(axes), flipped)` lies as the template does, and moved by `shift`
    (mm: left, front, up) it lies over it.
    """

    axes: tuple[int, int, int]
    flipped: tuple[int, ...]
    shift: tuple[int, int, int]


def _pose(voxels: np.ndarray, template: Callable[[], np.ndarray]) -> Pose:
    """The pose in which a brain resembles the template most.

    Of the 24 that don't differ by left and right: a brain is too symmetric to tell these apart.
    """
    shape = (FRAME // COARSE,) * 3
    fixed = fft.rfftn(_reduced_template(template, COARSE), shape)
    coarse = _reduced(voxels, COARSE)
    found = []
    for axes in itertools.permutations(range(3)):
        for flipped in ((), (1,), (2,), (1, 2)):
            moving = np.flip(coarse.transpose(axes), flipped)
            overlap = fft.irfftn(fixed * np.conj(fft.rfftn(moving, shape)), shape)
            peak = np.array(np.unravel_index(overlap.argmax(), shape))
            shift = np.where(peak < shape[0] // 2, peak, peak - shape[0]) * COARSE
            found.append((float(overlap.max()), Pose(axes, flipped, tuple(shift.tolist()))))
    found.sort(key=lambda pair: -pair[0])
    if found[0][0] < max(ALIKE, CLEARLY * found[1][0]):
        raise UnusableVolume(
            f"resembles the MNI152 template in no position (correlation {found[0][0]:.2f}); "
            "expected a masked brain in atlas space"
        )
    return found[0][1]


def _reduced(voxels: np.ndarray, cell: int) -> np.ndarray:
    """Means of cells of `cell` voxels a side, as `_contrast`."""
    return _contrast(downscale_local_mean(voxels, (cell,) * 3))


@functools.cache
def _reduced_template(template: Callable[[], np.ndarray], cell: int) -> np.ndarray:
    return _reduced(template(), cell)


def _contrast(voxels: np.ndarray) -> np.ndarray:
    """Tissue against tissue, of unit norm.

    0 outside the brain and 0 on average inside it: a correlation then isn't that of two outlines.
    """
    brain = voxels > BRAIN * voxels.max()
    if not brain.any():
        return np.zeros(voxels.shape, np.float32)
    centred = np.where(brain, voxels - voxels[brain].mean(), 0).astype(np.float32)
    return centred / max(float(np.linalg.norm(centred)), 1e-6)


def _fine_shift(voxels: np.ndarray) -> np.ndarray:
    """mm (left, front, up) by which a brain is moved to lie over the MNI152 template."""
    pair = np.zeros((2, *(FRAME // 2,) * 3), np.float32)
    for grid, half in zip(pair, (_reduced_template(_mni_template, 2), _reduced(voxels, 2))):
        grid[tuple(slice(n) for n in half.shape)] = half
    return 2 * phase_cross_correlation(*pair, upsample_factor=8, normalization=None)[0]


def _boxed(stack: np.ndarray) -> np.ndarray:
    """What fills the brains' box, stretched to (32, 40, 40), as `_contrast`."""
    brain = (stack > BRAIN * stack.max()).any(0)
    if not brain.any():
        return np.zeros((SLICES_PER_SUBJECT, 40, 40), np.float32)
    (top, bottom), (left, right) = (np.flatnonzero(brain.any(axis))[[0, -1]] for axis in (1, 0))
    box = stack[:, top : bottom + 1, left : right + 1]
    return _contrast(resize(box, (SLICES_PER_SUBJECT, 40, 40), anti_aliasing=True))


@functools.cache
def _mni_template() -> np.ndarray:
    """float32 (197, 233, 189): to the left, to the front, up, 1 mm; masked."""
    return datasets.load_mni152_template(resolution=1).get_fdata(dtype=np.float32)[::-1].clip(0)


@functools.cache
def _t88_template() -> np.ndarray:
    """float32 (176, 208, 176): the MNI152 template as it would lie in T88_111."""
    affine = _t88_to_mni()
    return ndimage.affine_transform(_mni_template(), affine[:3, :3], affine[:3, 3], SHAPE, order=1)


def _t88_to_mni() -> np.ndarray:
    """Affine (4, 4) from a voxel of T88_111 to one of `_mni_template`.

    It is that of the cohort's slab, which was fitted to real slices.
    """
    cos, sin = np.cos(STACK_PITCH), np.sin(STACK_PITCH)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) * STACK_SPACING
    affine[:3, 3] = MNI_ORIGIN + STACK_CENTRE - affine[:3, :3] @ (ORIGIN + MIDDLE)
    return affine
