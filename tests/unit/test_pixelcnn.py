"""Both priors: causality at every position, likelihood, conditioning."""

import functools

import keras
import numpy as np
import pytest

from oasis_helpers import pixelcnn
from oasis_helpers.pixelcnn import (
    NO_CONDITION,
    GatedPixelCNN,
    MaskedPixelCNN,
    checked_slice_index,
)
from tests.examples import with_large_weights

K = 12
CODES = np.zeros((2, 4, 4), "int32")


@functools.cache
def masked(grid):
    return with_large_weights(MaskedPixelCNN(K, grid, filters=16))


@functools.cache
def gated(grid):
    options = {"filters": 16, "blocks": 3, "num_heads": 2, "dropout": 0.0}
    return with_large_weights(GatedPixelCNN(K, grid, condition_dropout=0.999, **options))


def which_codes_matter(prior) -> np.ndarray:
    """bool (positions, positions): whether logits change with the code of another position."""
    positions = prior.grid[0] * prior.grid[1]
    codes = np.random.default_rng(0).integers(K, size=positions)
    maps = np.tile(codes, (positions + 1, 1))
    maps[np.arange(positions), np.arange(positions)] = (codes + 5) % K
    maps = maps.reshape(-1, *prior.grid).astype("int32")
    logits = np.asarray(prior((maps, np.full(len(maps), 7))))
    logits = logits.reshape(len(maps), positions, K)
    change = np.abs(logits[:-1] - logits[-1]).max(-1).T
    return change > 1e-5 * np.abs(logits).max()


@pytest.mark.parametrize("make", [masked, gated])
@pytest.mark.parametrize("grid", [(10, 10), (13, 11)])
def test_logits_depend_on_earlier_codes_only(make, grid):
    matters = which_codes_matter(make(grid))
    assert not np.triu(matters).any(), "a position sees itself or a later one"
    seen = matters[np.tril_indices(len(matters), -1)].mean()
    if make is gated:
        assert seen == 1, "the gated prior has a blind spot"
    else:
        assert 0.2 < seen < 0.95, "the stacked masks have no blind spot"


@functools.cache
def neighbour(grid):
    """A prior that takes the slice below and a head's conditions."""
    small = {"filters": 16, "blocks": 3, "num_heads": 2, "dropout": 0.0, "head_bins": 3}
    return with_large_weights(GatedPixelCNN(K, grid, below_dropout=0.3, **small))


def test_the_neighbour_reaches_every_position_and_later_codes_reach_none():
    prior, positions = neighbour((4, 5)), 20
    rng = np.random.default_rng(0)
    codes, below = rng.integers(K, size=(2, positions))
    changed = np.tile(below, (positions + 1, 1))
    changed[np.arange(positions), np.arange(positions)] = (below + 5) % K
    maps = np.tile(codes, (positions + 1, 1)).reshape(-1, 4, 5)
    inputs = prior.inputs_for(maps, 7, changed.reshape(-1, 4, 5))
    logits = np.asarray(prior(inputs)).reshape(positions + 1, positions, K)
    change = np.abs(logits[:-1] - logits[-1]).max(-1)
    rows, columns = np.divmod(np.arange(positions), 5)
    near = np.maximum(*(np.abs(np.subtract.outer(x, x)) for x in (rows, columns))) <= 3
    assert (change[near] > 1e-5).all(), "three convolutions see three positions to every side"
    assert not np.triu(which_codes_matter(prior)).any(), "a position sees itself or a later one"
    assert change[0, -1] > 1e-6, "attention carries what is far away"


def test_what_is_not_given_is_unknown():
    prior, unknown = neighbour((4, 4)), np.full((2, 4, 4), -1)
    plain = prior.log_prob(CODES, [3, 20])
    same = prior.log_prob(CODES, [3, 20], unknown, np.full((2, 4), -1))
    np.testing.assert_array_equal(plain, same)
    logits = prior.predict_on_batch((CODES, np.array([3, 20])))
    expected = prior.predict_on_batch(prior.inputs_for(CODES, [3, 20]))
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    for other in (
        prior.log_prob(CODES, [3, 20], below=CODES),
        prior.log_prob(CODES, [3, 20], conditions=np.zeros((2, 4), int)),
        prior.log_prob(CODES, [3, 20], conditions=np.full((2, 4), 2)),
    ):
        assert np.abs(other - plain).min() > 1e-4


def test_the_neighbour_and_conditions_are_hidden_in_training_only(monkeypatch):
    """Single slices hide their head's conditions more often, so both are seen without the other."""
    prior = neighbour((4, 4))
    below = np.random.default_rng(0).integers(K, size=(256, 4, 4)).astype("int32")
    monkeypatch.setattr(prior, "below_dropout", 0.5)
    given, conditions = map(np.asarray, prior._withheld(below, np.zeros((256, 4), "int32")))
    single, unknown = (given == -1).all((1, 2)), (conditions == -1).all(1)
    assert (given[~single] == below[~single]).all() and (conditions[~unknown] == 0).all()
    assert 0.35 < single.mean() < 0.65
    assert 0.15 < unknown[~single].mean() < 0.45 < unknown[single].mean() < 0.75
    monkeypatch.setattr(prior, "_withheld", None)
    prior(prior.inputs_for(CODES, [3, 20]), training=False)


def test_older_files_have_no_neighbour():
    config = gated((4, 4)).get_config()
    older = {name: config[name] for name in config if not name.startswith(("below", "head_"))}
    again = GatedPixelCNN.from_config(older)
    assert not again.takes_below and not again.head_bins
    shapes = [weight.shape for weight in again.weights]
    assert shapes == [weight.shape for weight in gated((4, 4)).weights]
    assert len(neighbour((4, 4)).weights) == len(shapes) + 1 + 6 + 4 + 1


@pytest.mark.parametrize("make", [masked, gated])
def test_probabilities_of_all_maps_of_a_tiny_grid_sum_to_one(make):
    maps = np.stack(np.meshgrid(np.arange(K), np.arange(K)), -1).reshape(-1, 1, 2)
    log_p = make((1, 2)).log_prob(maps, slice_index=3)
    assert log_p.dtype == np.float32 and log_p.shape == (K * K,)
    assert np.exp(log_p.astype("float64")).sum() == pytest.approx(1, abs=1e-4)


def test_log_prob_in_small_batches_and_of_no_map(prior, monkeypatch):
    maps = np.random.default_rng(1).integers(K, size=(5, 4, 4))
    indices = [0, 8, 16, 24, 31]
    whole = prior.log_prob(maps, indices)
    monkeypatch.setattr(pixelcnn, "BATCH", 2)
    np.testing.assert_allclose(prior.log_prob(maps, indices), whole, rtol=1e-5)
    assert prior.log_prob(maps[:0], 0).shape == (0,)


@pytest.mark.parametrize("make", [masked, gated, neighbour])
def test_a_saved_prior_computes_the_same(make, tmp_path):
    prior = make((4, 4))
    inputs = prior.inputs_for(CODES, np.array([3, 20]))
    prior.save(tmp_path / "prior.keras")
    again = keras.saving.load_model(tmp_path / "prior.keras", compile=False)
    np.testing.assert_allclose(np.asarray(again(inputs)), np.asarray(prior(inputs)), rtol=1e-5)


def test_only_the_gated_prior_uses_the_slice_index():
    for make, uses in ((masked, False), (gated, True)):
        first, last = (make((4, 4)).log_prob(CODES, index) for index in (0, 31))
        assert (not np.array_equal(first, last)) == uses


def test_no_condition_needs_a_prior_that_learnt_it(prior, refused):
    assert np.isfinite(gated((4, 4)).log_prob(CODES, NO_CONDITION)).all()
    refused(lambda: prior.log_prob(CODES, NO_CONDITION), "expected integers from 0")


def test_condition_dropout_hides_indices_in_training_only():
    prior, inputs = gated((4, 4)), (CODES, np.array([3, 20]))
    hidden = np.asarray(prior(inputs, training=True))
    without = np.asarray(prior((CODES, np.array([NO_CONDITION] * 2))))
    np.testing.assert_allclose(hidden, without, rtol=1e-4, atol=1e-4)
    assert not np.allclose(np.asarray(prior(inputs)), hidden, rtol=1e-2)


def test_one_slice_index_or_one_for_each_map():
    assert checked_slice_index(5, 3).tolist() == [5, 5, 5]
    indices = checked_slice_index([0, 31, 7], 3)
    assert indices.tolist() == [0, 31, 7] and indices.dtype == np.int32


LOG_PROB = {
    "grid": (CODES[:, 1:], 0, "shape (2, 3, 4); this prior was trained on (N, 4, 4)."),
    "codes": (CODES + K, 0, "log_prob got codes from 12 to 12; expected 0 to 11: these codes"),
    "index 32": (CODES, 32, "slice_index [32] ...: expected integers from 0 (midbrain) to 31"),
    "index -1": (CODES, -1, "slice_index [-1] ...: expected integers from 0 (midbrain) to 31"),
    "index 1.5": (CODES, 1.5, "slice_index [1.5] ...: expected integers from 0 (midbrain) to 31"),
    "too many": (CODES, [0, 1, 2], "slice_index has shape (3,) for 2 maps; give one integer for"),
}


OTHERS = {
    "below": (
        {"below": CODES[0]},
        "below has shape (4, 4) and values [0] ...; expected (2, 4, 4),",
    ),
    "code": ({"below": CODES + K}, "and values [12] ...; expected (2, 4, 4), and 0 to 11, or -1"),
    "half": ({"below": CODES + 0.5}, "and values [0.5] ...; expected (2, 4, 4), and 0 to 11, or"),
    "conditions": ({"conditions": [1, 2]}, "conditions has shape (2,) and values [1 2] ...;"),
    "bin": ({"conditions": np.full((2, 4), 3)}, "expected (2, 4), and 0 to 2, or -1 where unknown"),
}


@pytest.mark.parametrize(("options", "words"), OTHERS.values(), ids=OTHERS)
def test_log_prob_refuses_other_neighbours_and_conditions(refused, options, words):
    refused(lambda: neighbour((4, 4)).log_prob(CODES, 0, **options), words)


def test_a_prior_without_neighbours_refuses_one(prior, refused):
    words = "This prior was trained without the slice below; leave it out."
    refused(lambda: prior.log_prob(CODES, 0, below=CODES), words)


@pytest.mark.parametrize(("codes", "index", "words"), LOG_PROB.values(), ids=LOG_PROB)
def test_log_prob_refuses(prior, refused, codes, index, words):
    refused(lambda: prior.log_prob(codes, index), words)


def test_fit_needs_targets(refused):
    prior, inputs = GatedPixelCNN(K, (4, 4), 4, 1, 1), (CODES, np.array([3, 20]))
    prior.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    words = "fit needs targets: call fit((codes, slice_index), codes)."
    refused(lambda: prior.fit(inputs, verbose=0), words)


def test_weights_that_are_no_numbers_are_refused(refused):
    prior = GatedPixelCNN(K, (4, 4), 4, 1, 1)
    prior.head.bias.assign(np.ones(prior.head.bias.shape))  # features above 0 for any weights
    prior.logits.bias.assign(np.full(K, 3e38))  # features add to it
    prior.logits.kernel.assign(np.full(prior.logits.kernel.shape, 3e38))
    refused(lambda: prior.log_prob(CODES, 0), "log_prob's logits hold NaN or infinity: the weights")
    prior.logits.bias.assign([np.nan, *np.zeros(K - 1)])
    refused(lambda: prior.log_prob(CODES, 0), "The prior's weights hold NaN or infinity: the")


@pytest.mark.parametrize("kind", ["int8", "uint8", "uint64"])
@pytest.mark.parametrize("make", [masked, gated])
def test_codes_may_have_any_integer_type(make, kind):
    prior = make((4, 4))
    np.testing.assert_array_equal(prior.log_prob(CODES.astype(kind), 3), prior.log_prob(CODES, 3))


SIZES = {
    "filters": ({"filters": 2, "num_heads": 4}, "filters_per_head = 0: expected a whole number"),
    "heads": ({"num_heads": 0}, "num_heads = 0: expected a whole number, 1 or more."),
    "blocks": ({"blocks": 0}, "blocks = 0: expected a whole number, 1 or more."),
    "K": ({"num_embeddings": 0}, "num_embeddings = 0: expected a whole number, 1 or more."),
    "grid": ({"grid": (0, 4)}, "height of the grid = 0: expected a whole number, 1 or more."),
}


@pytest.mark.parametrize(("options", "words"), SIZES.values(), ids=SIZES)
def test_sizes_that_it_cannot_take_are_refused(refused, options, words):
    small = {"num_embeddings": K, "grid": (4, 4), "filters": 4, "blocks": 1, "num_heads": 1}
    refused(lambda: GatedPixelCNN(**small | options), words)
