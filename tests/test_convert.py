"""Other forms of OASIS: what comes out of them, what is refused, and what a kill leaves."""

import contextlib
import csv
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import stat
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from oasis_helpers import __main__, cohort, convert, load_slices, slab
from oasis_helpers.data import LAYOUT_FOLDER, SPLITS, SliceDataError

ROWS, COLUMNS = slice(24, 232), slice(40, 216)  # a volume's part of the frame
CASES = {2: "train", 5: "train", 98: "validate", 110: "test"}  # of the cohort


@pytest.fixture(scope="module")
def pngs(cohort_root):
    """{case: the 32 files of a cohort subject}"""
    return {
        case: [
            cohort_root / LAYOUT_FOLDER / f"keras_png_slices_{split}" / name
            for name in (f"case_{case:03d}_slice_{index}.nii.png" for index in range(32))
        ]
        for case, split in CASES.items()
    }


def volume_of(files):
    """uint8 (176, 208, 176): the template's brain, and in its slab the 32 slices of a subject."""
    voxels = (slab._t88_template() * 230).astype("uint8")
    levels = np.stack([np.asarray(Image.open(file)) for file in files])
    voxels[:, :, 75:107] = levels[:, ROWS, COLUMNS].transpose(2, 1, 0)
    return voxels


@pytest.fixture(scope="module")
def volumes(pngs):
    """{case: the volume of a cohort subject}"""
    return {case: volume_of(files) for case, files in pngs.items()}


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
    stem = f"OAS1_{case:04d}_MR{session}"
    return f"{stem}/PROCESSED/MPRAGE/T88_111/{stem}_mpr_n4_anon_111_t88_masked_gfc"


@pytest.fixture(scope="module")
def disc(volumes, tmp_path_factory):
    """A disc of OASIS-1 with four subjects, one of them scanned twice, in grey levels."""
    folder = tmp_path_factory.mktemp("oasis") / "disc1"
    for case, voxels in volumes.items():
        write_t88(folder, case, voxels)
    write_t88(folder, 5, volumes[2], session=2)
    (folder / "OAS1_0002_MR1" / "OAS1_0002_MR1.txt").write_text("AGE: 55")
    return folder


def write_t88(folder, case, voxels, session=1):
    stem = folder / t88_name(case, session)
    stem.parent.mkdir(parents=True)
    for ending, content in zip(("hdr", "img"), analyze(voxels)):
        stem.with_name(f"{stem.name}.{ending}").write_bytes(content)


@pytest.fixture(scope="module")
def deal(tmp_path_factory):
    """The cohort's split of the four subjects, as a table."""
    path = tmp_path_factory.mktemp("deal") / "splits.csv"
    rows = [f"{case:03d},{split}" for case, split in CASES.items()]
    path.write_text("\n".join(["case,split", *rows]))
    return path


@pytest.fixture(scope="module")
def whole(disc, deal, tmp_path_factory):
    """The disc's conversion, never interrupted."""
    return convert.convert(disc, tmp_path_factory.mktemp("whole") / "slices", splits=deal)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("OASIS_CACHE_DIR", str(tmp_path / "cache"))


def faults(*arguments, **settings):
    with pytest.raises(SliceDataError) as caught:
        convert.convert(*arguments, **settings)
    return caught.value.faults


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --------------------------------------------------------------------------------- official OASIS-1


def test_volumes_give_back_the_slices_that_they_were_made_of(whole, pngs):
    layout = whole / LAYOUT_FOLDER
    for case, files in pngs.items():
        for file in files:
            copy = layout / f"keras_png_slices_{CASES[case]}" / file.name
            assert copy.read_bytes() == file.read_bytes()
    assert len(list(layout.glob("*/*"))) == 32 * len(CASES), "the second session is left out"
    for split in SPLITS:
        subjects = set(load_slices(whole, split, size=64).subjects.tolist())
        assert subjects == {case for case, dealt in CASES.items() if dealt == split}


@pytest.mark.long
def test_all_volumes_end_with_the_table_of_the_slices_they_were_made_of(
    cohort_root, tmp_path, monkeypatch
):
    """The table is what `make run` prints in the end."""
    dealt = ["case,split"]
    for split in SPLITS:
        slices = cohort_root / LAYOUT_FOLDER / f"keras_png_slices_{split}"
        for first in sorted(slices.glob("case_*_slice_0.nii.png")):
            case = int(first.name.split("_")[1])
            files = [slices / f"case_{case:03d}_slice_{index}.nii.png" for index in range(32)]
            write_t88(tmp_path / "disc", case, volume_of(files))
            dealt.append(f"{case:03d},{split}")
    (tmp_path / "splits.csv").write_text("\n".join(dealt))
    made = convert.convert(tmp_path / "disc", tmp_path / "made", splits=tmp_path / "splits.csv")
    tables = []
    for root in (cohort_root.resolve(), made):
        monkeypatch.setenv("OASIS_DATA_DIR", str(root))
        with pytest.warns(UserWarning, match="not the test slices"):
            tables.append(__main__.summary().replace(str(root), "the folder"))
    assert tables[0] == tables[1]


def test_manifest_says_where_every_slice_comes_from(whole, disc):
    with open(whole / convert.MANIFEST, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {
        path.relative_to(whole).as_posix() for path in (whole / LAYOUT_FOLDER).rglob("*.png")
    }
    for row in rows[::17]:
        assert row["sha256"] == hashlib.sha256((whole / row["file"]).read_bytes()).hexdigest()
        source = disc / row["source"]
        assert row["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert row["level"] == f"z {row['slice']} mm" and row["session"] == "MR1"
        assert source.name.startswith(f"OAS1_0{row['case']}_MR1")
    plan = json.loads((whole / convert.PLAN).read_text())
    assert plan["remarks"] == ["1 repeat sessions left out."]
    assert Image.open(whole / convert.MONTAGE).size == (8 * 128, 4 * 128)
    assert convert._read_splits(whole / convert.MANIFEST) == CASES, "a manifest deals too"


def test_disc_archives_and_sixteen_bits(volumes, tmp_path):
    """Slices come back from 16-bit voxels too, where their brightest pixel was white."""
    source = tmp_path / "download"
    source.mkdir()
    for number, cases in enumerate(((2, 5), (98, 110)), start=1):
        path = source / f"oasis_cross-sectional_disc{number}.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            for case in cases:
                both = zip(("hdr", "img"), analyze(volumes[case].astype("int16") * 12))
                for ending, content in both:
                    member = tarfile.TarInfo(f"disc{number}/{t88_name(case)}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    made = convert.convert(source, tmp_path / "slices")
    white = 0
    for path in (made / LAYOUT_FOLDER).rglob("*.png"):
        _, case, _, index = path.name.split(".")[0].split("_")
        pixels = np.asarray(Image.open(path))
        original = volumes[int(case)][:, :, 75 + int(index)].T
        white += original.max() == 255
        expected = np.rint(255 * (original / original.max()))
        assert np.abs(pixels[ROWS, COLUMNS] - expected).max() <= (original.max() < 255)
        assert pixels.max() == 255 and pixels.shape == (256, 256)
    assert white > 40


@pytest.mark.parametrize(
    ("axes", "flipped"),
    [((0, 1, 2), (1,)), ((0, 1, 2), (2,)), ((0, 1, 2), (1, 2)), ((2, 1, 0), ()), ((1, 2, 0), (0,))],
)
def test_volumes_that_lie_otherwise_are_turned(volumes, axes, flipped):
    stored = np.flip(volumes[2].transpose(axes), flipped)
    levels, remark = slab.cut_t88(*analyze(stored))
    straight = volumes[2][:, :, 75:107].transpose(2, 1, 0)
    either = [np.array_equal(levels, side) for side in (straight, straight[:, :, ::-1])]
    assert any(either), "left and right may differ, as a brain doesn't tell them"
    assert remark.startswith("turned")


def nan(voxels):
    voxels = voxels.astype("float32")
    voxels[80, 100, 90] = np.nan
    return voxels


def noise(voxels):
    return np.random.default_rng(0).integers(0, 255, voxels.shape).astype("uint8")


def without_a_level(voxels):
    voxels = voxels.copy()
    voxels[:, :, 80] = 0
    return voxels


def with_sides(voxels, side):
    """A header that lies about the volume's sides (three 16-bit numbers from byte 42 on)."""
    header = bytearray(analyze(voxels)[0])
    header[42:48] = np.full(3, side, ">i2").tobytes()
    return bytes(header)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda v: analyze(v[:, :, :160]),
            "176 x 208 x 160 voxels; expected 176 x 208 x 176",
        ),
        (lambda v: analyze(v, (2, 2, 2)), "voxels of 2 x 2 x 2 mm; expected 1 x 1 x 1 mm"),
        (
            lambda v: analyze(np.stack([v, v], -1)),
            "176 x 208 x 176 x 2 voxels; expected three axes",
        ),
        (lambda v: analyze(nan(v)), "voxels that are no number"),
        (lambda v: analyze(noise(v)), "resembles the MNI152 template in no position"),
        (lambda v: analyze(np.zeros_like(v)), "resembles the MNI152 template in no position"),
        (lambda v: analyze(np.roll(v, 24, 2)), r"lies 0 x 0 x -24 mm \(left, front, up\) beside"),
        (lambda v: analyze(without_a_level(v)), "black 5 mm above the commissures"),
        (lambda v: (analyze(v)[0], analyze(v)[1][:-1000]), "not a readable volume"),
        (lambda v: (b"header", analyze(v)[1]), "not a readable volume"),
        (lambda v: (with_sides(v, 30000), analyze(v)[1]), "its header promises 30000 x 30000 x"),
        (lambda v: (with_sides(v, -5), analyze(v)[1]), "not a readable volume|voxels; expected"),
    ],
)
def test_unusable_volumes(volumes, damage, sentence):
    with pytest.raises(slab.UnusableVolume, match=sentence):
        slab.cut_t88(*damage(volumes[2]))


def test_faults_of_all_volumes_in_one_pass(disc, volumes, tmp_path, monkeypatch):
    source = tmp_path / "disc1"
    shutil.copytree(disc, source)
    damaged = [source / f"{t88_name(case)}.img" for case in (2, 98)]
    whole = [path.read_bytes() for path in damaged]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-5])
    found = faults(source, tmp_path / "slices")
    assert len(found) == 2 and all("not a readable volume (Expected" in fault for fault in found)
    assert not (tmp_path / "slices").exists()
    for path, content in zip(damaged, whole):
        path.write_bytes(content)
    drawn = []
    cut = slab.cut_t88
    monkeypatch.setattr(slab, "cut_t88", lambda *files: drawn.append(1) or cut(*files))
    repaired = convert.convert(source, tmp_path / "slices")
    assert len(drawn) == 2, "what was whole is not made again"
    assert len(list((repaired / LAYOUT_FOLDER).rglob("*.png"))) == 128
    (source / f"{t88_name(2)}.img").unlink()
    (source / f"{t88_name(98)}.hdr").unlink()
    damaged[1].with_name("copy_" + damaged[1].name).write_bytes(b"")
    (source / f"{t88_name(5)}.hdr").write_bytes(b"")
    found = faults(source, tmp_path / "other")
    assert len(found) == 4 and not list(tmp_path.glob("other*")), "of names and contents alike"
    assert f"{t88_name(2)}.hdr: its .img is missing; both are needed." in found
    assert f"{t88_name(98)}.img: its .hdr is missing; both are needed." in found
    assert f"{t88_name(5)}.hdr: the file is empty; download it again." in found
    assert any(fault.endswith("_t88_masked_gfc.img; keep one.") for fault in found)


def test_slab_is_the_cohorts():
    """One geometry: voxels of T88_111 lie in MNI space where the cohort's slices do."""
    points = cohort._slab_points()  # voxels of the cropped template, to the right
    index = np.array([3, 20, 30])  # level, row, column of the cohort's box
    level, row, column = index
    voxel = [column + cohort.COLUMNS.start - 40, row + cohort.ROWS.start - 24, level + 75, 1]
    ours = (slab._t88_to_mni() @ voxel)[:3] - slab.MNI_ORIGIN
    theirs = points[:, level, row, column] - cohort.ORIGIN
    np.testing.assert_allclose(ours[1:], theirs[1:], atol=0.01)
    np.testing.assert_allclose(ours[0], theirs[0], atol=0.55)  # the frame's middle is 87.5


def test_slab_is_where_real_slices_lie(real_root):
    """Levels of the template resemble the real slices of the same number most."""
    test = load_slices(real_root, "test", size=256).images[..., 0]
    mean = test.reshape(-1, 32, 256, 256).mean(0)[10:22, ROWS, COLUMNS]
    template = slab._t88_template().transpose(2, 1, 0)
    for axis in (0, 1):
        likeness = {
            by: np.corrcoef(mean[mean > 0.1], np.roll(template, by, axis)[85:97][mean > 0.1])[0, 1]
            for by in range(-5, 6)
        }
        assert abs(max(likeness, key=likeness.get)) <= 1
    assert slab.lie_of(test.reshape(-1, 32, 256, 256).mean(0)) == (0, 1)


# ------------------------------------------------------------------------------------ neurite-oasis


def neurite(shift):
    """aligned_norm.nii.gz: the template moved (left, front, up), axes left, down, front."""
    voxels = np.zeros((160, 224, 192), "float32")
    brain = slab._mni_template()
    start = np.array([18, 9, 4]) + shift  # of the crop in the template
    part = brain[tuple(slice(max(a, 0), a + n) for a, n in zip(start, voxels.shape))]
    low = np.maximum(-start, 0)
    voxels[tuple(slice(a, a + n) for a, n in zip(low, part.shape))] = part
    stored = voxels[:, :, ::-1].transpose(0, 2, 1)
    affine = np.array([[-1, 0, 0, 80], [0, 0, 1, -112], [0, -1, 0, 96], [0, 0, 0, 1.0]])
    return gzip.compress(nibabel.Nifti1Image(stored, affine).to_bytes(), 1)


def test_neurite_oasis(tmp_path):
    source = tmp_path / "neurite-oasis.v1.0"
    for case, shift in enumerate(([0, 0, 0], [-3, 4, -5], [2, -2, 3]), start=7):
        folder = source / f"OASIS_OAS1_{case:04d}_MR1"
        folder.mkdir(parents=True)
        (folder / "aligned_norm.nii.gz").write_bytes(neurite(shift))
        (folder / "norm.nii.gz").write_bytes(b"not looked at")
    made = convert.convert(source, tmp_path / "slices", seed=3)
    expected = slab._t88_template()[:, :, 75:107].transpose(2, 1, 0)
    for case in (7, 8, 9):
        (folder,) = {path.parent for path in made.rglob(f"case_{case:03d}_*")}
        for level in (0, 15, 31):
            pixels = np.asarray(Image.open(folder / f"case_{case:03d}_slice_{level}.nii.png"))
            assert np.corrcoef(pixels[ROWS, COLUMNS].ravel(), expected[level].ravel())[0, 1] > 0.99
            assert pixels.max() == 255 and (pixels[:24] == 0).all()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no gzip", "not a readable volume"),
        (gzip.compress(b"no NIfTI"), "not a readable volume"),
        (
            gzip.compress(nibabel.Nifti1Image(np.zeros((9, 9, 9), "f4"), np.eye(4)).to_bytes()),
            "no pos",
        ),
        (gzip.compress(bytes(slab.LARGEST + 2), 1), "unpacks to more than 256 MiB"),
    ],
    ids=["bytes", "gzip", "black", "bomb"],
)
def test_unusable_neurite_volumes(content, sentence):
    with pytest.raises(slab.UnusableVolume, match=sentence):
        slab.cut_neurite(content)


def test_neurite_volume_whose_header_errs():
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(neurite([0, 0, 0])))
    wrong = nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([-1, 1, 1, 1.0]))
    with pytest.raises(slab.UnusableVolume, match="doesn't lie as the header says"):
        slab.cut_neurite(gzip.compress(wrong.to_bytes(), 1))


# ------------------------------------------------------------------------------ pictures in folders


@pytest.fixture
def pictures(pngs, tmp_path):
    """Three subjects' slices as JPEGs in class folders, lying on their side, numbered 101 to 132
    among others; one has a second scan and a second session."""
    source = tmp_path / "imagesoasis"
    for case, group in ((2, "Non Demented"), (98, "Mild Dementia"), (110, "Mild Dementia")):
        (source / group).mkdir(parents=True, exist_ok=True)
        for number in range(100, 134):
            file = pngs[case][min(max(number - 101, 0), 31)]
            pixels = np.rot90(np.asarray(Image.open(file))[ROWS, COLUMNS])
            picture = Image.fromarray(pixels).convert("RGB")
            for scan in ("MR1_mpr-1", "MR1_mpr-2", "MR2_mpr-1")[: 3 if case == 2 else 1]:
                picture.save(source / group / f"OAS1_{case:04d}_{scan}_{number}.jpg", quality=95)
    return source


def test_pictures_whose_names_say_the_subject(pictures, pngs, tmp_path):
    made = convert.convert(pictures, tmp_path / "slices")
    remarks = json.loads((made / convert.PLAN).read_text())["remarks"]
    assert remarks[0] == "1 repeat sessions left out."
    assert "Pictures 101 to 132" in remarks[1] and remarks[2] == "Pictures turned by 270 degrees."
    subjects = [set(load_slices(made, split, size=32).subjects.tolist()) for split in SPLITS]
    assert set.union(*subjects) == {2, 98, 110} and sum(map(len, subjects)) == 3
    copy = np.asarray(Image.open(next(made.rglob("case_098_slice_7.nii.png")))).astype(int)
    assert np.abs(copy - np.asarray(Image.open(pngs[98][7]))).mean() < 2


def test_pictures_that_are_missing_or_damaged(pictures, tmp_path):
    (pictures / "Mild Dementia" / "OAS1_0098_MR1_mpr-1_110.jpg").write_bytes(b"no JPEG")
    (pictures / "Mild Dementia" / "OAS1_0110_MR1_mpr-1_120.jpg").write_bytes(b"")
    found = faults(pictures, tmp_path / "slices")
    assert len(found) == 2 and "not a readable image (no known format)" in found[0]
    (pictures / "Mild Dementia" / "OAS1_0110_MR1_mpr-1_120.jpg").write_bytes(b"no JPEG")
    found = faults(pictures, tmp_path / "slices")
    assert len(found) == 2 and all("not a readable image (no known format)" in f for f in found)
    (pictures / "Mild Dementia" / "OAS1_0110_MR1_mpr-1_120.jpg").unlink()
    assert "OAS1_0110_MR1 has no picture number 120" in faults(pictures, tmp_path / "slices")[0]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["train/MildDemented/mildDem0.jpg"], "such as train/MildDemented/mildDem0.jpg) don't say"),
        (["Data/train-00000-of-00001.parquet"], "tables of slices"),
        (["OASIS_OAS1_0001_MR1/slice_norm.nii.gz"], "one coronal slice: get the 3-D archive"),
        (["OASIS_OAS1_0001_MR1/norm.nii.gz"], "norm.nii.gz is not in atlas space"),
        (["a/OAS1_0001_MR1_mpr_n4_anon_111_t88_gfc.hdr"], "with the skull"),
        (["notes.txt"], "1 files, none of them known; expected keras_png_slices_data/"),
        ([], "0 files, none of them known"),
        ([t88_name(1) + ".hdr", "keras_png_slices_train/x"], "holds T88_111 and layout at once"),
    ],
)
def test_sources_that_are_not_understood(names, sentence, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"x")
    (fault,) = faults(source, tmp_path / "slices")
    assert sentence in fault
    assert not list(tmp_path.glob("slices*"))


# ------------------------------------------------------------------------------ the course's layout


def write_zip(path, files, folder="some/where/"):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{folder}{LAYOUT_FOLDER}/{name}", content)
    return path


def layout_of(root, subjects):
    """{name in the layout: content} of the first subjects of each split of a folder of slices."""
    files = {}
    for split in SPLITS:
        folder = root / LAYOUT_FOLDER / f"keras_png_slices_{split}"
        cases = sorted({path.name[:8] for path in folder.iterdir()})[:subjects]
        for path in (path for case in cases for path in sorted(folder.glob(f"{case}_*"))):
            files[f"{folder.name}/{path.name}"] = path.read_bytes()
    return files


def as_png(pixels, mode):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def five_complaints(files, tmp_path):
    """A zip with five files damaged in five ways, over all splits."""
    names = [name for name in files if name.endswith("_slice_9.nii.png")]
    assert len(names) >= 5
    names = [names[0], names[1], names[2], names[-2], names[-1]]
    pixels = np.asarray(Image.open(io.BytesIO(files[names[2]])))
    damaged = [
        (files[names[0]][:4000], "not a readable image (", "truncated"),
        (b"", "not a readable image (the file is empty)", ""),
        (as_png(pixels, "RGBA"), "mode RGBA; expected 8-bit grey", ""),
        (as_png(pixels[:200, :200], "L"), "200 x 200 pixels; the rest of the split is", ""),
        (b"a text, not a picture", "not a readable image (no known format)", ""),
    ]
    files = files | {name: content for name, (content, *_) in zip(names, damaged)}
    path = write_zip(tmp_path / "slices.zip", files)
    found = faults(path, tmp_path / "target")
    assert len(found) == 5
    for name, (_, sentence, word) in zip(names, damaged):
        (fault,) = (fault for fault in found if name in fault)
        assert sentence in fault and word in fault and str(path) in fault
    assert not list(tmp_path.glob("target*"))


def test_five_files_damaged_in_five_ways(cohort_root, tmp_path):
    five_complaints(layout_of(cohort_root, 2), tmp_path)


def test_five_real_files_damaged_in_five_ways(real_root, tmp_path):
    five_complaints(layout_of(real_root, 2), tmp_path)


def test_faults_of_names_and_splits_in_one_pass(cohort_root, tmp_path):
    files = layout_of(cohort_root, 1)
    test = "keras_png_slices_test/case_109_slice_"
    files["keras_png_slices_train/brain.png"] = b""
    files["keras_png_slices_train/case_109_slice_40.nii.png"] = files[f"{test}0.nii.png"]
    files["keras_png_slices_train/case_109_slice_3.nii.png"] = files[f"{test}3.nii.png"]
    files[f"{test}8.nii.png"] = b""
    found = faults(write_zip(tmp_path / "slices.zip", files), tmp_path / "target")
    words = ["the name doesn't parse", "slice index 40", "the file is empty", "both train and test"]
    assert len(found) == 4
    assert all(any(word in fault for fault in found) for word in words)


def test_layout_is_copied_as_it_is(cohort_root, tmp_path):
    files = layout_of(cohort_root, 1)
    path = write_zip(tmp_path / "slices.zip", files | {"keras_png_slices_seg_train/x.png": b"seg"})
    made = convert.convert(path, tmp_path / "slices")
    assert contents(made / LAYOUT_FOLDER) == files
    assert "Orientation checked" in json.loads((made / convert.PLAN).read_text())["remarks"][0]
    again = convert.convert(made, tmp_path / "again")
    assert contents(again / LAYOUT_FOLDER) == files, "what was made is a source too"


def test_layout_upside_down_is_refused(cohort_root, tmp_path):
    turned = {
        name: as_png(np.rot90(np.asarray(Image.open(io.BytesIO(content))), 2), "L")
        for name, content in layout_of(cohort_root, 1).items()
    }
    (fault,) = faults(write_zip(tmp_path / "slices.zip", turned), tmp_path / "target")
    assert "turn them by 180 degrees." in fault


def test_zip_is_no_folder_of_slices(tmp_path):
    path = write_zip(tmp_path / "slices.zip", {})
    with pytest.raises(SliceDataError, match="python -m oasis_helpers convert"):
        load_slices(path, "train")


# ------------------------------------------------------------------------------------ safe archives


def link(name):
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        ("../outside.png", "'../outside.png' climbs out of the archive's folder"),
        ("a/../../outside.png", "climbs out of the archive's folder"),
        ("/etc/outside.png", "'/etc/outside.png' has an absolute path"),
        ("C:/outside.png", "has an absolute path"),
        (link("a/link.png"), "'a/link.png' is a link"),
    ],
)
def test_archives_that_reach_out(member, sentence, tmp_path):
    path = tmp_path / "slices.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"/etc/passwd")
        archive.writestr("../second.png", b"")
    found = faults(path, tmp_path / "target")
    assert sentence in found[0] and "nothing was unpacked" in found[0] and len(found) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["slices.zip"]


def test_tar_archives_that_reach_out(tmp_path):
    path = tmp_path / "disc.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        inside = tarfile.TarInfo("disc1/link.img")
        inside.type, inside.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(inside)
        archive.addfile(tarfile.TarInfo("../climbs.img"))
    found = faults(path, tmp_path / "target")
    assert "is a link" in found[0] and "climbs out" in found[1]


def test_archives_that_declare_too_much(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "bomb.zip", {"keras_png_slices_train/x": bytes(2**20)})
    monkeypatch.setattr(convert, "LARGEST", 2**20 - 1)
    assert "declares 1 MiB, more than 1" in faults(path, tmp_path / "target")[0]
    monkeypatch.setattr(convert, "LARGEST", 2**21)
    monkeypatch.setattr(convert, "LARGEST_IN_ALL", 2**19)
    assert "of files, more than" in faults(path, tmp_path / "target")[0]


def test_archives_that_are_none(tmp_path):
    path = tmp_path / "oasis.tar.gz"
    path.write_bytes(b"moved to another address")
    assert "not a readable archive" in faults(path, tmp_path / "target")[0]
    assert "not there; give a folder" in faults(tmp_path / "nowhere", tmp_path / "target")[0]
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "not there; give a folder" in faults(loop, tmp_path / "target")[0]


def test_links_that_go_in_circles(cohort_root, tmp_path):
    source = tmp_path / "source"
    for name, content in layout_of(cohort_root, 1).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    (source / "circle").symlink_to(source)
    made = convert.convert(source, tmp_path / "target")
    assert len(list(made.rglob("*.nii.png"))) == 96


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_folder_that_may_not_be_read(tmp_path):
    (tmp_path / "source" / "closed").mkdir(parents=True)
    (tmp_path / "source" / "closed").chmod(0)
    assert "closed: can't be listed" in faults(tmp_path / "source", tmp_path / "target")[0]


# ----------------------------------------------------------------------------- the deal, the target


def test_deal_follows_the_seed():
    jobs = [convert.Job(case, "MR1", (), lambda: None) for case in range(1, 417)]
    deals = [
        {job.case: job.split for job in convert._dealt(jobs, seed, None)} for seed in (0, 0, 1)
    ]
    assert deals[0] == deals[1] != deals[2]
    counts = [list(deals[0].values()).count(split) for split in SPLITS]
    assert counts == [332, 42, 42]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("case,split\n1,train\n2,validate\n", "says no split for subject 003; add it."),
        ("case,split\n1,train\n2,train\n3,test", "leaves the split validate empty"),
        ("case,split\n1,train\n1,test\n", "line 3 puts subject 1 into a second split"),
        ("case,split\none,train\n", "line 2 has case 'one' and split 'train'"),
        ("subject,set\n1,train\n", "line 2 has case '' and split None"),
        (None, "not a readable table"),
    ],
)
def test_deals_that_make_no_sense(table, sentence, tmp_path):
    path = tmp_path / "splits.csv"
    if table:
        path.write_text(table)
    jobs = [convert.Job(case, "MR1", (), lambda: None) for case in (1, 2, 3)]
    with pytest.raises(SliceDataError, match=sentence):
        convert._dealt(jobs, 0, path)


def test_two_subjects_are_too_few():
    jobs = [convert.Job(case, "MR1", (), lambda: None) for case in (1, 2)]
    with pytest.raises(SliceDataError, match="2 subjects; expected 3 or more"):
        convert._dealt(jobs, 0, None)


def test_targets_are_never_overwritten(cohort_root, tmp_path):
    path = write_zip(tmp_path / "slices.zip", layout_of(cohort_root, 1))
    made = convert.convert(path, tmp_path / "slices")
    before = {file: file.stat().st_mtime_ns for file in made.rglob("*")}
    assert convert.convert(path, made) == made
    assert {file: file.stat().st_mtime_ns for file in made.rglob("*")} == before
    other = write_zip(tmp_path / "others.zip", layout_of(cohort_root, 2))
    with pytest.raises(FileExistsError, match=r"holds another conversion \(its source, files"):
        convert.convert(other, made)
    next(made.rglob("*_slice_3.nii.png")).unlink()
    with pytest.raises(FileExistsError, match="lacks 1 files of its manifest"):
        convert.convert(path, made)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    for target in (mine, mine / "thesis.txt"):
        with pytest.raises(FileExistsError, match="holds something that no conversion made"):
            convert.convert(path, target)
    assert (mine / "thesis.txt").read_text() == "all of it"
    with pytest.raises(ValueError, match="is inside of"):
        convert.convert(mine, mine / "slices")
    with pytest.raises(ValueError, match="has splits of its own"):
        convert.convert(path, tmp_path / "new", splits=path)
    with pytest.raises(ValueError, match="seed must be 0 or more"):
        convert.convert(path, tmp_path / "new", seed=-1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_killed_and_started_again(disc, deal, whole, tmp_path, monkeypatch):
    target, unfinished = tmp_path / "slices", tmp_path / "slices.unfinished"
    cut = slab.cut_t88
    monkeypatch.setattr(slab, "cut_t88", lambda *files: time.sleep(0.2) or cut(*files))
    process = multiprocessing.get_context("fork").Process(
        target=convert.convert, args=(disc, target), kwargs={"splits": deal}
    )
    process.start()
    while not len(list(unfinished.glob(".records/*.json"))) == 2:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not target.exists()
    with pytest.raises(FileExistsError, match="holds another conversion"):
        convert.convert(disc, target, seed=5)
    first = next(iter(sorted(unfinished.rglob("case_*.png"))))
    first.write_bytes(first.read_bytes()[:100])  # as a crash of the machine may leave it
    with contextlib.chdir(tmp_path):
        assert convert.convert(disc, "slices", splits=deal) == Path("slices")
    assert contents(target) == contents(whole)
    assert not unfinished.exists()


def test_command(cohort_root, tmp_path, monkeypatch, capsys):
    path = write_zip(tmp_path / "slices.zip", layout_of(cohort_root, 1))
    target = str(tmp_path / "slices")
    monkeypatch.setattr(sys, "argv", ["oasis_helpers", "convert", str(path), target])
    __main__.main()
    said = capsys.readouterr().out
    assert "96 slices of 1 / 1 / 1 subjects (train / validate / test)." in said
    assert f"OASIS_DATA_DIR={target} make run" in said
    monkeypatch.setattr(sys, "argv", ["oasis_helpers", "convert", "nowhere", target])
    with pytest.raises(SystemExit, match="nowhere: not there; give a folder"):
        __main__.main()
