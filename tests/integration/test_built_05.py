"""The layers and the prior built in notebook 05 equal the package's, with the same weights."""

import numpy as np
import pytest

from oasis_helpers.causal import CausalAttention, GatedBlock, MaskedConv2D
from oasis_helpers.pixelcnn import GatedPixelCNN
from tests.examples import run_cells, with_large_weights

K, GRID = 20, (6, 5)


@pytest.fixture(scope="module")
def built_05():
    given = {"picture": np.eye(5)}
    given |= {"CausalAttention": CausalAttention, "K": K, "GRID": GRID, "POSITIONS": 30}
    cells = "my-masked-conv", "shifts", "my-gate", "my-gated-block", "my-prior"
    return run_cells("05_pixelcnn_prior", cells, given)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.parametrize("side", [1, 3, 7])
@pytest.mark.parametrize("kind", ["A", "B"])
def test_built_05_masked_convolution(built_05, kind, side):
    mine, packaged = built_05["MyMaskedConv2D"](6, side, kind), MaskedConv2D(6, side, kind)
    inputs = noise(2, *GRID, 3)
    mine(inputs), packaged(inputs)
    with_large_weights(mine)
    packaged.set_weights(mine.get_weights())
    np.testing.assert_allclose(mine(inputs), packaged(inputs), atol=1e-4)
    np.testing.assert_array_equal(mine.mask, packaged.mask)


@pytest.mark.parametrize(("radius", "shift"), [(2, True), (1, False), (3, False)])
def test_built_05_gated_block(built_05, radius, shift):
    mine, packaged = built_05["MyGatedBlock"](4, radius, shift), GatedBlock(4, radius, shift)
    inputs = noise(2, *GRID, 4), noise(2, *GRID, 4)[::-1], noise(2, 4)
    mine(*inputs), packaged(*inputs)
    with_large_weights(mine)
    packaged.set_weights(mine.get_weights())
    for one, other in zip(mine(*inputs), packaged(*inputs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.fixture(scope="module")
def built_prior(built_05):
    inputs = np.random.default_rng(1).integers(K, size=(3, *GRID)), np.array([0, 9, 31])
    mine = built_05["MyPrior"](filters=8, heads=2)
    mine(inputs)
    return with_large_weights(mine), inputs


def test_built_05_prior(built_prior):
    mine, inputs = built_prior
    packaged = GatedPixelCNN(K, GRID, filters=8, blocks=1, num_heads=2)
    packaged.set_weights(mine.get_weights())
    np.testing.assert_allclose(mine(inputs), packaged(inputs), rtol=1e-3, atol=1e-3)


def test_built_05_attention(built_prior):
    mine, inputs = built_prior
    _, horizontal = mine.stacks(*inputs)
    source = {"GRID": GRID, "POSITIONS": 30, "my_prior": mine}
    source |= {"test_codes": inputs[0], "SHOWN_SLICE": 9}
    source["test"] = type("Test", (), {"slices": inputs[1]})
    attend = run_cells("05_pixelcnn_prior", ("attention-hand",), source)["attend"]
    weights, added = attend(mine.attention, horizontal)
    np.testing.assert_allclose(horizontal + added, mine.attention(horizontal), atol=1e-3)
    assert np.triu(np.asarray(weights), 1).max() < 1e-6  # nothing later
