"""Sources to convert, made of the synthetic cohort's slices and of the MNI152 template."""

import gzip
import io
import zipfile

import nibabel
import numpy as np
import pytest
from PIL import Image

from oasis_helpers.convert import convert, volumes
from oasis_helpers.data import LAYOUT_FOLDER, SPLITS, SliceDataError

CASES = {2: "train", 5: "train", 98: "validate", 110: "test"}  # subjects of the cohort
ROWS, COLUMNS = slice(24, 232), slice(40, 216)  # of a volume in the frame


def subject_pngs(root, case, split):
    """The 32 files of a subject."""
    folder = root / LAYOUT_FOLDER / f"keras_png_slices_{split}"
    return [folder / f"case_{case:03d}_slice_{index}.nii.png" for index in range(32)]


def volume_of(files):
    """uint8 (176, 208, 176): the template's brain with the 32 slices of a subject."""
    voxels = (volumes.t88_template() * 230).astype("uint8")
    stack = np.stack([np.asarray(Image.open(file)) for file in files])
    voxels[:, :, 75:107] = stack[:, ROWS, COLUMNS].transpose(2, 1, 0)
    return voxels


def analyze(voxels, sides=(1, 1, 1)):
    """The two files of an Analyze volume, big-endian and with a trailing axis, as OASIS's are."""
    voxels = voxels[..., None] if voxels.ndim == 3 else voxels
    header = nibabel.AnalyzeHeader(endianness=">")
    header.set_data_dtype(voxels.dtype)
    image = nibabel.AnalyzeImage(voxels, None, header)
    image.header.set_zooms((*sides, 1))
    files = {part: nibabel.FileHolder(fileobj=io.BytesIO()) for part in ("header", "image")}
    image.to_file_map(files)
    return tuple(holder.fileobj.getvalue() for holder in files.values())


def t88_name(case, session=1):
    """The name that OASIS gives a volume, without its ending."""
    stem = f"OAS1_{case:04d}_MR{session}"
    return f"{stem}/PROCESSED/MPRAGE/T88_111/{stem}_mpr_n4_anon_111_t88_masked_gfc"


def write_t88(folder, case, voxels, session=1):
    """Writes the two files of a volume where a disc of OASIS-1 has them."""
    stem = folder / t88_name(case, session)
    stem.parent.mkdir(parents=True)
    for ending, content in zip(("hdr", "img"), analyze(voxels)):
        stem.with_name(f"{stem.name}.{ending}").write_bytes(content)


def write_disc(folder, volume_of_case):
    """A disc of OASIS-1 with four subjects, one of them in two sessions."""
    for case, voxels in volume_of_case.items():
        write_t88(folder, case, voxels)
    write_t88(folder, 5, volume_of_case[2], session=2)
    (folder / "OAS1_0002_MR1" / "OAS1_0002_MR1.txt").write_text("AGE: 55")
    return folder


def write_split_table(path, split_of=CASES):
    """A CSV file with the split of each subject."""
    rows = [f"{case:03d},{split}" for case, split in split_of.items()]
    path.write_text("\n".join(["case,split", *rows]))
    return path


def neurite(shift):
    """aligned_norm.nii.gz: the template moved (left, front, up), axes left, down, front."""
    voxels = np.zeros((160, 224, 192), "float32")
    start = np.array([18, 9, 4]) + shift  # of the crop in the template
    crop = tuple(slice(max(first, 0), first + n) for first, n in zip(start, voxels.shape))
    brain = volumes.mni_template()[crop]
    low = np.maximum(-start, 0)
    voxels[tuple(slice(first, first + n) for first, n in zip(low, brain.shape))] = brain
    stored = voxels[:, :, ::-1].transpose(0, 2, 1)
    affine = np.array([[-1, 0, 0, 80], [0, 0, 1, -112], [0, -1, 0, 96], [0, 0, 0, 1.0]])
    return gzip.compress(nibabel.Nifti1Image(stored, affine).to_bytes(), 1)


def layout_of(root, subjects):
    """{name in the layout: content} of the first subjects of each split of a folder of slices."""
    files = {}
    for split in SPLITS:
        folder = root / LAYOUT_FOLDER / f"keras_png_slices_{split}"
        cases = sorted({path.name[:8] for path in folder.iterdir()})[:subjects]
        for path in (path for case in cases for path in sorted(folder.glob(f"{case}_*"))):
            files[f"{folder.name}/{path.name}"] = path.read_bytes()
    return files


def write_zip(path, files, folder="some/where/"):
    """A zip archive with a layout in an inner folder."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{folder}{LAYOUT_FOLDER}/{name}", content)
    return path


def write_files(folder, files):
    """Writes {name: content} into a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def as_png(pixels, mode="L"):
    """The bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def contents(folder):
    """{name: content} of all files of a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def faults_of(*arguments, **settings):
    """The sentences with which a source is rejected."""
    with pytest.raises(SliceDataError) as caught:
        convert(*arguments, **settings)
    return caught.value.faults
