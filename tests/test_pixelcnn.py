"""The second stage: causality at every position, likelihood, and exact cached sampling."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from oasis_helpers import load_pretrained, sample_codes
from experiments.compiled_sampler import CompiledSampler
from oasis_helpers.layers import CausalConv2D, MaskedConv2D
from oasis_helpers.pixelcnn import NO_CONDITION, GatedPixelCNN, MaskedPixelCNN
from oasis_helpers.sampling import inverse_cdf, truncate_logits

K = 12
PRIORS = {
    "masked": lambda grid: MaskedPixelCNN(K, grid, filters=16),
    "gated": lambda grid: GatedPixelCNN(K, grid, filters=16, blocks=3, heads=2),
}


@pytest.fixture(scope="module", params=PRIORS)
def make_prior(request):
    return PRIORS[request.param]


def random_codes(count, grid, seed=0):
    return np.random.default_rng(seed).integers(K, size=(count, *grid)).astype("int32")


@pytest.mark.parametrize("grid", [(10, 10), (20, 20)])
def test_gradients_reach_earlier_positions_only(make_prior, grid, monkeypatch):
    """The Jacobian of the logits by the input, all positions by all positions."""
    prior, cells = make_prior(grid), grid[0] * grid[1]
    depth = prior.filters if isinstance(prior, GatedPixelCNN) else K
    soft = tf.random.stateless_normal((1, *grid, depth), seed=(1, 2))  # in place of the codes
    monkeypatch.setattr(keras.ops, "one_hot", lambda codes, depth: soft)
    if isinstance(prior, GatedPixelCNN):
        monkeypatch.setattr(prior, "embed", lambda codes: soft)
    with tf.GradientTape() as tape:
        tape.watch(soft)
        logits = prior((np.zeros((1, *grid), "int32"), np.array([7])))
        energy = tf.reshape(tf.reduce_sum(logits**2, axis=-1), (cells,))
    jacobian = tape.jacobian(energy, soft).numpy().reshape(cells, cells, depth)
    sees = np.abs(jacobian).sum(-1) > 0
    assert not np.triu(sees).any(), "a position sees itself or a later one"
    earlier = np.tril(np.ones((cells, cells), bool), -1)
    if isinstance(prior, GatedPixelCNN):
        assert sees[earlier].all(), "the gated prior has a blind spot"
    else:
        assert 0.2 < sees[earlier].mean() < 0.95, "the plain stack's blind spot is gone"


def test_masks():
    a, b = (MaskedConv2D(1, 3, kind).mask[:, :, 0, 0].tolist() for kind in "AB")
    assert a == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert b == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match='choose "A" or "B"'):
        MaskedConv2D(1, 3, "C")


def test_mask_never_touches_the_weights():
    layer = MaskedConv2D(2, 3, "A", kernel_initializer="ones")
    image = np.ones((1, 3, 3, 1), "float32")
    output = ops.convert_to_numpy(layer(image))
    assert output[0, 1, 1, 0] == 4  # four earlier neighbours
    np.testing.assert_array_equal(layer.get_weights()[0], np.ones((3, 3, 1, 2)))


@pytest.mark.parametrize(
    ("kernel", "shift", "expected"),
    [((2, 3), False, 6), ((2, 3), True, 6), ((1, 2), False, 2), ((1, 2), True, 2)],
)
def test_causal_convolution_keeps_the_shape_and_wastes_no_weight(kernel, shift, expected):
    layer = CausalConv2D(1, kernel, shift, kernel_initializer="ones")
    output = ops.convert_to_numpy(layer(np.ones((1, 5, 5, 1), "float32")))
    assert output.shape == (1, 5, 5, 1) and output[0, 3, 3, 0] == expected


def test_log_prob_is_a_distribution(make_prior):
    """Over all maps of a tiny grid the probabilities sum to 1."""
    prior = make_prior((1, 2))
    maps = np.stack(np.meshgrid(np.arange(K), np.arange(K)), -1).reshape(-1, 1, 2)
    log_p = prior.log_prob(maps, slice_index=3)
    assert log_p.dtype == np.float32 and log_p.shape == (K * K,)
    assert np.exp(log_p.astype("float64")).sum() == pytest.approx(1, abs=1e-4)


def test_training_and_saving(make_prior, tmp_path):
    keras.utils.set_random_seed(0)
    prior, grid = make_prior((4, 4)), (4, 4)
    codes = np.repeat(random_codes(4, grid), 16, axis=0)
    slices = np.repeat(np.arange(4), 16).astype("int32")
    prior.compile(
        keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    loss = prior.fit((codes, slices), codes, epochs=15, verbose=0).history["loss"]
    assert loss[-1] < 0.5 * loss[0]
    prior.save(tmp_path / "prior.keras")
    again = keras.saving.load_model(tmp_path / "prior.keras", compile=False)
    np.testing.assert_allclose(
        again.log_prob(codes[:5], slices[:5]), prior.log_prob(codes[:5], slices[:5]), atol=1e-4
    )
    if isinstance(prior, GatedPixelCNN):
        right, wrong = (prior.log_prob(codes, (slices + shift) % 4).mean() for shift in (0, 1))
        assert right > wrong, "the slice index makes no difference"


def test_one_prior_with_and_without_an_index():
    """Where the index is withheld at times, the network learns what maps look like on average."""
    keras.utils.set_random_seed(0)
    prior, grid = GatedPixelCNN(K, (4, 4), filters=16, blocks=2, heads=2, condition_dropout=0.3), (4, 4)
    codes = np.repeat(random_codes(4, grid), 16, axis=0)
    slices = np.repeat(np.arange(4), 16).astype("int32")
    prior.compile(
        keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    prior.fit((codes, slices), codes, epochs=25, verbose=0)
    told, condition_dropout, wrong = (
        prior.log_prob(codes, index).mean() for index in (slices, NO_CONDITION, (slices + 1) % 4)
    )
    assert told > condition_dropout > wrong
    drawn = sample_codes(prior, 8, NO_CONDITION)
    np.testing.assert_array_equal(drawn, sample_codes(prior, 8, NO_CONDITION, cached=False))


@pytest.mark.parametrize(
    ("codes", "index", "sentence"),
    [
        (np.zeros((2, 4, 5), int), 0, "this prior was trained on (N, 4, 4)"),
        (np.full((2, 4, 4), K), 0, "expected 0 to 11: these codes belong to another codebook"),
        (np.zeros((2, 4, 4), int), 32, "expected integers from 0 (midbrain) to 31"),
        (np.zeros((2, 4, 4), int), [0, 1, 2], "slice_index has shape (3,) for 2 maps"),
        (np.zeros((2, 4, 4), int), 1.5, "expected integers from 0"),
    ],
)
def test_log_prob_refuses(codes, index, sentence):
    with pytest.raises(ValueError) as caught:
        PRIORS["gated"]((4, 4)).log_prob(codes, index)
    assert sentence in str(caught.value)


# ------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("grid", [(10, 10), (5, 7)])
def test_cached_sampling_draws_what_the_full_pass_draws(make_prior, grid):
    prior = make_prior(grid)
    codes = random_codes(32, grid)
    prior.compile(
        keras.optimizers.Adam(3e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    prior.fit((codes, np.arange(32)), codes, epochs=3, verbose=0)  # weights of a realistic size
    options = {"n": 3, "slice_index": [0, 9, 31], "temperature": 0.9, "top_k": 9, "seed": 4}
    fast = sample_codes(prior, **options)
    np.testing.assert_array_equal(fast, sample_codes(prior, cached=False, **options))
    assert fast.shape == (3, *grid) and fast.dtype == np.int32
    assert 0 <= fast.min() and fast.max() < K


def test_seed_and_batch_size(make_prior):
    prior = make_prior((4, 4))
    maps = sample_codes(prior, 10, seed=1)
    np.testing.assert_array_equal(maps, sample_codes(prior, 10, seed=1, batch_size=3))
    assert not np.array_equal(maps, sample_codes(prior, 10, seed=2))
    assert sample_codes(prior, 0).shape == (0, 4, 4)


def test_known_codes_are_kept(make_prior):
    prior = make_prior((4, 4))
    known = random_codes(6, (4, 4))
    known[:, 2:] = -1
    drawn = sample_codes(prior, 6, 3, known=known)
    np.testing.assert_array_equal(drawn[:, :2], known[:, :2])
    assert drawn.min() >= 0 and len(np.unique(drawn[:, 2:])) > 3


def test_draws_follow_the_distribution():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    uniform = np.random.default_rng(6).random(20_000)
    logits = np.tile(np.log(probabilities), (len(uniform), 1))
    shares = np.bincount(inverse_cdf(logits, uniform), minlength=4) / len(uniform)
    np.testing.assert_allclose(shares, probabilities, atol=0.015)
    kept = [
        np.isfinite(truncate_logits(logits[:1].copy(), **cut)).sum()
        for cut in (
            {"top_k": 2, "top_p": None},
            {"top_k": None, "top_p": 0.79},
            {"top_k": None, "top_p": 0.81},
        )
    ]
    assert kept == [2, 2, 3]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n": -1}, "n = -1: expected a whole number, 0 or more."),
        ({"temperature": 0}, "temperature = 0: expected a number above 0."),
        ({"temperature": -1.0}, "temperature = -1.0: expected a number above 0."),
        ({"temperature": float("nan")}, "temperature = nan: expected a number above 0."),
        ({"top_k": 0}, "top_k = 0: expected 1 to 12, the codes."),
        ({"top_p": 1.5}, "top_p = 1.5: expected a probability above 0, at most 1."),
        ({"slice_index": 32}, "expected integers from 0 (midbrain) to 31"),
        ({"slice_index": [1]}, "slice_index has shape (1,) for 2 maps"),
        ({"known": np.zeros((2, 3, 3), int)}, "known has shape (2, 3, 3); expected (2, 4, 4)."),
        ({"known": np.full((2, 4, 4), 12)}, "known holds codes from 12 to 12; expected 0 to 11"),
    ],
)
def test_sampling_refuses(options, sentence):
    with pytest.raises(ValueError) as caught:
        sample_codes(PRIORS["gated"]((4, 4)), **{"n": 2, **options})
    assert sentence in str(caught.value)


# --------------------------------------------------------------------------- compiled sampling


def untrained_prior(grid, **options):
    """Random weights large enough that every earlier code and the slice index tell."""
    prior = GatedPixelCNN(K, grid, filters=16, blocks=3, heads=2, **options)
    rng = np.random.default_rng(3)
    for weight in prior.trainable_weights:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    return prior


def test_compiled_sampling_draws_what_the_cache_draws():
    """Seven maps: an odd number, so that two threads' shares are filled up."""
    prior = untrained_prior((5, 7), condition_dropout=0.1)
    known = random_codes(7, (5, 7))
    known[:, 2:], known[3], known[:, 4, 4] = -1, -1, 5
    sampler = CompiledSampler(prior, 7)
    for options in (
        {},
        {"slice_index": [0, 31, 3, 9, NO_CONDITION, 16, 8], "temperature": 0.7, "seed": 4},
        {"slice_index": 5, "known": known, "seed": 2**40},
        {"slice_index": 5, "known": random_codes(7, (5, 7))},
    ):
        drawn = sampler(**options)
        assert drawn.shape == (7, 5, 7) and drawn.dtype == np.int32
        np.testing.assert_array_equal(drawn, sample_codes(prior, 7, **options))
    one, other = (sampler(index) for index in (0, 31))
    assert np.mean(one != other) > 0.1, "the slice index makes no difference"


def test_compiled_sampling_of_the_shipped_prior():
    prior, indices = load_pretrained("cohort").prior, np.arange(8) * 4
    drawn = CompiledSampler(prior, 8)(indices, seed=1)
    assert np.mean(drawn == sample_codes(prior, 8, indices, seed=1)) >= 0.999


def test_few_maps_are_compiled_too():
    prior = untrained_prior((2, 3))
    for n in (0, 1):
        np.testing.assert_array_equal(CompiledSampler(prior, n)(3), sample_codes(prior, n, 3))


def test_compiled_sampling_refuses(monkeypatch):
    gated, masked = (make((2, 2)) for make in (PRIORS["gated"], PRIORS["masked"]))
    with pytest.raises(ValueError, match="a MaskedPixelCNN; expected a GatedPixelCNN"):
        CompiledSampler(masked, 2)
    with pytest.raises(ValueError, match="n = -1: expected a whole number"):
        CompiledSampler(gated, -1)
    sampler = CompiledSampler(gated, 2)  # nothing is compiled before the settings are right
    with pytest.raises(ValueError, match="temperature = 0: expected a number above"):
        sampler(temperature=0)
    with pytest.raises(ValueError, match="known has shape"):
        sampler(known=np.zeros((2, 3, 3), int))
    with pytest.raises(ValueError, match="slice_index has shape"):
        sampler([1, 2, 3])
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="Keras runs on torch, without XLA: use `sample_codes`"):
        CompiledSampler(gated, 2)
