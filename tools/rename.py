"""One-off: gives kept results and weights the names of version 1.0 (issue H). Deleted afterwards.

    git worktree add OLD a0083c0; python tools/rename.py dump OLD FOLDER; python tools/rename.py load FOLDER

Weights are equal before and after: `dump` reads them with the code of a0083c0, `load` writes them
with today's.
"""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    "field": "region",
    "fitting": "vqvae_schedule",
    "drawing": "prior_schedule",
    "sharpening": "decoder_schedule",
    "sharpens": "fine_tunes",
    "variants": "views",
    "batch": "batch_size",
    "rate": "learning_rate",
    "untold": "condition_dropout",
    "fine_power": "high_frequency_power",
    "fine_correlation": "high_frequency_correlation",
    "perplexity_brain_cells": "perplexity_brain",
    "codes_used_brain_cells": "codes_used_brain",
    "brain_cells": "brain_positions",
    "share_of_per_position": "ratio_to_per_position",
    "per slice and position": "per slice index and position",
    "drawn": "samples",
    "index_recognised": "slice_index_accuracy",
    "realism": "set_metrics",
    "too_near": "memorisation",
    "level_of_neighbours": "neighbour_index_accuracy",
    "learnt": "trained",
    "rungs": "variants",
    "after": "base",
    "times_faster": "speed_up",
    "cells": "positions",
    "draw": "sample",
    "draws": "samples",
    "times": "ratios",
    "compiled_times_faster": "compiled_speed_up",
    "heads": "num_heads",
    "prior_batch": "prior_batch_size",
    "images_a_second": "images_per_second",
    "maps_a_second": "maps_per_second",
}
CURVES = {
    "critic": "discriminator_loss",
    "faithful": "reconstruction_loss",
    "features": "feature_loss",
    "realism": "adversarial_loss",
    "told_apart": "discriminator_accuracy_on_real",
}
VALUES = {
    "faithful loss": "reconstruction loss",
    "fixed features": "perceptual loss",
    "critic": "discriminator",
    "codebook starts from data": "codebook starts from data",
    "cells where the brain is": "grid on the brain",
    "plain recipe": "reference",
    "Keras's example": "Keras example",
    "ours": "improved",
}


def renamed(content, keys=KEYS):
    if isinstance(content, dict):
        return {
            VALUES.get(keys.get(k, k), keys.get(k, k)): renamed(v, keys) for k, v in content.items()
        }
    if isinstance(content, list):
        return [renamed(part, keys) for part in content]
    if isinstance(content, str):
        return VALUES.get(content, re.sub("^ours, ", "improved, ", content))
    return content


def curves(stage: dict) -> dict:
    def name(key):
        prefix, plain = ("val_", key[4:]) if key.startswith("val_") else ("", key)
        return prefix + CURVES.get(plain, plain)

    return {name(key): values for key, values in stage.items()}


DUMP = """
import pickle, sys
from pathlib import Path
from oasis_helpers import series
models = {}
for folder in sorted(Path("data/weights").iterdir()):
    vqvae, prior = series.load_stages(folder)
    q = vqvae.quantizer
    models[folder.name] = {
        "vqvae": (vqvae.get_config(), [w.path for w in vqvae.weights], vqvae.get_weights()),
        "prior": prior and (type(prior).__name__, prior.get_config(), prior.get_weights()),
    }
pickle.dump(models, open(sys.argv[1], "wb"))
"""


def load(file: Path) -> None:
    import numpy as np

    from oasis_helpers import pixelcnn, pretrained
    from oasis_helpers.vqvae import VQVAE

    for name, stages in pickle.loads(file.read_bytes()).items():
        folder = ROOT / "data" / "weights" / name
        scores, history = (
            json.loads((folder / f"{n}.json").read_text()) for n in ("scores", "history")
        )
        history = {k: renamed(v) if k == "recipe" else curves(v) for k, v in history.items()}
        config, _, weights = stages["vqvae"]
        text = json.dumps(config).replace('"field"', '"region"')
        config = json.loads(text.replace(', "gradient": "straight-through"', ""))
        vqvae = VQVAE.from_config(config)
        if len(vqvae.get_weights()) == len(weights) + 1:  # restarts, counted in training
            [at] = [i for i, w in enumerate(vqvae.weights) if w.path.endswith("restarts")]
            base = history["recipe"]["fine_tunes"] or name
            counts = json.loads((ROOT / "data/weights" / base / "history.json").read_text())
            weights = [*weights[:at], np.float32(sum(counts["vqvae"]["restarts"])), *weights[at:]]
        vqvae.set_weights(weights)
        pretrained.save_model(vqvae, folder / "vqvae.keras")
        if stages["prior"]:
            kind, config, weights = stages["prior"]
            config = {KEYS.get(k, k): v for k, v in config.items()}
            prior = getattr(pixelcnn, kind).from_config(config)
            prior.set_weights(weights)
            pretrained.save_model(prior, folder / "prior.keras")
        scores = renamed(scores)
        scores["weights"] = pretrained.stages_digest(folder)
        scores["recipe"] = history["recipe"]
        (folder / "history.json").write_text(json.dumps(history) + "\n")
        (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
        print(name)


def results() -> None:
    folder = ROOT / "data" / "results"
    names = {
        "oasis1-ablation": "ablation",
        "oasis1-decoders": "decoders",
        "oasis1-priors": "priors",
        "oasis1-race": "time_to_target",
        "oasis1-rates": "rates",
        "oasis1-temperature": "temperature",
        "oasis1-tokenizers": "tokenizers",
        "bench": "speed",
        "sampling": "sampling",
        "sizes": "image_sizes",
    }
    for old, new in names.items():
        content = renamed(json.loads((folder / f"{old}.json").read_text()))
        (folder / f"{new}.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / f"{old}.json").unlink() if old != new else None
    for file in (ROOT / "data" / "features").glob("*.json"):
        file.write_text(json.dumps(renamed(json.loads(file.read_text())), indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "dump":
        subprocess.run([sys.executable, "-c", DUMP, sys.argv[3]], cwd=sys.argv[2], check=True)
    else:
        sys.path.insert(0, str(ROOT))
        load(Path(sys.argv[2]))
        results()
