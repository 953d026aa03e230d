"""How do the bits of our prior depend on the tokenizer?

Two variants of the ablation and ours, whole frames as 10 x 10 codes of 8 x 8 pixels with K = 128,
are trained for as many slices as the reference, and our prior is trained on the codes of each.
Shipped weights stand beside them. Positions of background cost nothing, and the less the other
codes say, the more of it follows from position, slice index and neighbours. All are scored on
*test* subjects.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import keras

from experiments.ablation import IMPROVED, PATCHES, STEPS
from experiments.variants import ResultsCache, Variant, train_variant
from oasis_helpers import metrics, pretrained, training
from oasis_helpers.data import SliceSet, load_slices
from oasis_helpers.pixelcnn import Prior
from oasis_helpers.recipes import RECIPES, Recipe
from oasis_helpers.vqvae import VQVAE

ON_WHOLE_FRAME = replace(IMPROVED, name="ours on the whole frame", build=PATCHES, mirrored=False)
NAMES = ("reference recipe", "dead codes restart")
VARIANTS = [*(variant for variant in STEPS if variant.name in NAMES), ON_WHOLE_FRAME]
SLICES = 720 * 128  # that each tokenizer is trained on, counted as often as they are seen


def measure(
    root: str | Path,
    file: Path,
    weights: str,
    slices: int = SLICES,
    recipe: Recipe = RECIPES["oasis1-10x10"],
) -> Iterator[dict]:
    """Trains each tokenizer, and a prior on its codes by a recipe; shipped weights come last.

    Yields:
        {"name", "brain_positions": the fraction of grid positions that hold brain, "scores": as
        `metrics.reconstruction_table`, "prior": as `metrics.prior_table`}.
    """
    train, validate, test = (load_slices(root, split) for split in ("train", "validate", "test"))
    cache = ResultsCache(file)

    def trained(variant: Variant) -> dict:
        vqvae = train_variant(variant, train, slices // variant.batch_size)
        keras.utils.set_random_seed(recipe.seed)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = training.Checkpoint(Path(folder))
            prior, _ = training.train_prior(recipe, vqvae, train, validate, checkpoint=checkpoint)
            checkpoint.take_best()
        return both_tables(variant.name, vqvae, prior, train, test)

    def shipped() -> dict:
        models = pretrained.load_pretrained(weights)
        splits = (models.load_slices(root, split) for split in ("train", "test"))
        return both_tables(weights, models.vqvae, models.prior, *splits)

    for variant in VARIANTS:
        yield cache.get_or_compute("tokenizers", variant.name, trained, variant)
    yield cache.get_or_compute("tokenizers", weights, shipped)


def both_tables(name: str, vqvae: VQVAE, prior: Prior, train: SliceSet, test: SliceSet) -> dict:
    """The result of one tokenizer and its prior, as `measure` yields it."""
    return {
        "name": name,
        "brain_positions": round(float(vqvae.brain_positions(test.images).mean()), 4),
        "scores": metrics.reconstruction_table(vqvae, test),
        "prior": metrics.prior_table(vqvae, prior, train, test),
    }
