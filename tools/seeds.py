"""Trains some weights with two more seeds: `python -m tools.seeds NAME`.

The first stage is the same for all; the fine-tuning of both decoders and the training of the prior
are repeated. Headline scores of all three go to `data/weights/<name>/seeds.json`. Only the first is
released; the others stay in `build/train/<name>-seed<n>/`.
"""

from dataclasses import replace

from oasis_helpers.__main__ import ending_with_a_sentence
from oasis_helpers.data import read_json, write_bytes, write_json
from oasis_helpers.pretrained import CHECKPOINTS, WEIGHTS
from oasis_helpers.training import file_lock
from tools.score import SEEDS, main, measure, model_card, recipe_of, splits_for
from tools.train import train_into

MORE = 2  # trainings besides the released one


def score_seeds(name: str) -> dict:
    """Scores the released weights' recipe with `MORE` other seeds; returns the released scores."""
    recipe, splits, folder = recipe_of(name), splits_for(name), WEIGHTS / name
    released = read_json(folder / "scores.json")
    seeds, rows = [recipe.seed], [headline(released)]
    for seed in range(recipe.seed + 1, recipe.seed + 1 + MORE):
        work = CHECKPOINTS / f"{name}-seed{seed}"
        with file_lock(work, f"training {name!r}"):
            other = replace(recipe, seed=seed)
            train_into(work / "released", other, splits, work)
            rows.append(headline(measure(work / "released", other, splits)))
        seeds.append(seed)
    scores = {score: [row[score] for row in rows] for score in rows[0]}
    write_json(folder / SEEDS, {"seeds": seeds, "scores": scores}, indent=1)
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
