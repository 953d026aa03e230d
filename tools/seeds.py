"""Trains some weights with two more seeds: `python -m tools.seeds NAME`.

The first stage is the same for all; the fine-tuning of both decoders and the training of the prior
are repeated. Headline scores of all three go to `data/weights/<name>/seeds.json`. Only the first is
released; the others stay in `build/train/<name>-seed<n>/`.
"""

import json
from dataclasses import asdict, replace

from oasis_helpers.__main__ import ending_with_a_sentence
from oasis_helpers.data import read_json, write_bytes, write_json
from oasis_helpers.pretrained import CHECKPOINTS, WEIGHTS
from oasis_helpers.training import file_lock
from tools.score import SEED_SCORES, main, measure, model_card, recipe_of, splits_for
from tools.train import train_into

TRAININGS = 3  # with the released one


def score_seeds(name: str) -> dict:
    """Scores the released weights and the same recipe with the next seeds; returns the former.

    Raises:
        ValueError: when the released weights were made by another recipe than today's.
    """
    recipe, splits, folder = recipe_of(name), splits_for(name), WEIGHTS / name
    released = read_json(folder / "scores.json")
    seeds = [recipe.seed + more for more in range(TRAININGS)]
    if released["recipe"] != json.loads(json.dumps(asdict(recipe))):
        raise ValueError(f"{folder} was made by another recipe than today's; train {name!r} first.")
    rows = [headline(released)]
    for seed in seeds[1:]:
        other, work = replace(recipe, seed=seed), CHECKPOINTS / f"{name}-seed{seed}"
        with file_lock(work, f"training {name!r}"):
            train_into(work / "weights", other, splits, work)
            rows.append(headline(measure(work / "weights", other, splits)))
    scores = {score: [row[score] for row in rows] for score in rows[0]}
    write_json(folder / SEED_SCORES, {"seeds": seeds, "scores": scores}, indent=1)
    write_bytes(folder / "MODEL_CARD.md", model_card(name, released).encode())
    return released


def headline(scores: dict) -> dict[str, float]:
    """The scores on test subjects that pages quote."""
    test, prior, heads = scores["test"], scores["prior_test"], scores["heads"]
    rows = {
        "brain SSIM of slices": test["brain_ssim"][0],
        "high-frequency power of slices": test["sharpness"]["high_frequency_power"],
        "brain SSIM of heads": heads["reconstruction"]["with its neighbours"]["brain_ssim"][0],
        "bits per code": prior["bits_per_code"][0],
        "bits per code given the slice below": prior["given_below"]["bits_per_code"][0],
    }
    sets = {"samples": scores["set_metrics"]["samples"], "heads": heads["sets"]["heads"]["all"]}
    for kind, table in sets.items():
        for score in ("kid", "precision", "recall", "coverage"):
            rows[f"{score if score != 'kid' else 'KID'} of {kind}"] = table[score][0]
    return rows | {"correlation of ventricle sizes": heads["ventricles"]["correlation"]}


if __name__ == "__main__":
    ending_with_a_sentence(lambda: main("python -m tools.seeds", __doc__, score_seeds))
