"""Scores a set of weights and writes its model card: `python -m tools.score NAME`."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jinja2
import keras
import numpy as np

from oasis_helpers import metrics, sample_codes, set_metrics
from oasis_helpers.__main__ import ending_with_a_sentence
from oasis_helpers.data import (
    REPOSITORY,
    SLICES_PER_SUBJECT,
    SPLITS,
    SliceSet,
    fingerprint,
    load_slices,
    read_json,
    with_mirrored,
    write_bytes,
    write_json,
)
from oasis_helpers.pretrained import (
    WEIGHTS,
    Pretrained,
    data_name,
    data_root,
    load_feature_networks,
    load_pretrained,
    load_stages,
    results,
    stages_digest,
)
from oasis_helpers.recipes import RECIPES, Recipe
from oasis_helpers.vqvae import VQVAE
from tools.heads import heads_table, memorisation

SEED_SCORES = "seeds.json"  # of some weights: headline scores of trainings with other seeds
SAMPLES_PER_INDEX = 20  # generated slices at each of the 32 slice indices


def score_weights(name: str) -> dict:
    """Scores the weights of that name on validation and test subjects; returns the scores.

    Writes `scores.json` and `MODEL_CARD.md` beside the weights.

    Raises:
        ValueError: when there is no recipe of that name, or the active data set is not its own.
    """
    folder = WEIGHTS / name
    scores = measure(folder, recipe_of(name), splits_for(name))
    write_json(folder / "scores.json", scores, indent=2)
    write_bytes(folder / "MODEL_CARD.md", model_card(name, scores).encode())
    return scores


def measure(folder: Path, recipe: Recipe, splits: dict[str, SliceSet]) -> dict:
    """The scores of the weights in a folder, on the splits in the frame of their recipe."""
    digest = stages_digest(folder)
    history = read_json(folder / "history.json")
    models = Pretrained(*load_stages(folder), {}, history)
    vqvae, prior = models.vqvae, models.prior
    stages = [stage for stage in ("vqvae", "head_decoder", "prior") if stage in history]
    training, test = splits["train"], splits["test"]
    codes = vqvae.encode(training.images)
    scores = {
        "data": recipe.data,
        "frame": {"size": recipe.size, "crop": training.crop, "side": training.side},
        "recipe": history["recipe"],
        "weights": digest,
        "train": {
            "slices": len(training),
            "subjects": len(np.unique(training.subjects)),
            "dead_codes": int((metrics.code_counts(codes, vqvae.num_embeddings) == 0).sum()),
        },
        "validate": metrics.reconstruction_table(vqvae, splits["validate"]),
        "test": metrics.reconstruction_table(vqvae, test),
        "test_fingerprint": fingerprint(test),
        "epochs": {stage: len(history[stage]["epoch"]) for stage in stages},
        "minutes": {stage: round(sum(history[stage]["seconds"]) / 60, 1) for stage in stages},
        "made_with": {"keras": keras.__version__, "python": platform.python_version()},
    }
    if prior:
        for split in ("validate", "test"):
            scores[f"prior_{split}"] = metrics.prior_table(vqvae, prior, training, splits[split])
        scores |= _score_samples(recipe, models, splits)
    return scores


def recipe_of(name: str) -> Recipe:
    """The recipe of that name; ValueError with the others where there is none."""
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name!r}; available: {', '.join(sorted(RECIPES))}.")
    return RECIPES[name]


def splits_for(name: str) -> dict[str, SliceSet]:
    """The three splits in the frame of a recipe, from the data set that it is for.

    Fine-tuning keeps an encoder, and with it the frame that the encoder was trained on.
    """
    recipe = recipe_of(name)
    if recipe.data != data_name():
        change = "set OASIS_DATA_DIR to" if recipe.data == "oasis1" else "unset OASIS_DATA_DIR for"
        raise ValueError(
            f"The weights {name!r} need other data: {change} the {recipe.data} slices."
        )
    root = data_root()
    if recipe.fine_tunes:
        base = load_pretrained(recipe.fine_tunes)
        return {split: base.load_slices(root, split) for split in SPLITS}
    return {split: load_slices(root, split, recipe.size, recipe.crop) for split in SPLITS}


def _score_samples(recipe: Recipe, models: Pretrained, splits: dict[str, SliceSet]) -> dict:
    """Scores of generated slices: "samples", and in the frame of the feature network "set_metrics".

    "heads", as `heads.heads_table`, for a prior that samples whole heads.

    Sample number j, one slice at each slice index, takes the place of a subject. As many samples as
    there are test subjects are scored as a set, so that every row of the table has one size.
    """
    training, validate, test = (splits[split] for split in ("train", "validate", "test"))
    vqvae, prior = models.vqvae, models.prior
    indices = np.repeat(np.arange(SLICES_PER_SUBJECT), SAMPLES_PER_INDEX)
    number = np.tile(np.arange(SAMPLES_PER_INDEX), SLICES_PER_SUBJECT)
    codes = sample_codes(prior, len(indices), indices, seed=recipe.seed)
    images = vqvae.decode(codes)
    scores = {"samples": samples_table(images, indices, training, test)}
    if not training.crop:
        return scores
    networks = load_feature_networks(recipe.data, training)
    chosen = number < len(np.unique(test.subjects))
    decoded = vqvae.decode(vqvae.encode(validate.images))
    table = {
        kind: set_metrics.set_table(networks, test, *row)
        for kind, row in {
            "real": (validate.images, validate.slices, validate.subjects),
            "reconstructed": (decoded, validate.slices, validate.subjects),
            "samples": (images[chosen], indices[chosen], number[chosen]),
        }.items()
    }
    copies = _memorisation(vqvae, codes, images, training, test)
    scores |= {"set_metrics": table, "memorisation": copies}
    if prior.takes_below:
        parts = training, validate, test
        scores["heads"] = heads_table(models, networks, parts, recipe.seed)
    return scores


def samples_table(
    samples: np.ndarray, indices: np.ndarray, train: SliceSet, unseen: SliceSet
) -> dict[str, dict]:
    """Whether samples show the slice index they were conditioned on, and are as sharp as real ones.

    Args:
        samples: float (N, size, size, 1) in [0, 1].
        indices: int (N,), the slice indices that they were conditioned on.
        train: fits the classifier.
        unseen: real slices of other subjects, to compare with.

    Returns:
        "slices": how many; "slice_index_accuracy": the fraction whose index the classifier
        predicts to within 3; both for "samples" and for "unseen"; "high_frequency_power": as
        `high_frequency_power_by_third`.
    """
    classifier = set_metrics.slice_index_classifier(train)

    def accuracy(images, truth):
        predicted = classifier.predict(images.reshape(len(images), -1))
        return round(float(np.mean(np.abs(predicted - truth) <= set_metrics.INDEX_TOLERANCE)), 4)

    return {
        "slices": {"samples": len(samples), "unseen": len(unseen)},
        "slice_index_accuracy": {
            "samples": accuracy(samples, indices),
            "unseen": accuracy(unseen.images, unseen.slices),
        },
        "high_frequency_power": high_frequency_power_by_third(samples, indices, unseen),
    }


def high_frequency_power_by_third(
    samples: np.ndarray, indices: np.ndarray, unseen: SliceSet
) -> list[float]:
    """High-frequency power of samples over that of unseen subjects' slices, by third of the stack.

    Samples are float (N, size, size, 1) in [0, 1], with slice indices int (N,).
    """

    def by_third(images, slices):
        power = metrics.high_frequency_power(metrics.band_power(images))
        third = slices * 3 // SLICES_PER_SUBJECT
        return np.array([power[third == number].mean() for number in range(3)])

    ratio = by_third(samples, indices) / by_third(unseen.images, unseen.slices)
    return [round(float(x), 3) for x in ratio]


def _memorisation(
    vqvae: VQVAE, codes, images, training: SliceSet, test: SliceSet
) -> dict[str, dict]:
    """The nearest-neighbour memorisation test in "pixels" and in "codes".

    In pixels, unseen slices are decoded by the same decoder, so that its blur does not count as
    nearness.
    """
    train_codes, unseen = vqvae.encode(with_mirrored(training.images)), vqvae.encode(test.images)
    distances = {
        "pixels": [
            set_metrics.nearest_pixels(x, training)[0] for x in (images, vqvae.decode(unseen))
        ],
        "codes": [set_metrics.nearest_codes(vqvae, x, train_codes) for x in (codes, unseen)],
    }
    return {kind: memorisation(*pair) for kind, pair in distances.items()}


def model_card(name: str, scores: dict) -> str:
    """The text of MODEL_CARD.md: its figures are from `scores` and two experiments."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(REPOSITORY / "tools"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["estimate"] = lambda values: (
        "{:.3f} (95 % interval {:.3f} to {:.3f})".format(*values)
    )
    environment.filters["interval"] = lambda values: "{:.2f} [{:.2f}, {:.2f}]".format(*values)
    environment.filters["distances"] = lambda row: ", ".join(f"{x:.2f}" for x in row.values())
    environment.filters["thirds"] = lambda values: " / ".join(f"{value:.3f}" for value in values)
    environment.filters["listed"] = lambda values: " | ".join(f"{value:.3f}" for value in values)
    current = json.loads(json.dumps(asdict(RECIPES[name])))
    template = environment.get_template("model_card.md.jinja")
    facts = {"name": name, "outdated": scores["recipe"] != current}
    file = WEIGHTS / name / SEED_SCORES
    seeds = read_json(file) if file.is_file() else None
    measured = {"copies": results("memorisation"), "realism": results("realism"), "seeds": seeds}
    return template.render(facts, **measured, **scores)


def main(prog: str, description: str, command: Callable[..., dict], **flags: str) -> None:
    """The command line: a command on the weights of a name; prints their scores.

    `flags` are the command's other arguments, False unless named, with a text each.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("name", choices=sorted(RECIPES))
    for flag, text in flags.items():
        parser.add_argument(f"--{flag}", action="store_true", help=text)
    scores = command(**vars(parser.parse_args()))
    print(json.dumps({k: scores[k] for k in ("test", "prior_test") if k in scores}, indent=2))


if __name__ == "__main__":
    ending_with_a_sentence(lambda: main("python -m tools.score", __doc__, score_weights))
