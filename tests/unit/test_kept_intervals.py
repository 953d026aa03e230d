"""Every kept interval is Student's: as wide above the mean as below it.

Those of a percentile bootstrap, which are too narrow for few subjects, hardly ever are.
"""

import pytest

from oasis_helpers.data import read_json
from oasis_helpers.pretrained import RESULTS, WEIGHTS

SYMMETRIC = {"ssim", "brain_ssim", "psnr_db", "bits_per_code", "kid", "kid_random", "pairwise_ssim"}
FILES = {path.stem: path for path in RESULTS.glob("*.json")}
FILES |= {path.parent.name: path for path in WEIGHTS.glob("*/scores.json")}


def intervals(content: dict) -> list:
    """All [mean, low, high] in a JSON object, of scores without bounds."""
    found = [value for key, value in content.items() if key in SYMMETRIC and type(value) is list]
    for key, value in content.items():
        if key == "agreement":  # of a stack's thirds
            continue
        parts = value if type(value) is list else [value]
        found += [one for part in parts if type(part) is dict for one in intervals(part)]
    return found


@pytest.mark.parametrize("name", sorted(FILES))
def test_kept_intervals_are_symmetric(name):
    for mean, low, high in intervals(read_json(FILES[name])):
        assert (low + high) / 2 == pytest.approx(mean, abs=2e-4)


def test_there_are_intervals():
    assert len(intervals(read_json(FILES["oasis1"]))) == 37
