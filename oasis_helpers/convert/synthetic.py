"""The course's default data: a synthetic cohort of brain slices in OASIS's folder layout.

OASIS's terms forbid passing its pictures on, so the course makes its own brains. Each subject is
a random deformation of the MNI152 average brain that nilearn carries inside its package: nothing
is downloaded and nobody's scan is used. What the slices share with the OASIS-1 slices of the
course's own set is their geometry (Talairach space, 1 mm pixels, back of the head at the top,
slice 0 at the midbrain, slice 31 at the top of the ventricles), the one atlas mask around every
brain, and the range of ventricle sizes, sulcal widths and grey levels.

Source of the template: MNI ICBM152 nonlinear symmetric, release 2009a; Fonov et al., Unbiased
average age-appropriate atlases for pediatric studies, NeuroImage 54:313-327, 2011,
doi:10.1016/j.neuroimage.2010.07.033.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

import filelock
import numpy as np
from nilearn import datasets
from PIL import Image
from scipy import ndimage
from scipy.interpolate import make_interp_spline
from tqdm.auto import tqdm

from oasis_helpers.data import LAYOUT_FOLDER as FOLDER
from oasis_helpers.data import SLICES_PER_SUBJECT as SLICES
from oasis_helpers.data import SPLITS, write_json

SUBJECTS = 96, 12, 12  # in training, validation, test
RECORD = "cohort.json"
MADE_BY = "oasis_helpers.cohort"  # the first version's name, so that its cohorts stay valid
VERSION = 1  # of the pixels: raise it whenever the same seed gives others
MAX_SUBJECTS = 999  # case_NNN
MAX_WORKERS = 8  # a subject in the making holds about 100 MB

FRAME = 256  # pixels a side
ROWS, COLUMNS = slice(36, 220), slice(52, 204)  # the part of the frame that a brain can reach
BOX = (SLICES, ROWS.stop - ROWS.start, COLUMNS.stop - COLUMNS.start)

# Where the axial stack is in the template: MNI axes, x to the right, y to the front, z up, in mm.
CROP = (slice(20, 178), slice(20, 218), slice(50, 122))  # all that it can contain, in 1 mm voxels
ORIGIN = np.array([98, 134, 72]) - [part.start for part in CROP]  # voxel of MNI 0, 0, 0 in it
STACK_CENTRE = np.array([0.0, -16.0, 11.8])  # MNI mm, middle of the frame and of the 32 slices
STACK_SPACING = np.array([1.036, 1.044, 0.956])  # MNI mm a column, a row, a slice: z -3.0 to 26.6
STACK_PITCH = -0.07  # radians about x, from MNI's horizontal to Talairach's

# Shape. Random fields are sampled on a coarse grid and enlarged.
SPACING = 4  # pixels
WARPS = ((14.0, 2.2), (7.0, 1.9), (4.0, 1.0))  # Gaussian sigma and standard deviation, both mm
CORE_WARP = 0.33  # fraction of the warps that the deep nuclei get; they differ less than folds do
OUTLINE_JITTER = ((12.0, 0.3),)  # mm, mm; the real outline hardly differs between subjects
TURN = 0.012  # radians about each axis, standard deviation
STRETCH = 0.012  # of each axis, standard deviation
PUSH = (-2.0, 7.5)  # mm by which the ventricles' walls move outwards, youngest to most atrophied
PUSH_RANGE, PUSH_RANGE_INSIDE = 15.0, 3.0  # mm from the wall over which that fades
OPEN_WITHIN = 3.0  # mm inside the moved wall from where on there is nothing but fluid

# Tissue is one number: 0 fluid, 0.5 grey matter, 1 white matter.
T1_FLUID, T1_WHITE = 0.425, 0.875  # the template's T1 there; grey is 0.65
FOLD_SIGMA, FOLD_STRENGTH = 2.4, 0.12  # voxels, tissue: folds that each subject has alone
FLUID_BELOW = (0.16, 0.40)  # the tissue where fluid becomes grey, youngest to most atrophied
WHITE_ABOVE = 0.83  # the tissue where grey becomes white
THRESHOLD_SPREAD = ((8.0, 0.06),)  # mm, tissue: how both vary over the brain
RIM, RIM_WIDTH = 0.3, 1.5  # tissue, mm: fluid between the cortex and the mask
EDGE = 0.23  # tissue over which one becomes the other

# Grey levels, 0 to 255: mean and standard deviation between subjects.
FLUID_LEVEL, GREY_LEVEL, WHITE_LEVEL = (34, 5), (130, 10), (230, 6)
BIAS = ((24.0, 0.05),)  # mm, relative: the smooth bias field
TEXTURE, TEXTURE_SIGMA = 3.2, 0.8  # grey levels, pixels: fine grain
NOISE = (2.0, 5.0)  # grey levels, range of Rician sigma


class Template(NamedTuple):
    """What every subject is made from, float32.

    One volume of the template, then maps in the stack's box of (32, 184, 152) voxels.
    """

    tissue: np.ndarray  # (158, 198, 72): 0 fluid, 0.5 grey, 1 white
    points: np.ndarray  # (3, ...), voxel of that volume under each voxel of the stack
    cortex: np.ndarray  # 0 to 1, where folds may differ between subjects
    depth: np.ndarray  # mm inside the brain mask, negative outside
    rim: np.ndarray  # tissue that fluid takes away under the mask's edge
    freedom: np.ndarray  # fraction of the random warps that a place gets
    wall: np.ndarray  # mm to the ventricles' wall, negative inside them
    outwards: np.ndarray  # (3, ...), the direction away from the ventricles


def make_cohort(
    root: str | os.PathLike,
    subjects: tuple[int, int, int] = SUBJECTS,
    seed: int = 0,
    workers: int | None = None,
) -> pathlib.Path:
    """Write a synthetic cohort in OASIS's folder layout, or find it already written.

    Makes `<root>/keras_png_slices_data/keras_png_slices_{train,validate,test}/` with files
    `case_NNN_slice_K.nii.png` (256 x 256, 8-bit grey, K = 0 ... 31) and `<root>/cohort.json`.
    Subjects are numbered from 1 through all splits, so none is in two. All is written beside
    root and moved there when complete: an interrupted run leaves nothing behind, and of two
    processes that ask for the same cohort at once, one makes it and the other waits.

    Args:
        root: folder to make; may exist if it is empty.
        subjects: number of subjects to train, validate and test on; 999 in all at most.
        seed: non-negative; the same seed gives the same pixels whatever the number of workers.
        workers: threads; None takes one a processor, 8 at most.

    Returns:
        root, as a path.

    Raises:
        ValueError: subjects, seed or workers out of range.
        FileExistsError: root holds anything but this very cohort. Nothing is overwritten.
    """
    root = pathlib.Path(root)
    subjects = tuple(int(count) for count in subjects)
    if len(subjects) != 3 or min(subjects) < 0 or not 1 <= sum(subjects) <= MAX_SUBJECTS:
        raise ValueError(
            f"subjects must be three counts (train, validate, test), none negative, 1 to "
            f"{MAX_SUBJECTS} in all, not {subjects}."
        )
    if workers is None:
        workers = min(os.cpu_count() or 1, MAX_WORKERS)
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, or None, not {workers}.")
    _check_seed(seed)

    if _is_made(root, subjects, seed):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    # Another process that asks for the same cohort waits here, and then finds it.
    with filelock.FileLock(root.parent / f".{root.name}.lock"):
        for scrap in root.parent.glob(f".{root.name}-*"):  # a killed process left it
            shutil.rmtree(scrap, ignore_errors=True)
        if not _is_made(root, subjects, seed):
            with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
                unfinished = pathlib.Path(scratch, root.name)
                _write_cohort(unfinished, subjects, seed, workers)
                if root.is_dir():
                    root.rmdir()  # refuses unless it is empty
                unfinished.rename(root)
    return root


def make_subject(subject: int, seed: int = 0) -> np.ndarray:
    """Draw one synthetic subject's slices.

    Args:
        subject: the subject's number, 1 or more.
        seed: the cohort's seed, non-negative. The slices depend on these two alone.

    Returns:
        uint8 (32, 256, 256), 0 to 255, exactly 0 outside the brain and at least 1 inside it.
        Axial slices from the midbrain up; the back of the head is at the top.

    Raises:
        ValueError: subject below 1, or seed negative.
    """
    if subject < 1:
        raise ValueError(f"subject must be 1 or more, not {subject}.")
    _check_seed(seed)
    rng = np.random.default_rng([seed, subject])
    template = _load_template()
    # Mostly the large ventricles and the wide sulci come together, as they do with age.
    age = rng.beta(1.2, 1.7)
    ventricles, sulci = np.clip(age + rng.normal(0, 0.15, 2), 0, 1)

    # Points are where a voxel looks for its tissue: looking inwards moves the walls outwards.
    moved = np.float32(np.interp(ventricles, (0, 1), PUSH)) * _fade(template.wall)
    points = _deform(template, rng) - moved * template.outwards
    tissue = ndimage.map_coordinates(template.tissue, points, order=1, mode="nearest")
    tissue += FOLD_STRENGTH * template.cortex * _folds(rng)
    tissue -= template.rim
    # Looking further in than a thin horn is wide would find the brain on its other side.
    tissue *= np.clip((template.wall - moved + OPEN_WITHIN) / 1.5, 0, 1)
    levels = _grey_levels(tissue, sulci, rng)
    brain = template.depth + _smooth_field(OUTLINE_JITTER, rng) > 0
    slices = np.zeros((SLICES, FRAME, FRAME), np.uint8)
    slices[:, ROWS, COLUMNS] = np.where(brain, np.clip(np.rint(levels), 1, 255), 0)
    return slices


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}.")


@functools.cache
def _load_template() -> Template:
    """Prepare nilearn's MNI152 maps; once a process, about 4 s."""
    t1 = datasets.load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    grey = datasets.load_mni152_gm_template(resolution=1).get_fdata(dtype=np.float32)
    brain = datasets.load_mni152_brain_mask(resolution=1).get_fdata() > 0
    t1, grey, brain = (volume[CROP] for volume in (t1, grey, brain))
    x, y, z = np.ogrid[tuple(slice(-o, n - o) for o, n in zip(ORIGIN, t1.shape, strict=True))]

    tissue = np.clip((t1 - T1_FLUID) / (T1_WHITE - T1_FLUID), 0, 1.2)
    # An average of 152 heads is blurred; this undoes some of it.
    tissue += tissue - ndimage.gaussian_filter(tissue, 2.0)
    # A subject's brain fills the mask: beyond the template's edge its cortex goes on.
    nearest = ndimage.distance_transform_edt(
        ~ndimage.binary_erosion(brain, iterations=2), return_distances=False, return_indices=True
    )
    tissue = tissue[tuple(nearest)]
    # Half axes in mm of an ellipsoid around the basal ganglia and the thalamus.
    deep_nuclei = (x / 36) ** 2 + ((y + 8) / 42) ** 2 + ((z - 4) / 22) ** 2
    cortex = np.clip(2.5 * ndimage.gaussian_filter(grey, 3.0), 0, 1)
    cortex *= np.clip((np.sqrt(deep_nuclei) - 0.9) / 0.25, 0, 1)

    wall = ndimage.gaussian_filter(_signed_distance(_find_ventricles(t1, x, y, z)), 2.0)
    points = _stack_points()
    sample = functools.partial(ndimage.map_coordinates, coordinates=points, order=1, mode="nearest")
    outwards = np.stack([sample(component) for component in np.gradient(wall)])
    cortex = cortex.astype(np.float32)
    freedom = CORE_WARP + (1 - CORE_WARP) * sample(ndimage.gaussian_filter(cortex, 3.0))
    depth = -sample(_signed_distance(brain))
    rim = RIM * np.exp(-((np.maximum(depth, 0) / RIM_WIDTH) ** 2))
    return Template(tissue, points, sample(cortex), depth, rim, freedom, sample(wall), outwards)


def _find_ventricles(t1: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Mask of the lateral and third ventricles: dark voxels within bounds, in MNI mm.

    The bounds leave out the insula, the fissure between the hemispheres and the cistern over the
    midbrain.
    """
    side = np.abs(x)
    bounds = (side < 38) & (y > -58) & (y < 34) & (z > -14) & (z < 34)
    insula = (side > 22) & (y > -24)
    fissure = ((side < 14) & (y < -42)) | ((side < 5) & ((z > 20) | (y > 20)))
    cistern = (side < 18) & (y < -30) & (z < 6)
    return (t1 < 0.55) & bounds & ~(insula | fissure | cistern)


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance in voxels from a mask's edge, float32, negative inside it."""
    outside = ndimage.distance_transform_edt(~mask)
    return (outside - ndimage.distance_transform_edt(mask)).astype(np.float32)


def _stack_points() -> np.ndarray:
    """The template voxel under each voxel of the stack's box, float32 (3, 32, 184, 152)."""
    k, row, column = np.mgrid[:SLICES, ROWS, COLUMNS].astype(np.float32)
    middle = (FRAME - 1) / 2
    x = (column - middle) * STACK_SPACING[0]
    y = (row - middle) * STACK_SPACING[1]
    z = (k - (SLICES - 1) / 2) * STACK_SPACING[2]
    cos, sin = np.cos(STACK_PITCH), np.sin(STACK_PITCH)
    points = np.stack([x, cos * y - sin * z, sin * y + cos * z])
    return points + (STACK_CENTRE + ORIGIN).astype(np.float32)[:, None, None, None]


def _deform(template: Template, rng: np.random.Generator) -> np.ndarray:
    """Template points of one subject's voxels, float32 (3, 32, 184, 152).

    A small affine change about the stack's middle, and smooth warps at several scales.
    """
    middle = (STACK_CENTRE + ORIGIN)[:, None]
    spin = rng.normal(0, TURN, 3)
    affine = np.array([[0, -spin[2], spin[1]], [spin[2], 0, -spin[0]], [-spin[1], spin[0], 0]])
    affine += np.eye(3) + np.diag(rng.normal(0, STRETCH, 3))
    points = affine.astype(np.float32) @ template.points.reshape(3, -1)
    points = (points + (middle - affine @ middle).astype(np.float32)).reshape(3, *BOX)
    for axis in range(3):
        points[axis] += template.freedom * _smooth_field(WARPS, rng)
    return points


def _fade(wall: np.ndarray) -> np.ndarray:
    """Fraction of the ventricles' growth that a place moves by, from its distance to their wall."""
    return np.exp(-((np.where(wall > 0, wall / PUSH_RANGE, wall / PUSH_RANGE_INSIDE)) ** 2))


def _folds(rng: np.random.Generator) -> np.ndarray:
    """Random stripes of unit variance as wide as cortical folds, float32 (32, 184, 152)."""
    fine = _smooth_field(((FOLD_SIGMA, 1.0),), rng, spacing=2)
    stripes = fine - ndimage.gaussian_filter(fine, 1.5 * FOLD_SIGMA)
    return stripes / stripes.std()


def _grey_levels(tissue: np.ndarray, sulci: float, rng: np.random.Generator) -> np.ndarray:
    """What a scanner makes of the tissue: grey levels, float32, not yet clipped."""
    fluid, grey, white = (rng.normal(*level) for level in (FLUID_LEVEL, GREY_LEVEL, WHITE_LEVEL))
    fluid_below = np.interp(sulci, (0, 1), FLUID_BELOW)
    levels = fluid
    for threshold, step in ((fluid_below, grey - fluid), (WHITE_ABOVE, white - grey)):
        local = np.float32(threshold) + _smooth_field(THRESHOLD_SPREAD, rng)
        levels = levels + np.float32(step / 2) * (1 + np.tanh((tissue - local) / EDGE))
    levels *= 1 + _smooth_field(BIAS, rng)
    grain = ndimage.gaussian_filter(rng.standard_normal(BOX, np.float32), TEXTURE_SIGMA)
    levels += TEXTURE / grain.std() * grain
    sigma = np.float32(rng.uniform(*NOISE))
    real, quadrature = sigma * rng.standard_normal((2, *BOX), np.float32)
    return np.hypot(levels + real, quadrature)


def _smooth_field(
    scales: tuple[tuple[float, float], ...], rng: np.random.Generator, spacing: int = SPACING
) -> np.ndarray:
    """Gaussian random field over the stack's box, float32 (32, 184, 152).

    The sum of one field for each (kernel's sigma in voxels, standard deviation), sampled with one
    value every `spacing`.
    """
    coarse = [(size - 1) // spacing + 2 for size in BOX]
    pad = int(np.ceil(3 * max(sigma for sigma, _ in scales) / spacing))
    total = np.zeros([size + 2 * pad for size in coarse], np.float32)
    for sigma, spread in scales:
        noise = rng.standard_normal(total.shape, np.float32)
        smooth = ndimage.gaussian_filter(noise, sigma / spacing, mode="wrap", truncate=3.0)
        # What smoothing takes from white noise's standard deviation in three dimensions.
        total += spread * (2 * np.sqrt(np.pi) * sigma / spacing) ** 1.5 * smooth
    inner = total[tuple(slice(pad, -pad) for _ in coarse)]
    layers, rows, columns = (
        _enlarger(n, size, spacing) for n, size in zip(coarse, BOX, strict=True)
    )
    # einsum, not matmul: BLAS starts threads of its own, which crowd out ours.
    total = np.einsum("zrc,kz->krc", inner, layers)
    return np.einsum("khc,wc->khw", np.einsum("krc,hr->khc", total, rows), columns)


@functools.cache
def _enlarger(coarse: int, fine: int, spacing: int) -> np.ndarray:
    """Matrix (fine, coarse), float32, of cubic spline interpolation at every 1 / spacing."""
    spline = make_interp_spline(np.arange(coarse), np.eye(coarse), k=3)
    return spline(np.arange(fine) / spacing).astype(np.float32)


def _write_cohort(root: pathlib.Path, subjects: tuple[int, ...], seed: int, workers: int) -> None:
    """Write every slice and, last, the record."""
    splits = np.repeat(SPLITS, subjects)
    for split in SPLITS:
        (root / FOLDER / f"keras_png_slices_{split}").mkdir(parents=True)
    _load_template()  # before the threads, that it is made once

    def write_subject(subject: int) -> None:
        folder = root / FOLDER / f"keras_png_slices_{splits[subject - 1]}"
        for k, image in enumerate(make_subject(subject, seed)):
            Image.fromarray(image).save(folder / f"case_{subject:03d}_slice_{k}.nii.png")

    pool = ThreadPoolExecutor(workers)
    try:
        jobs = [pool.submit(write_subject, subject + 1) for subject in range(len(splits))]
        for job in tqdm(as_completed(jobs), "synthetic cohort", len(jobs), unit="subject"):
            job.result()
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted run stops after the subjects in hand
    write_json(root / RECORD, _record(subjects, seed), indent=2)


def _record(subjects: tuple[int, ...], seed: int) -> dict:
    """What `cohort.json` says: parameters first, then what the slices are."""
    return {
        "made_by": MADE_BY,
        "version": VERSION,
        "subjects": list(subjects),
        "seed": seed,
        "what": "Synthetic brain slices: random deformations of the MNI152 template; no OASIS data",
        "source": "MNI ICBM152 2009a nonlinear symmetric, as nilearn ships it (Fonov et al. 2011)",
    }


def is_cohort(root: str | os.PathLike) -> bool:
    """Whether a folder, or the one around it, is a copy of the cohort that `make_cohort` makes."""
    folder = pathlib.Path(os.path.realpath(os.path.expanduser(root)))
    records = (path / RECORD for path in (folder, folder.parent))
    try:
        made = json.loads(next(path.read_text("utf-8") for path in records if path.is_file()))
        wanted = _record(SUBJECTS, 0)
        return all(
            made[name] == wanted[name] for name in ("made_by", "version", "subjects", "seed")
        )
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return False


def _is_made(root: pathlib.Path, subjects: tuple[int, ...], seed: int) -> bool:
    """True if root holds this very cohort, False if there is nothing; else FileExistsError."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    advice = "nothing was changed: give another folder, or move that one away and try again."
    try:
        record = json.loads((root / RECORD).read_text("utf-8"))
        made_by_us = record["made_by"] == MADE_BY
    except (OSError, ValueError, KeyError, TypeError):
        made_by_us = False
    if not made_by_us:
        raise FileExistsError(
            f"{root} holds something that make_cohort did not make (no valid {RECORD}); {advice}"
        )
    asked = _record(subjects, seed)
    parameters = ("version", "subjects", "seed")
    if any(record.get(name) != asked[name] for name in parameters):
        had, want = (", ".join(f"{n} {r.get(n)}" for n in parameters) for r in (record, asked))
        raise FileExistsError(f"{root} holds another cohort ({had}, not {want}); {advice}")
    slices = sum(1 for _ in root.glob(f"{FOLDER}/*/case_*_slice_*.nii.png"))
    if slices != SLICES * sum(subjects):
        raise FileExistsError(
            f"{root} holds {slices} slices where its {RECORD} promises "
            f"{SLICES * sum(subjects)}; {advice}"
        )
    return True
