"""A brain volume becomes an axial stack: 32 slices in the course's geometry.

**Position.** Slice K = 0 ... 31 is K mm above the plane through both commissures, in Talairach
space, with 1 mm a pixel, the back of the head at the top and its right side on the left. The slices
of the public copies have this position: the MNI152 template, fitted to the mean of 180 subjects'
slices (scales, pitch and shift free), has both commissures (MNI 0, 3, -4.5 mm and 0, -25, -2.5 mm)
at the height of slice 0.0, and the anterior one at column 86.6 and row 122.8 of 176 x 208. In
T88_111 volumes the origin of Talairach space is voxel (87, 123, 75): their grid is that of 711-2B
atlas images, with a 4dfp centre of 89 -85 -101 mm, counted from 1 and from the other ends. The fit
can check two of these three numbers. Left and right follow from the shape of heads: on average, the
frontal lobe extends further on the left of these slices, the occipital lobe further on the right.

**Frame.** The 176 x 208 voxels of an axial plane are in the middle of 256 x 256 pixels, unchanged.

**Intensities.** In the public copies, the brightest pixel of every slice is white (255, but for
JPEG's error), so the scale differs between neighbouring slices by several per cent. A stack of
slices should be one head, so the conversion uses one scale for all 32 slices:
255 x voxel / brightest voxel of the stack. 8-bit voxels stay unchanged.

**Orientation.** Volumes and slices are compared with the MNI152 template. A brain is too symmetric
to distinguish left from right, so nothing here decides between them.

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
from collections.abc import Callable, Iterable

import nibabel
import numpy as np
from nibabel.spatialimages import SpatialImage
from nilearn import datasets
from scipy import fft, ndimage
from skimage.registration import phase_cross_correlation
from skimage.transform import downscale_local_mean, resize

from oasis_helpers.convert.synthetic import FRAME, STACK_CENTRE, STACK_PITCH, STACK_SPACING
from oasis_helpers.data import SLICES_PER_SUBJECT

SHAPE = (176, 208, 176)  # voxels of T88_111: to the left, to the front, up; 1 mm each
ORIGIN = np.array([87, 123, 75])  # the voxel of Talairach's 0, 0, 0, the anterior commissure
HEIGHTS = np.arange(SLICES_PER_SUBJECT)  # mm above the commissures, of the slices
MNI_ORIGIN = np.array([98, 134, 72])  # the voxel of MNI's 0, 0, 0 in nilearn's template at 1 mm
STACK_MIDDLE = np.array([0, -19.5, 15.5])  # mm from the anterior commissure to STACK_CENTRE

MAX_OFFSET = 8  # mm between a T88_111 brain and its place in the atlas
MAX_BYTES = 256 * 2**20  # of a volume; T88_111 has 13 MB
SPLINE_MARGIN = 16  # voxels; a voxel further away has no weight in a cubic spline
MIN_CORRELATION = 0.2  # with the template, in the best orientation
MIN_RATIO = 1.25  # of the best correlation to the second best
BRAIN_INTENSITY = 0.2  # of the brightest voxel; brighter voxels count as brain

_COARSE, _FINE = 4, 2  # mm, grids on which volumes are compared
_BOX = (SLICES_PER_SUBJECT, 40, 40)  # grid on which stacks are compared


class UnusableVolume(ValueError):
    """A volume without a usable axial stack; the message is to follow the volume's name."""


def stack_from_t88(header: bytes, image: bytes) -> tuple[np.ndarray, str]:
    """The axial stack of an official T88_111 volume (Analyze), without interpolation.

    Analyze headers have no orientation, so a volume in another one is turned into that in which it
    resembles the MNI152 template. Left and right are used as they are stored.

    Returns:
        uint8 (32, 208, 176), and a remark, which is empty unless the volume was turned.

    Raises:
        UnusableVolume: the volume is not readable, has another size than T88_111, voxels that are
            not 1 mm wide or not finite, no masked brain, or a brain in another place.
    """
    files = {"header": header, "image": image}
    files = {part: nibabel.FileHolder(fileobj=io.BytesIO(files[part])) for part in files}
    voxels = _read_voxels(functools.partial(nibabel.AnalyzeImage.from_file_map, files))
    if sorted(voxels.shape) != sorted(SHAPE):
        raise UnusableVolume(f"{_size(voxels.shape)} voxels; expected {_size(SHAPE)} (T88_111)")
    axes, flipped, shift = _pose_of(voxels, t88_template)
    voxels = np.flip(voxels.transpose(axes), flipped)
    if voxels.shape != SHAPE or max(map(abs, shift)) > MAX_OFFSET:
        raise UnusableVolume(
            f"the brain is {_size(shift)} mm (left, front, up) from its place in T88_111, in "
            f"{_size(voxels.shape)} voxels; expected {MAX_OFFSET} mm at most"
        )
    turned = axes != (0, 1, 2) or flipped
    remark = f"turned: axes {axes}, then axes {flipped} reversed" if turned else ""
    return _as_uint8(voxels[:, :, ORIGIN[2] + HEIGHTS].transpose(2, 1, 0)), remark


def stack_from_neurite(packed: bytes) -> tuple[np.ndarray, str]:
    """The axial stack of neurite-oasis's `aligned_norm.nii.gz`, resampled in the frame of T88_111.

    The volume is in FreeSurfer's Talairach space, which has the size of MNI's. Its header has the
    axes, but the origin is the middle of a crop. So the brain's position is found by a comparison
    with the MNI152 template. The interpolation is cubic.

    Returns:
        uint8 (32, 208, 176), and a remark with the distance by which the brain was moved.

    Raises:
        UnusableVolume: as `stack_from_t88`.
    """
    voxels = _read_voxels(functools.partial(_read_nifti, packed))
    if max(voxels.shape) > FRAME:
        raise UnusableVolume(f"{_size(voxels.shape)} voxels; expected 160 x 224 x 192")
    axes, flipped, _ = _pose_of(voxels, mni_template)
    if axes != (0, 1, 2) or flipped:
        raise UnusableVolume("the brain's orientation is not that of the header; download it again")
    shift = _shift_onto_template(voxels)
    stack = _resample(voxels, shift).transpose(2, 1, 0)
    return _as_uint8(stack), f"moved onto MNI152 by {_size(shift)} mm (left, front, up)"


def orientation_of(stack: np.ndarray) -> tuple[int, int] | None:
    """What brings slices into the course's orientation.

    The slices' proportions have no influence.

    Args:
        stack: (32, height, width), one subject's slices or the mean of several.

    Returns:
        (quarter turns counterclockwise, 1 or -1 for the order of the slices), or None where no
        orientation resembles the MNI152 template clearly more than the others.
    """
    fixed = _brain_box(t88_template()[:, :, ORIGIN[2] + HEIGHTS].transpose(2, 1, 0))
    moving = _brain_box(stack.astype(np.float32))
    correlation = {
        (turns, order): float((fixed * np.rot90(moving, turns, (1, 2))[::order]).sum())
        for turns in range(4)
        for order in (1, -1)
    }
    best, second = sorted(correlation, key=correlation.get, reverse=True)[:2]
    is_clear = correlation[best] >= max(MIN_CORRELATION, MIN_RATIO * correlation[second])
    return best if is_clear else None


def _read_nifti(packed: bytes) -> SpatialImage:
    """A packed NIfTI volume with the axes of T88_111."""
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        unpacked = file.read(MAX_BYTES + 1)
    if len(unpacked) > MAX_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_BYTES / 2**20:.0f} MiB")
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(unpacked))
    return image.slicer[::-1]  # canonical is to the right


def _read_voxels(read: Callable[[], SpatialImage]) -> np.ndarray:
    """The voxels of a volume with three axes and 1 mm a side: uint8, or float32 of 0 or more."""
    try:
        image = read()
        # A damaged header may promise terabytes.
        if np.prod(image.shape, dtype=float) * image.get_data_dtype().itemsize > MAX_BYTES:
            raise ValueError(f"its header promises {_size(image.shape)} voxels")
        voxels = np.asanyarray(image.dataobj)
    except Exception as error:  # damaged bytes make nibabel raise errors of many kinds
        reason = " ".join(str(error).split())
        raise UnusableVolume(f"not a readable volume ({reason}); download it again") from error
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3 or not voxels.size:
        raise UnusableVolume(f"{_size(voxels.shape)} voxels; expected three axes")
    sides = np.abs(image.header.get_zooms()[:3])
    if not np.allclose(sides, 1, atol=0.01):
        raise UnusableVolume(f"voxels of {_size(sides)} mm; expected 1 x 1 x 1 mm")
    if voxels.dtype == np.uint8:
        return voxels
    if voxels.dtype.kind not in "iuf":
        raise UnusableVolume(f"voxels of type {voxels.dtype}; expected integers or floats")
    with np.errstate(over="ignore"):
        voxels = voxels.astype(np.float32).clip(0)
    if not np.isfinite(voxels).all():
        raise UnusableVolume("contains voxels that are not finite (NaN or infinite)")
    return voxels


def _resample(voxels: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """float32 (176, 208, 32): the stack of a volume that `shift` moves onto `mni_template`."""
    affine = t88_to_mni()
    matrix, offset = affine[:3, :3], affine[:3, 3] + affine[:3, 2] * ORIGIN[2] - shift
    shape = (*SHAPE[:2], len(HEIGHTS))
    # A spline through all of the volume takes seconds, so it is cropped to the stack's height.
    heights = [matrix[2] @ corner for corner in itertools.product(*((0, n) for n in shape))]
    lowest = max(0, int(min(heights) + offset[2]) - SPLINE_MARGIN)
    voxels = voxels[:, :, lowest : int(max(heights) + offset[2]) + SPLINE_MARGIN]
    offset[2] -= lowest
    stack = ndimage.affine_transform(voxels, matrix, offset, shape, order=3)
    inside = ndimage.affine_transform(voxels > 0, matrix, offset, shape, order=0)
    return np.where(inside, stack, 0)


def _as_uint8(stack: np.ndarray) -> np.ndarray:
    """uint8 (32, height, width): 255 for the brightest voxel of the stack; uint8 is unchanged."""
    brightest = stack.max((1, 2))
    if not brightest.all():
        black = HEIGHTS[brightest == 0]
        raise UnusableVolume(f"black {black[0]} mm above the commissures; expected brain there")
    if stack.dtype == np.uint8:
        return stack
    return np.rint(255 * (stack / brightest.max()).clip(0, 1)).astype(np.uint8)


def _size(numbers: Iterable[float]) -> str:
    """Numbers as in '176 x 208'."""
    return " x ".join(f"{number:g}" for number in numbers)


def _pose_of(voxels: np.ndarray, template: Callable[[], np.ndarray]) -> tuple[tuple, tuple, tuple]:
    """The orientation and position in which a brain has the largest correlation with a template.

    Args:
        voxels: uint8 or float32, three axes, 1 mm; a masked brain.
        template: `mni_template` or `t88_template`.

    Returns:
        axes, flipped and shift. `np.flip(voxels.transpose(axes), flipped)` has the template's
        orientation; a shift by `shift` mm (left, front, up; to 4 mm) moves it onto the template.

    Raises:
        UnusableVolume: no orientation has a correlation clearly above that of the others.
    """
    shape = (FRAME // _COARSE,) * 3
    fixed = fft.rfftn(_reduced_template(template, _COARSE), shape)
    coarse = _reduce(voxels, _COARSE)
    poses = {}
    for axes in itertools.permutations(range(3)):
        for flipped in ((), (1,), (2,), (1, 2)):  # the other four exchange left and right
            moving = np.flip(coarse.transpose(axes), flipped)
            correlation = fft.irfftn(fixed * np.conj(fft.rfftn(moving, shape)), shape)
            peak = np.array(np.unravel_index(correlation.argmax(), shape))
            shift = np.where(peak < shape[0] // 2, peak, peak - shape[0]) * _COARSE
            poses[axes, flipped, tuple(shift.tolist())] = float(correlation.max())
    best, second = sorted(poses, key=poses.get, reverse=True)[:2]
    if poses[best] < max(MIN_CORRELATION, MIN_RATIO * poses[second]):
        raise UnusableVolume(
            f"resembles the MNI152 template in no orientation (correlation {poses[best]:.2f}); "
            "expected a masked brain in atlas space"
        )
    return best


def _shift_onto_template(voxels: np.ndarray) -> np.ndarray:
    """mm (left, front, up) by which to move a brain onto `mni_template`, to a quarter of a mm."""
    pair = np.zeros((2, *(FRAME // _FINE,) * 3), np.float32)
    volumes = _reduced_template(mni_template, _FINE), _reduce(voxels, _FINE)
    for grid, volume in zip(pair, volumes):
        grid[tuple(slice(size) for size in volume.shape)] = volume
    return _FINE * phase_cross_correlation(*pair, upsample_factor=8, normalization=None)[0]


def _brain_box(stack: np.ndarray) -> np.ndarray:
    """The bounding box of the brain, resized to (32, 40, 40) and normalised."""
    brain = (stack > BRAIN_INTENSITY * stack.max()).any(0)
    if not brain.any():
        return np.zeros(_BOX, np.float32)
    rows, columns = ndimage.find_objects(brain.astype(int))[0]
    return _normalise(resize(stack[:, rows, columns], _BOX, anti_aliasing=True))


@functools.cache
def _reduced_template(template: Callable[[], np.ndarray], block: int) -> np.ndarray:
    return _reduce(template(), block)


def _reduce(voxels: np.ndarray, block: int) -> np.ndarray:
    """The means of blocks of `block` voxels a side, normalised."""
    return _normalise(downscale_local_mean(voxels, (block,) * 3))


def _normalise(voxels: np.ndarray) -> np.ndarray:
    """float32 of unit norm, 0 outside of the brain and 0 on average inside.

    So a correlation compares tissue with tissue, not outline with outline.
    """
    brain = voxels > BRAIN_INTENSITY * voxels.max()
    if not brain.any():
        return np.zeros(voxels.shape, np.float32)
    centred = np.where(brain, voxels - voxels[brain].mean(), 0).astype(np.float32)
    return centred / max(float(np.linalg.norm(centred)), 1e-6)


@functools.cache
def mni_template() -> np.ndarray:
    """The masked MNI152 template, float32 (197, 233, 189): to the left, to the front, up; 1 mm."""
    return datasets.load_mni152_template(resolution=1).get_fdata(dtype=np.float32)[::-1].clip(0)


@functools.cache
def t88_template() -> np.ndarray:
    """The MNI152 template in the frame of T88_111, float32 (176, 208, 176)."""
    affine = t88_to_mni()
    return ndimage.affine_transform(mni_template(), affine[:3, :3], affine[:3, 3], SHAPE, order=1)


def t88_to_mni() -> np.ndarray:
    """Affine (4, 4) from a voxel of T88_111 to a voxel of `mni_template`.

    It is the affine of the synthetic cohort's stack, which was fitted to real slices.
    """
    cos, sin = np.cos(STACK_PITCH), np.sin(STACK_PITCH)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) * STACK_SPACING
    affine[:3, 3] = MNI_ORIGIN + STACK_CENTRE - affine[:3, :3] @ (ORIGIN + STACK_MIDDLE)
    return affine
