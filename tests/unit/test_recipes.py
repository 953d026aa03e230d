"""The networks of both recipes, and what each set of weights is made of."""

import pytest

from oasis_helpers.adversarial import patch_discriminator
from oasis_helpers.recipes import RECIPES, improved_vqvae, reference_vqvae, strided_decoder


def test_every_recipe_makes_a_first_stage_or_takes_it_from_another_one():
    for name, recipe in RECIPES.items():
        assert (recipe.vqvae_schedule is None) == (recipe.fine_tunes is not None), name
        assert (recipe.fine_tunes is None) == (recipe.decoder_schedule is None), name
        if recipe.fine_tunes:
            base = RECIPES[recipe.fine_tunes]
            for part in ("data", "size", "crop", "vqvae"):
                assert getattr(base, part) == getattr(recipe, part), name


@pytest.mark.parametrize(
    ("name", "grid", "bits"),
    [
        ("oasis1", (13, 11), 1001),
        ("oasis1-10x10", (10, 10), 700),
        ("oasis1-20x20", (20, 20), 3200),
        ("oasis1-reference", (10, 10), 700),
    ],
)
def test_grids_and_rates(name, grid, bits):
    recipe = RECIPES[name]
    if recipe.vqvae.get("reference"):
        model = reference_vqvae(1.0, recipe.size)
    else:
        model = improved_vqvae(1.0, recipe.size, **recipe.vqvae)
    assert model.code_shape == grid and model.bits_per_slice == bits


def test_sizes_that_do_not_fit_are_refused(refused):
    words = "A size of 50 pixels does not fit: use a multiple of 8."
    refused(lambda: reference_vqvae(0.1, 50), words)
    words = "A region of 50 x 50 pixels cannot be divided into patches of 8 x 8: choose sizes that"
    refused(lambda: improved_vqvae(0.1, 50), words)


SIZES = {
    "0": (lambda: reference_vqvae(0.1, 0), "A size of 0 pixels does not fit: use 16 or more"),
    "negative": (lambda: reference_vqvae(0.1, -8), "A size of -8 pixels does not fit: use 16"),
    "8": (lambda: reference_vqvae(0.1, 8), "A size of 8 pixels does not fit: use 16"),
    "float": (lambda: reference_vqvae(0.1, 80.0), "A size of 80.0 pixels does not fit: use 16"),
    "text": (lambda: reference_vqvae(0.1, "80"), "A size of '80' pixels does not fit: use 16"),
    "decoder": (lambda: strided_decoder(50), "A size of 50 pixels does not fit: use a multiple"),
    "ours": (lambda: improved_vqvae(0.1, 8), "A size of 8 pixels does not fit: use 16 or more"),
    "ours, 0": (lambda: improved_vqvae(0.1, 0), "A size of 0 pixels does not fit: use 16 or more"),
    "outside": (
        lambda: improved_vqvae(0.1, 80, (40, 40, 64, 64)),
        "The region (40, 40, 64, 64) (top, left, height, width) is no part of 80 x 80 pixels",
    ),
    "negative region": (lambda: improved_vqvae(0.1, 80, (-4, 0, 80, 80)), "is no part of 80 x 80"),
    "empty region": (lambda: improved_vqvae(0.1, 80, (8, 8, 0, 64)), "is no part of 80 x 80"),
    "three": (lambda: improved_vqvae(0.1, 80, (0, 0, 80)), "is no part of 80 x 80 pixels"),
    "float region": (lambda: improved_vqvae(0.1, 80, (8.0, 8, 64, 64)), "is no part of 80 x 80"),
    "patch": (
        lambda: improved_vqvae(0.1, 80, patch=(0, 4)),
        "cannot be divided into patches of 0 x 8",
    ),
    "widths": (
        lambda: improved_vqvae(0.1, 80, widths=()),
        "widths = (): expected a number of chan",
    ),
    "K": (
        lambda: improved_vqvae(0.1, 80, num_embeddings=0),
        "num_embeddings = 0: expected a whole",
    ),
    "K of the reference": (lambda: reference_vqvae(0.1, 80, 0), "num_embeddings = 0: expected a"),
    "D": (lambda: improved_vqvae(0.1, 80, embedding_dim=0), "embedding_dim = 0: expected a whole"),
    "discriminator": (lambda: patch_discriminator(32, (0, 4, 32, 40)), "is no part of 32 x 32"),
}


@pytest.mark.parametrize(("call", "words"), SIZES.values(), ids=SIZES)
def test_sizes_that_the_networks_cannot_take(refused, call, words):
    refused(call, words)
