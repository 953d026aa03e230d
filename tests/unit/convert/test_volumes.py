"""Volumes: the slices cut from them, their orientation, and the unusable ones."""

import gzip

import nibabel
import numpy as np
import pytest

from oasis_helpers import load_slices
from oasis_helpers.convert import volumes
from tests.unit.convert.examples import COLUMNS, ROWS, analyze, neurite


@pytest.mark.parametrize(
    ("axes", "flipped"),
    [((0, 1, 2), (1,)), ((0, 1, 2), (2,)), ((0, 1, 2), (1, 2)), ((2, 1, 0), ()), ((1, 2, 0), (0,))],
)
def test_volumes_in_other_orientations_are_turned(volume_of_case, axes, flipped):
    stored = np.flip(volume_of_case[2].transpose(axes), flipped)
    stack, remark = volumes.stack_from_t88(*analyze(stored))
    expected = volume_of_case[2][:, :, 75:107].transpose(2, 1, 0)
    matches = [np.array_equal(stack, side) for side in (expected, expected[:, :, ::-1])]
    assert any(matches), "left and right may differ: a brain does not show them"
    assert remark.startswith("turned")


def with_nan(voxels):
    voxels = voxels.astype("float32")
    voxels[80, 100, 90] = np.nan
    return voxels


def with_black_plane(voxels):
    voxels = voxels.copy()
    voxels[:, :, 80] = 0
    return voxels


def header_with_sides(voxels, side):
    """A header with wrong sides of the volume (three 16-bit numbers from byte 42 on)."""
    header = bytearray(analyze(voxels)[0])
    header[42:48] = np.full(3, side, ">i2").tobytes()
    return bytes(header)


def header_with(voxels, byte, content):
    header = bytearray(analyze(voxels)[0])
    header[byte : byte + len(content)] = content
    return bytes(header), analyze(voxels)[1]


NOISE = np.random.default_rng(0)
UNUSABLE = {
    "small": (
        lambda v: analyze(v[:, :, :160]),
        "176 x 208 x 160 voxels; expected 176 x 208 x 176",
    ),
    "2 mm": (lambda v: analyze(v, (2, 2, 2)), "voxels of 2 x 2 x 2 mm; expected 1 x 1 x 1 mm"),
    "four axes": (
        lambda v: analyze(np.stack([v, v], -1)),
        "176 x 208 x 176 x 2 voxels; expected three axes",
    ),
    "nan": (lambda v: analyze(with_nan(v)), "voxels that are not finite"),
    "noise": (
        lambda v: analyze(NOISE.integers(0, 255, v.shape).astype("uint8")),
        "resembles the MNI152 template in no orientation",
    ),
    "black": (
        lambda v: analyze(np.zeros_like(v)),
        "resembles the MNI152 template in no orientation",
    ),
    "moved": (
        lambda v: analyze(np.roll(v, 24, 2)),
        r"the brain is 0 x 0 x -24 mm \(left, front, up\) from its place",
    ),
    "black plane": (
        lambda v: analyze(with_black_plane(v)),
        "black 5 mm above the commissures",
    ),
    "truncated": (lambda v: (analyze(v)[0], analyze(v)[1][:-1000]), "not a readable volume"),
    "no header": (lambda v: (b"header", analyze(v)[1]), "not a readable volume"),
    "huge": (
        lambda v: (header_with_sides(v, 30000), analyze(v)[1]),
        "its header promises 30000 x 30000 x",
    ),
    "no depth": (lambda v: header_with(v, 46, bytes(2)), "0 voxels; expected three axes"),
    "unknown type": (lambda v: header_with(v, 70, b"\x7f\x7f"), "not a readable volume"),
    "no bytes": (lambda v: (b"", b""), "not a readable volume"),
    "too large for 32 bits": (
        lambda v: analyze(np.where(v, 1e300, 0)),
        "voxels that are not finite",
    ),
    "negative": (
        lambda v: (header_with_sides(v, -5), analyze(v)[1]),
        "not a readable volume|voxels; expected",
    ),
}


@pytest.mark.parametrize(("damage", "sentence"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_unusable_volumes_are_rejected(volume_of_case, damage, sentence):
    with pytest.raises(volumes.UnusableVolume, match=sentence):
        volumes.stack_from_t88(*damage(volume_of_case[2]))


def black_nifti():
    return nibabel.Nifti1Image(np.zeros((9, 9, 9), "f4"), np.eye(4)).to_bytes()


def without_first_axis(nifti):
    """The header's affine (rows of four 32-bit numbers from byte 280 on) loses an axis."""
    return nifti[:280] + bytes(16) + nifti[296:]


def nifti_with(byte, content):
    """A volume of 9 voxels a side with other bytes in its header."""
    nifti = black_nifti()
    return gzip.compress(nifti[:byte] + content + nifti[byte + len(content) :])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (nifti_with(42, bytes(2)), "not a readable volume"),
        (nifti_with(42, b"\xff\xff"), "not a readable volume"),
        (nifti_with(108, np.float32(1e30).tobytes()), "not a readable volume"),
        (nifti_with(108, np.float32(np.nan).tobytes()), "not a readable volume"),
        (nifti_with(280, np.float32([np.nan] * 4).tobytes()), "not a readable volume"),
        (b"no gzip", "not a readable volume"),
        (gzip.compress(b"no NIfTI"), "not a readable volume"),
        (gzip.compress(black_nifti()), "in no orientation"),
        (gzip.compress(without_first_axis(black_nifti())), "not a readable volume"),
        (gzip.compress(bytes(volumes.MAX_BYTES + 2), 1), "unpacks to more than 256 MiB"),
    ],
    ids="no_side negative far nan nan_affine bytes gzip black singular_affine bomb".split(),
)
def test_unusable_neurite_volumes_are_rejected(content, sentence):
    with pytest.raises(volumes.UnusableVolume, match=sentence):
        volumes.stack_from_neurite(content)


def test_neurite_volume_with_a_wrong_header_is_rejected():
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(neurite([0, 0, 0])))
    wrong = nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([-1, 1, 1, 1.0]))
    with pytest.raises(volumes.UnusableVolume, match="orientation is not that of the header"):
        volumes.stack_from_neurite(gzip.compress(wrong.to_bytes(), 1))


def test_slice_0_goes_through_both_commissures():
    to_t88 = np.linalg.inv(volumes.t88_to_mni())
    anterior, posterior = ([*(volumes.MNI_ORIGIN + mm), 1] for mm in ([0, 3, -4.5], [0, -25, -2.5]))
    np.testing.assert_allclose((to_t88 @ anterior)[:3], [87, 123, 75], atol=0.3)
    np.testing.assert_allclose((to_t88 @ posterior)[2], 75, atol=0.3)


@pytest.mark.parametrize("root", ["cohort_root", "real_root"])
def test_slices_have_the_position_of_the_template(root, request):
    """The template resembles the slices of the same index most, unmoved in the plane."""
    test = load_slices(request.getfixturevalue(root), "test", size=256).images[..., 0]
    mean = test.reshape(-1, 32, 256, 256).mean(0)
    part = mean[10:22, ROWS, COLUMNS]
    brain = part > 0.1
    template = volumes.t88_template().transpose(2, 1, 0)
    for axis in (0, 1):
        correlation = {
            shift: np.corrcoef(part[brain], np.roll(template, shift, axis)[85:97][brain])[0, 1]
            for shift in range(-5, 6)
        }
        assert abs(max(correlation, key=correlation.get)) <= 1
    assert volumes.orientation_of(mean) == (0, 1)
