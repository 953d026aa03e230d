"""Kept scores of trainings with other seeds are those of the released weights and two more."""

import pytest

from oasis_helpers.data import read_json
from oasis_helpers.pretrained import WEIGHTS
from tools.score import SEED_SCORES
from tools.seeds import headline


@pytest.mark.parametrize("name", ["oasis1", "cohort"])
def test_the_first_seed_is_that_of_the_released_weights(name):
    released = headline(read_json(WEIGHTS / name / "scores.json"))
    scores = read_json(WEIGHTS / name / SEED_SCORES)["scores"]
    assert {score: values[0] for score, values in scores.items()} == released
    assert all(len(values) == 3 for values in scores.values())
