"""Trains a set of weights to the end, scores it, and releases it: `python -m tools.train NAME`.

Training works in `build/train/<name>/` and resumes there after its last finished epoch. At the end,
the finished files replace those in `data/weights/<name>/`. `python -m tools.train NAME
--keep_vqvae` keeps the released VQ-VAE, byte for byte, and trains only the prior on its codes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import keras

from oasis_helpers.__main__ import ending_with_a_sentence
from oasis_helpers.data import SliceSet, read_json, write_bytes, write_json
from oasis_helpers.pretrained import (
    CHECKPOINTS,
    WEIGHTS,
    load_model,
    load_pretrained,
    save_model,
)
from oasis_helpers.recipes import Recipe
from oasis_helpers.training import (
    Checkpoint,
    EpochLines,
    file_lock,
    finetune_decoder,
    train_prior,
    train_vqvae,
    verify_run_signature,
)
from tools.score import main, recipe_of, score_weights, splits_for

FINISHED = "finished.keras"
# The values printed every epoch of a decoder's fine-tuning.
ADVERSARIAL = (
    "reconstruction_loss",
    "feature_loss",
    "discriminator_loss",
    "discriminator_accuracy",
)
FIRST_STAGE = (  # what a VQ-VAE depends on
    *("data", "size", "crop", "vqvae", "vqvae_schedule"),
    *("fine_tunes", "decoder_schedule", "seed"),
)


def train_weights(name: str, keep_vqvae: bool = False) -> dict:
    """Trains the recipe of that name, scores it, and releases it; returns the scores.

    Args:
        name: of the recipe.
        keep_vqvae: takes the released first stage as finished.

    Raises:
        ValueError: when there is no recipe of that name, the active data set is not its own, the
            folder holds the checkpoints of another training, or there is no first stage to keep.
        BlockingIOError: when another process trains the same weights.
    """
    recipe, splits, work = recipe_of(name), splits_for(name), CHECKPOINTS / name
    with file_lock(work, f"training {name!r}"):
        if keep_vqvae:
            _keep_vqvae(recipe, WEIGHTS / name, work / "vqvae")
        train_into(WEIGHTS / name, recipe, splits, work)
        return score_weights(name)


def train_into(folder: Path, recipe: Recipe, splits: dict[str, SliceSet], work: Path) -> None:
    """Trains what is not finished in `work`, and puts the finished files into `folder`."""
    stages = _train_stages(recipe, splits["train"], splits["validate"], work)
    history = {stage: read_json(work / stage / "history.json") for stage in stages}
    history["recipe"] = asdict(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        write_bytes(folder / f"{stage}.keras", (work / stage / FINISHED).read_bytes())
    write_json(folder / "history.json", history)


def _keep_vqvae(recipe: Recipe, released: Path, folder: Path) -> None:
    """Puts a released VQ-VAE and its curves where training puts the finished first stage."""
    history = read_json(released / "history.json")
    made_as = {name: history["recipe"][name] for name in FIRST_STAGE}
    if made_as != json.loads(json.dumps({name: asdict(recipe)[name] for name in FIRST_STAGE})):
        raise ValueError(
            f"{released} holds a VQ-VAE of another recipe than today's; train both stages."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / FINISHED, (released / "vqvae.keras").read_bytes())
    write_json(folder / "history.json", history["vqvae"])


def _train_stages(recipe: Recipe, train: SliceSet, validate: SliceSet, work: Path) -> list[str]:
    """Trains what is not finished in `work`; returns the names of the stages there."""
    base = load_pretrained(recipe.fine_tunes).vqvae if recipe.fine_tunes else None
    verify_run_signature(work, recipe, train, validate, base)
    if base:
        vqvae = _stage(
            work / "vqvae",
            lambda **how: finetune_decoder(recipe, base, train, validate, **how)[0],
            recipe.seed,
            ADVERSARIAL,
            monitor=None,
            released=lambda _: base,
        )
    else:
        vqvae = _stage(
            work / "vqvae",
            lambda **how: train_vqvae(recipe, train, validate, **how)[0],
            recipe.seed,
            ("loss", "val_loss", "val_ssim", "perplexity", "dead_codes"),
            monitor="val_mse",  # the loss also holds the codebook's terms, which may grow with use
        )
    if not recipe.prior_schedule:
        return ["vqvae"]
    whole_heads = base and "below_dropout" in recipe.prior
    if whole_heads:
        _stage(
            work / "head_decoder",
            lambda **how: finetune_decoder(recipe, vqvae, train, validate, heads=True, **how)[0],
            recipe.seed,
            ADVERSARIAL,
            monitor=None,
            released=lambda model: model.decoder,
        )
    _stage(
        work / "prior",
        lambda **how: train_prior(recipe, vqvae, train, validate, **how)[0],
        recipe.seed,
        ("loss", "val_loss", "accuracy", "val_accuracy"),
    )
    return ["vqvae", *(["head_decoder"] if whole_heads else []), "prior"]


def _stage(
    folder: Path,
    train: Callable[..., keras.Model],
    seed: int,
    names: tuple[str, ...],
    monitor: str | None = "val_loss",
    released: Callable[[keras.Model], keras.Model] = lambda model: model,
) -> keras.Model:
    """Trains one stage, resuming after its last finished epoch; loads it if it is finished.

    Args:
        folder: of this stage's checkpoints.
        train: gets callbacks and a checkpoint; returns the trained model.
        seed: of Keras's global generator.
        names: of the values printed every epoch.
        monitor: the epoch with the lowest value of it is released; None releases the last one.
        released: the model to release, from the trained model.
    """
    if not (folder / FINISHED).is_file():
        keras.utils.set_random_seed(seed)
        checkpoint = Checkpoint(folder, monitor)
        model = train(callbacks=[EpochLines(names)], checkpoint=checkpoint)
        checkpoint.take_best()
        write_json(folder / "history.json", checkpoint.history)
        save_model(released(model), folder / FINISHED)
    return load_model(folder / FINISHED)


if __name__ == "__main__":
    flags = {"keep_vqvae": "take the released VQ-VAE as finished, and train the prior only"}
    ending_with_a_sentence(lambda: main("python -m tools.train", __doc__, train_weights, **flags))
