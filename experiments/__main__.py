"""Measures one comparison and stores its results: `python -m experiments NAME`.

Results on real slices go to `data/results/`, where notebooks read them. Those on the synthetic
cohort go to `build/results/`. Comparisons that need no slices always go to `data/results/`.
"""

import argparse
import importlib
import json

from oasis_helpers import pretrained
from oasis_helpers.__main__ import ending_with_a_sentence
from oasis_helpers.data import REPOSITORY, write_json
from oasis_helpers.training import file_lock

BUILD = REPOSITORY / "build"
# What the function `measure` of each module takes.
EXPERIMENTS = {
    "ablation": ("root", "file"),
    "rates": ("root", "file"),
    "time_to_target": ("root",),
    "decoders": ("root", "file", "reconstruction_trained"),
    "priors": ("root", "weights"),
    "small_data": ("root", "file", "weights"),
    "tokenizers": ("root", "file", "whole_frame"),
    "temperature": ("root", "weights"),
    "memorisation": ("root", "weights"),
    "realism": ("root", "weights"),
    "sampling": (),
    "image_sizes": ("root",),
    "speed": (),
    "backends": (),
}
ANY_SLICES = ("sampling", "image_sizes", "speed", "backends")  # their results need no real slices


def measure(name: str) -> None:
    """Measures one comparison on the active data set; prints and stores its results."""
    data, wanted = pretrained.data_name(), EXPERIMENTS[name]
    root = pretrained.data_root() if "root" in wanted else None
    stored = data == "oasis1" or name in ANY_SLICES
    file = (pretrained.RESULTS if stored else BUILD / "results") / f"{name}.json"
    reason = "" if stored else ", because data/results/ is for real slices"
    again = "; what it holds is not measured again" if "file" in wanted else ""
    print(f"{name} on {root or 'blank slices'}; results go to {file}{reason}{again}", flush=True)
    known = {
        "root": root,
        "file": file,
        "weights": data,
        "reconstruction_trained": f"{data}-faithful",
        "whole_frame": "oasis1-10x10" if data == "oasis1" else data,
    }
    module = importlib.import_module(f"experiments.{name}")
    results = module.measure(*(known[argument] for argument in wanted))
    if isinstance(results, dict):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, results, indent=1)
        print(json.dumps(results, indent=1))
        return
    for result in results:
        print(one_line(result), flush=True)


def one_line(result: dict) -> str:
    """The name and the main scores of one variant."""
    scores = result | result.get("scores", {}) | result.get("prior", {})
    keys = ("ssim", "brain_ssim", "psnr_db", "bits_per_code")
    return "  ".join(
        [f"{result['name']:45s}", *(f"{key} {scores[key]}" for key in keys if key in scores)]
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("name", choices=list(EXPERIMENTS), help="of the comparison")
    name = parser.parse_args().name
    with file_lock(BUILD / "experiments", f"measuring {name!r}"):
        measure(name)


if __name__ == "__main__":
    ending_with_a_sentence(main)
