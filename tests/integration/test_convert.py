"""Whole conversions: of archives, of neurite-oasis, of all the cohort, and killed ones."""

import contextlib
import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oasis_helpers.convert import convert, output, volumes
from oasis_helpers.data import LAYOUT_FOLDER, SPLITS
from tests.unit.convert import examples


@pytest.fixture(scope="module")
def volume_of_case(cohort_root):
    return {
        case: examples.volume_of(examples.subject_pngs(cohort_root, case, split))
        for case, split in examples.CASES.items()
    }


def test_importing_the_package_imports_neither_tensorflow_nor_nilearn():
    code = """
import sys
import oasis_helpers.convert
print([name for name in ("tensorflow", "keras", "nilearn", "nibabel") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_disc_archives_with_16_bit_voxels(volume_of_case, tmp_path):
    """Slices of 16-bit voxels come back with one scale for the whole head."""
    source = tmp_path / "download"
    source.mkdir()
    for number, cases in enumerate(((2, 5), (98, 110)), start=1):
        path = source / f"oasis_cross-sectional_disc{number}.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            for case in cases:
                voxels = volume_of_case[case].astype("int16") * 12
                for ending, content in zip(("hdr", "img"), examples.analyze(voxels)):
                    name = f"disc{number}/{examples.t88_name(case)}.{ending}"
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    target = convert(source, tmp_path / "slices")
    for path in (target / LAYOUT_FOLDER).rglob("*.png"):
        _, case, _, index = path.name.split(".")[0].split("_")
        pixels = np.asarray(Image.open(path))
        stack = volume_of_case[int(case)][:, :, 75:107].astype(float)
        expected = np.rint(255 * stack[:, :, int(index)].T / stack.max())
        difference = np.abs(pixels[examples.ROWS, examples.COLUMNS] - expected)
        assert difference.max() <= 1 and pixels.shape == (256, 256)
        assert pixels.max() < 255 or stack[:, :, int(index)].max() == stack.max()


def test_neurite_oasis_is_moved_onto_the_template(tmp_path):
    source = tmp_path / "neurite-oasis.v1.0"
    for case, shift in enumerate(([0, 0, 0], [-3, 4, -5], [2, -2, 3]), start=7):
        folder = source / f"OASIS_OAS1_{case:04d}_MR1"
        folder.mkdir(parents=True)
        (folder / "aligned_norm.nii.gz").write_bytes(examples.neurite(shift))
        (folder / "norm.nii.gz").write_bytes(b"not used")
    target = convert(source, tmp_path / "slices", seed=3)
    expected = volumes.t88_template()[:, :, 75:107].transpose(2, 1, 0)
    for case in (7, 8, 9):
        name = f"case_{case:03d}_slice_{{}}.nii.png"
        paths = [next(target.rglob(name.format(index))) for index in range(32)]
        stack = np.stack([np.asarray(Image.open(path)) for path in paths])
        assert len(stack) == 32 and stack.max() == 255 and (stack[:, :24] == 0).all()
        for pixels, slice_of_template in zip(stack, expected):
            region = pixels[examples.ROWS, examples.COLUMNS]
            assert np.corrcoef(region.ravel(), slice_of_template.ravel())[0, 1] > 0.99


SLOW_CONVERSION = """
import sys, time
from oasis_helpers.convert import convert, output
write = output.write_subject
output.write_subject = lambda *args: write(*args) or time.sleep(0.5)
convert(sys.argv[1], sys.argv[2], splits=sys.argv[3])
"""


def test_a_killed_conversion_ends_with_the_same_files(volume_of_case, tmp_path):
    disc = examples.write_disc(tmp_path / "disc1", volume_of_case)
    table = examples.write_split_table(tmp_path / "splits.csv")
    uninterrupted = convert(disc, tmp_path / "uninterrupted", splits=table)
    target, unfinished = tmp_path / "slices", tmp_path / "slices.unfinished"
    # No fork: tqdm's lock would stay with the killed process.
    process = subprocess.Popen([sys.executable, "-c", SLOW_CONVERSION, disc, target, table])
    while len(output.read_manifest(unfinished)) < 2 * 32:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not target.exists()
    with pytest.raises(FileExistsError, match="holds another conversion"):
        convert(disc, target, seed=5)
    first = min(unfinished.rglob("case_*.png"))
    first.write_bytes(first.read_bytes()[:100])  # as a crash of the machine may leave it
    with contextlib.chdir(tmp_path):
        assert convert(disc, "slices", splits=table) == Path("slices")
    assert examples.contents(target) == examples.contents(uninterrupted)
    assert not unfinished.exists()


@pytest.mark.long
def test_volumes_of_the_cohort_give_back_all_its_slices(cohort_root, tmp_path):
    split_of = {}
    for split in SPLITS:
        folder = cohort_root / LAYOUT_FOLDER / f"keras_png_slices_{split}"
        for first in sorted(folder.glob("case_*_slice_0.nii.png")):
            case = int(first.name.split("_")[1])
            split_of[case] = split
            files = examples.subject_pngs(cohort_root, case, split)
            examples.write_t88(tmp_path / "disc", case, examples.volume_of(files))
    table = examples.write_split_table(tmp_path / "splits.csv", split_of)
    target = convert(tmp_path / "disc", tmp_path / "slices", splits=table)
    layouts = (examples.contents(root / LAYOUT_FOLDER) for root in (target, cohort_root))
    assert next(layouts) == next(layouts)
