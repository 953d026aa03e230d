"""Trainings of seconds: networks learn, and weights are trained, scored and released as a whole."""

import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from oasis_helpers import (
    load_pretrained,
    metrics,
    pretrained,
    recipes,
    sample_codes,
    set_metrics,
    training,
)
from oasis_helpers.adversarial import AdversarialDecoder, patch_discriminator
from oasis_helpers.data import SliceSet, with_mirrored
from oasis_helpers.pixelcnn import NO_CONDITION, GatedPixelCNN, MaskedPixelCNN
from tests.examples import heads
from tools import features, score, seeds, train

K, GRID = 12, (4, 4)


# ----------------------------------------------------------------------------- networks learn


@pytest.mark.parametrize(
    "make",
    [
        lambda: recipes.reference_vqvae(0.1, 32, 16),
        lambda: recipes.improved_vqvae(0.1, 32, num_embeddings=16, widths=(16, 16), blocks=1),
    ],
)
def test_the_first_stage_learns(make):
    y, x = np.mgrid[:32, :32] / 32
    angle, phase = np.random.default_rng(0).uniform(0, 6.3, (2, 64, 1, 1))
    waves = 0.5 + 0.5 * np.sin(9 * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    images = (waves * ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.16))[..., None].astype("float32")
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(keras.optimizers.Adam(3e-3))
    curves = model.fit(images, images, batch_size=16, epochs=12, verbose=0).history
    assert curves["loss"][-1] < 0.8 * curves["loss"][0]
    assert curves["perplexity"][-1] > 1


@pytest.mark.parametrize(
    ("make", "uses_index"),
    [
        pytest.param(lambda: MaskedPixelCNN(K, GRID, filters=16), False, marks=pytest.mark.long),
        (lambda: GatedPixelCNN(K, GRID, 16, 2, 2, condition_dropout=0.3), True),
    ],
)
def test_the_second_stage_learns_codes_and_slice_indices(make, uses_index):
    """Four maps, one for each of four slice indices; hidden indices teach the mean of all."""
    keras.utils.set_random_seed(0)
    prior = make()
    codes = np.repeat(np.random.default_rng(0).integers(K, size=(4, *GRID)), 16, axis=0)
    codes, slices = codes.astype("int32"), np.repeat(np.arange(4), 16).astype("int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    prior.compile(keras.optimizers.Adam(1e-2), loss)
    curve = prior.fit((codes, slices), codes, epochs=25, verbose=0).history["loss"]
    assert curve[-1] < 0.5 * curve[0]
    if uses_index:
        right, none, wrong = (
            prior.log_prob(codes, index).mean()
            for index in (slices, NO_CONDITION, (slices + 1) % 4)
        )
        assert right > none > wrong
    maps = sample_codes(prior, 8, 2, seed=1)
    np.testing.assert_array_equal(maps, sample_codes(prior, 8, 2, seed=1, cached=False))


def test_a_feature_network_learns_slice_index_and_corruption():
    training, others = heads(6), heads(4, seed=1)
    trained = features.feature_network(training, epochs=12)
    untrained = set_metrics.standardised(set_metrics.feature_layers((32, 32, 1)), training)
    accuracy, by_chance = (
        features.neighbour_index_accuracy(network, others) for network in (trained, untrained)
    )
    assert accuracy > by_chance and accuracy > 0.6
    kids = features.sensitivity(trained, training, others)
    assert kids["blurred"] > 3 * abs(kids["none"]) and kids["noisy"] > abs(kids["none"])


# ------------------------------------------------------------------- from a recipe to a release


@pytest.fixture
def tiny(monkeypatch, tmp_path, cohort_root, load_few):
    """Two recipes that train in seconds, "tiny" and "tiny-fine", in a temporary folder."""
    schedule = recipes.Schedule(6, 128, 1e-3)
    recipe = recipes.Recipe(
        "cohort",
        vqvae={**recipes.WHOLE_FRAME, "widths": (8, 8), "blocks": 1, "num_embeddings": 16},
        vqvae_schedule=schedule,
        prior={"filters": 8, "blocks": 1, "num_heads": 1},
        prior_schedule=recipes.Schedule(6, 64, 1e-3),
    )
    fine = dataclasses.replace(
        recipe,
        vqvae_schedule=None,
        fine_tunes="tiny",
        decoder_schedule=schedule,
        prior_schedule=None,
    )
    monkeypatch.setitem(recipes.RECIPES, "tiny", recipe)
    monkeypatch.setitem(recipes.RECIPES, "tiny-fine", fine)
    for module in (pretrained, score, seeds, train):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights")
    for module in (seeds, train):
        monkeypatch.setattr(module, "CHECKPOINTS", tmp_path / "work")
    for module in (pretrained, score):
        monkeypatch.setattr(module, "load_slices", load_few)
    monkeypatch.setattr(score, "SAMPLES_PER_INDEX", 1)
    return tmp_path / "weights"


@pytest.mark.long
def test_weights_are_trained_scored_and_released(tiny, cohort_root):
    scores = train.train_weights("tiny")
    models = load_pretrained("tiny")
    assert models.scores == json.loads(json.dumps(scores))
    assert scores["epochs"] == {"vqvae": 2, "prior": 2}
    assert scores["train"]["subjects"] == 6 and scores["test"]["slices"] == 192
    assert scores["samples"]["slices"] == {"samples": 32, "unseen": 192}
    assert len(models.history["prior"]["val_loss"]) == 2
    test = models.load_slices(cohort_root, "test")
    assert metrics.reconstruction_table(models.vqvae, test) == scores["test"]
    assert "Scores on test subjects" in (tiny / "tiny" / "MODEL_CARD.md").read_text()

    fine_scores = train.train_weights("tiny-fine")
    assert fine_scores["epochs"] == {"vqvae": 2} and "prior_test" not in fine_scores
    fine, images = load_pretrained("tiny-fine"), test.images[:64]
    assert fine.prior is None
    codes = models.vqvae.encode(images)
    np.testing.assert_array_equal(fine.vqvae.encode(images), codes)
    assert not np.array_equal(fine.vqvae.decode(codes), models.vqvae.decode(codes))
    assert "not the subject's own" in (tiny / "tiny-fine" / "MODEL_CARD.md").read_text()


@pytest.mark.long
def test_weights_that_sample_heads_get_a_decoder_of_heads(tiny, cohort_root, monkeypatch):
    train.train_weights("tiny")
    alone, prior = recipes.RECIPES["tiny-fine"], recipes.RECIPES["tiny"]
    neighbour = {"prior": prior.prior | {"below_dropout": 0.3}}
    heads = dataclasses.replace(alone, prior_schedule=prior.prior_schedule, **neighbour)
    monkeypatch.setitem(recipes.RECIPES, "tiny-fine", heads)
    assert train.train_weights("tiny-fine")["epochs"].keys() == {"vqvae", "head_decoder", "prior"}
    models = load_pretrained("tiny-fine")
    images = models.load_slices(cohort_root, "test").images[:64]
    codes = models.vqvae.encode(images)
    decoded = models.decode_heads(codes.reshape(2, 32, *models.vqvae.code_shape))
    assert decoded.shape == (2, 32, *images.shape[1:])
    assert not np.array_equal(decoded.reshape(images.shape), models.vqvae.decode(codes))


@pytest.mark.long
def test_other_seeds_give_another_prior_on_the_same_codes(tiny, monkeypatch, refused):
    def headline(scores):
        return {
            "bits per code": scores["prior_test"]["bits_per_code"][0],
            "marginal": scores["prior_test"]["baselines"]["marginal"],
        }

    train.train_weights("tiny")
    alone, recipe = recipes.RECIPES["tiny-fine"], recipes.RECIPES["tiny"]
    fine = dataclasses.replace(alone, prior=recipe.prior, prior_schedule=recipe.prior_schedule)
    monkeypatch.setitem(recipes.RECIPES, "tiny-fine", fine)
    monkeypatch.setattr(seeds, "headline", headline)
    released = train.train_weights("tiny-fine")
    assert seeds.score_seeds("tiny-fine") == json.loads(json.dumps(released))
    kept = json.loads((tiny / "tiny-fine" / "seeds.json").read_text())
    assert kept["seeds"] == [0, 1, 2]
    bits, marginal = kept["scores"].values()
    assert bits[0] == headline(released)["bits per code"]
    assert len(set(bits)) == 3 and len(set(marginal)) == 1
    row = f"| bits per code | {' | '.join(f'{value:.3f}' for value in bits)} |"
    assert row in (tiny / "tiny-fine" / "MODEL_CARD.md").read_text()
    monkeypatch.setitem(recipes.RECIPES, "tiny-fine", dataclasses.replace(fine, views=2))
    words = "was made by another recipe than today's; train 'tiny-fine' first."
    refused(lambda: seeds.score_seeds("tiny-fine"), words)


@pytest.mark.long
def test_a_prior_is_trained_on_released_codes(tiny, monkeypatch, refused):
    train.train_weights("tiny")
    file, work = tiny / "tiny" / "vqvae.keras", tiny.parent / "work" / "tiny"
    released, recipe = file.read_bytes(), recipes.RECIPES["tiny"]
    neighbour = recipe.prior | {"below_dropout": 0.3, "head_bins": 2}
    monkeypatch.setitem(recipes.RECIPES, "tiny", dataclasses.replace(recipe, prior=neighbour))
    shutil.rmtree(work)
    scores = train.train_weights("tiny", keep_vqvae=True)
    assert file.read_bytes() == released and load_pretrained("tiny").prior.takes_below
    assert len(scores["prior_test"]["given_below"]["by_index"]) == 31
    other = dataclasses.replace(recipe, seed=recipe.seed + 1)
    monkeypatch.setitem(recipes.RECIPES, "tiny", other)
    words = "tiny holds a VQ-VAE of another recipe than today's; train both stages."
    refused(lambda: train.train_weights("tiny", keep_vqvae=True), words)


def diverging(kind: str) -> tuple:
    """A model, batches for it, and a learning rate that is too high."""
    rng = np.random.default_rng(0)
    images, indices = rng.random((16, 16, 16, 1), "float32"), np.arange(16)
    codes, rate = rng.integers(12, size=(16, 4, 4)), keras.optimizers.SGD(1e30)
    small = {"num_embeddings": 12, "widths": (4, 4), "blocks": 1, "patch": (2, 2)}
    if kind == "prior":
        model = GatedPixelCNN(12, (4, 4), filters=4, blocks=1, num_heads=1)
        model.compile(rate, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model, training.Batches.of((codes, indices), codes, 8)
    model = (
        recipes.reference_vqvae(1.0, 16, 12)
        if kind == "reference"
        else recipes.improved_vqvae(1.0, 16, **small)
    )
    if kind != "decoder":
        model.compile(rate)
        return model, training.Batches.of(images, images, 8)
    model = AdversarialDecoder(model, patch_discriminator(16, (0, 0, 16, 16), 8))
    model.compile(rate)
    return model, training.Batches.of(codes, images, 8)


@pytest.mark.parametrize("kind", ["improved", "reference", "decoder", "prior"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_learning_rate_too_high_is_named(tmp_path, refused, kind, kept):
    model, batches = diverging(kind)
    words = [r"The loss became ", " in epoch ", " at a learning rate of 1e+30; "]
    words += [f"remove {tmp_path} and " if kept else "", "train with a lower one."]
    checkpoint = training.Checkpoint(tmp_path) if kept else None
    refused(lambda: training.fit(model, batches, 20, None, (), checkpoint), *words)


@pytest.mark.parametrize(("steps", "unaugmented"), [(36, 4), (6, 1), (1, 1), (12, 1)])
def test_a_prior_ends_with_unshifted_slices(monkeypatch, steps, unaugmented):
    """But where there is one epoch only, it shows all that was encoded."""
    monkeypatch.setattr(training, "fit", lambda model, batches, *rest: batches)
    images = np.random.default_rng(0).random((32, 16, 16, 1), "float32")
    indices = np.arange(32, dtype="int32")
    train = SliceSet(images, indices // 8, indices, "train", Path("noise"))
    recipe = recipes.Recipe(
        "cohort",
        16,
        vqvae={"num_embeddings": 16, "widths": (4, 4), "blocks": 1},
        prior={"filters": 8, "blocks": 1, "num_heads": 1},
        prior_schedule=recipes.Schedule(steps, 16, 4e-3),  # six steps an epoch
        views=3,
    )
    vqvae = recipes.improved_vqvae(1.0, recipe.size, **recipe.vqvae)
    validate = dataclasses.replace(train, split="validate")
    _, batches = training.train_prior(recipe, vqvae, train, validate)
    assert len(batches) == 6 and batches.unaugmented == (unaugmented, 2 * len(train))
    (codes, slices), _ = batches.read(np.arange(2 * len(train)))
    np.testing.assert_array_equal(codes, vqvae.encode(with_mirrored(train.images)))
    np.testing.assert_array_equal(slices, np.tile(train.slices, 2))


def test_a_neighbour_moves_with_its_slice(monkeypatch):
    """In every view, a neighbour is shifted and mirrored as its slice; bins are a head's."""
    monkeypatch.setattr(training, "fit", lambda model, batches, steps, validation, *_: batches)
    train = heads(4, size=32)
    stripes = np.float32(np.arange(32) % 5 == 1) / 2  # so that shifts and mirroring show
    train = dataclasses.replace(train, images=np.clip(train.images + stripes[:, None], 0, 1))
    recipe = recipes.Recipe(
        "cohort",
        32,
        vqvae={"num_embeddings": 16, "widths": (4, 4), "blocks": 1},
        prior={"filters": 4, "blocks": 1, "num_heads": 1, "below_dropout": 0.1, "head_bins": 2},
        prior_schedule=recipes.Schedule(1, 16, 4e-3),
        views=4,
    )
    vqvae = recipes.improved_vqvae(1.0, recipe.size, **recipe.vqvae)
    same = dataclasses.replace(train, images=np.repeat(train.images[::32], 32, 0))  # no anatomy
    prior, batches = training.train_prior(recipe, vqvae, same, same)
    (codes, slices, below, conditions), _ = batches.read(np.arange(4 * len(train)))
    assert (below[slices == 0] == -1).all()
    equal = [training.shifted_and_mirrored(same.images, seed) for seed in ((0, 2), (0, 3))]
    moved = np.concatenate([with_mirrored(same.images), *equal])
    np.testing.assert_array_equal(codes, vqvae.encode(moved))
    np.testing.assert_array_equal(below[slices > 0], codes[slices > 0])
    assert prior.head_counts.numpy().sum() == len(codes)
    per_head = conditions.reshape(4, 4, 32, 4)  # views, heads, slices
    assert (per_head == per_head[:1, :, :1]).all() and set(per_head.ravel()) == {0, 1}
