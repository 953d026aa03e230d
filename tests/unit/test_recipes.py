"""The networks of both recipes, and what each set of weights is made of."""

import pytest

from oasis_helpers.recipes import RECIPES, improved_vqvae, reference_vqvae


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
