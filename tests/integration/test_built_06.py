"""The loop and the cached row built in notebook 06 equal the package's; its game counts right."""

import time
from pathlib import Path

import ipywidgets as widgets
import keras
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest

from oasis_helpers import sample_codes
from oasis_helpers.causal import CausalConv2D
from oasis_helpers.pixelcnn import GatedPixelCNN
from tests.examples import run_cells


@pytest.fixture(scope="module")
def small_prior():
    keras.utils.set_random_seed(0)
    return GatedPixelCNN(7, (4, 6), filters=8, blocks=2, num_heads=2)


@pytest.mark.parametrize("seed", [0, 3])
def test_built_06_loop(small_prior, seed):
    indices = np.array([4, 16, 28])
    names = {
        "softmax": softmax, "time": time, "SEED": seed, "prior": small_prior,
        "first_indices": indices, "probabilities": np.array([0.5, 0.3, 0.2]),
        "first_codes": sample_codes(small_prior, 3, indices, seed=seed),
    }  # fmt: skip
    names = run_cells("06_generation", ["one-code", "step", "loop", "loop-equal"], names)
    assert np.array_equal(names["loop_codes"], names["first_codes"])
    assert len(np.unique(names["loop_codes"])) > 3


def test_built_06_cached_row(small_prior):
    codes = np.random.default_rng(0).integers(7, size=(3, 4, 6), dtype="int32")
    names = {"prior": small_prior, "GRID": small_prior.grid, "first_codes": codes}
    names = run_cells("06_generation", ["cache-layer", "cached-row"], names)
    assert np.abs(names["whole_row"] - names["row_bias"]).max() > 1e-3
    assert np.allclose(np.stack(names["outputs"], 1), names["whole_row"], atol=1e-5)

    layer = CausalConv2D(5, (1, 4), shift=True)  # another width, and a bias that is not 0
    inputs = np.random.default_rng(1).normal(size=(3, 1, 6, 2)).astype("float32")
    layer.build(inputs.shape)
    layer.bias.assign(np.arange(5))
    kernel, bias = map(keras.ops.convert_to_numpy, (layer.kernel, layer.bias))
    cached = names["CachedRow"](kernel[0], bias, count=3)
    outputs = []
    for column in range(6):
        outputs.append(cached.output())
        cached.remember(inputs[:, 0, column])
    expected = keras.ops.convert_to_numpy(layer(inputs))[:, 0]
    assert np.allclose(np.stack(outputs, 1), expected, atol=1e-5)


def test_the_game_wants_all_answers_and_writes_a_line_for_each_round(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"widgets": widgets, "binomtest": binomtest, "time": time, "Path": Path}
    names |= {"WEIGHTS": "cohort", "is_real": np.arange(12) < 4}
    for game_round, said_real, right in ((1, 12, 4), (2, 3, 11)):
        names = run_cells("06_generation", ["game-answers"], names | {"game_round": game_round})
        for number, answer in enumerate(names["answers"]):
            names["score_button"].click()
            assert names["verdict"].value == f"Number {number + 1} has no answer yet."
            answer.value = "real" if number < said_real else "sample"
        names["score_button"].click()
        low, high = binomtest(right, 12).proportion_ci()
        assert f"{right} of 12" in names["verdict"].value
        assert f"interval: {100 * low:.0f} to {100 * high:.0f} %." in names["verdict"].value
        assert names["score_button"].disabled
    heading, *lines = Path("reader_test.csv").read_text(encoding="utf-8").splitlines()
    rows = [dict(zip(heading.split(","), line.split(","), strict=True)) for line in lines]
    assert [(row["round"], row["right"]) for row in rows] == [("1", "4"), ("2", "11")]
