"""Shipped weights compute today what they computed at commit a0083c0, before names and files moved.

The priors of `cohort` and `oasis1` are newer: for them, it is what they computed when released.
`python tests/integration/test_unchanged.py` wrote `unchanged/*.npz` beside it at that commit. Codes
of real slices are kept as hashes, one a slice, and their decoded pictures as a few projections: no
real slice and no reconstruction of one can be made from them.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from oasis_helpers import load_pretrained, sample_codes

KEPT = Path(__file__).parent / "unchanged"
NAMES = sorted(path.stem for path in KEPT.glob("*.npz"))
LOADED = "cohort", "oasis1"  # by notebooks where nobody chooses others
MAPS = 64


def digests(maps: np.ndarray) -> np.ndarray:
    """uint64 (N,): a hash of each map."""
    hashes = (hashlib.sha256(np.int32(one).tobytes()).digest() for one in maps)
    return np.array([int.from_bytes(one[:8], "big") for one in hashes], dtype="uint64")


def projected(pictures: np.ndarray) -> np.ndarray:
    """float64 (N, 4): inner products with four random directions of length 1."""
    flat = pictures.reshape(len(pictures), -1).astype("float64")
    directions = np.random.default_rng(0).normal(size=(flat.shape[1], 4))
    return flat @ (directions / np.linalg.norm(directions, axis=0))


def computed(name: str, root: Path) -> dict[str, np.ndarray]:
    """What is compared for one set of weights."""
    models = load_pretrained(name)
    test = models.load_slices(root, "test")
    codes = models.vqvae.encode(test.images)
    values = {"codes": digests(codes), "decoded": projected(models.vqvae.decode(codes))}
    if models.prior:
        sampled = sample_codes(models.prior, MAPS, seed=0)
        values |= {
            "log_prob": models.prior.log_prob(codes, test.slices),
            "sampled": sampled.astype("uint8"),
            "sampled_decoded": projected(models.vqvae.decode(sampled)),
            "sampled_log_prob": models.prior.log_prob(sampled, np.arange(MAPS) // 2),
        }
    return values


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (name not in LOADED)) for name in NAMES],
)
def test_shipped_weights_compute_what_they_did(name, request):
    root = request.getfixturevalue("cohort_root" if name.startswith("cohort") else "real_root")
    with np.load(KEPT / f"{name}.npz", allow_pickle=False) as kept:
        before, now = dict(kept), computed(name, root)
    assert before.keys() == now.keys()
    # Another processor may round a vector that lies between two entries to the other one.
    same = before["codes"] == now["codes"]
    assert same.mean() > 0.99
    np.testing.assert_allclose(now["decoded"][same], before["decoded"][same], atol=1e-6)
    if "sampled" in before:
        tolerance = {"rtol": 0, "atol": 1e-4 * before["sampled"][0].size}  # 1e-4 nats a code
        np.testing.assert_allclose(now["log_prob"][same], before["log_prob"][same], **tolerance)
        equal = (before["sampled"] == now["sampled"]).all(axis=(1, 2))
        assert equal.mean() > 0.95
        for figure, bounds in (
            ("sampled_decoded", {"atol": 1e-6}),
            ("sampled_log_prob", tolerance),
        ):
            np.testing.assert_allclose(now[figure][equal], before[figure][equal], **bounds)


if __name__ == "__main__":
    cohort, real = Path("data/cohort"), Path(os.environ["OASIS_DATA_DIR"])
    for folder in sorted(Path("data/weights").iterdir()):
        root = cohort if folder.name.startswith("cohort") else real
        np.savez_compressed(KEPT / f"{folder.name}.npz", **computed(folder.name, root))
        print(folder.name)
