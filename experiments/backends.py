"""Does every backend compute the same from the same weights?

TensorFlow, JAX and PyTorch, as far as they are installed, sample, decode, encode and score the same
code maps, each in a process of its own. Codes should be equal, other values nearly so.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from experiments.variants import machine_facts
from oasis_helpers import load_pretrained, sample_codes

BACKENDS = ("tensorflow", "jax", "torch")
WEIGHTS = "cohort"


def measure() -> dict:
    """Compares the other backends that are installed with TensorFlow.

    Returns:
        {"machine", "weights", "backends": {name: {"codes_equal": bool, "largest_difference":
        {"decoded", "bits"}}}}: of decoded slices in [0, 1] and of bits for a code.
    """
    with tempfile.TemporaryDirectory() as folder:
        values = {
            name: _values_of(name, Path(folder) / f"{name}.npz")
            for name in BACKENDS
            if importlib.util.find_spec(name)
        }
    reference = values.pop("tensorflow")
    return {
        "machine": machine_facts(),
        "weights": WEIGHTS,
        "backends": {name: _compared(reference, other) for name, other in values.items()},
    }


def _values_of(backend: str, file: Path) -> dict[str, np.ndarray]:
    subprocess.run(
        [sys.executable, "-m", "experiments.backends", file],
        env={**os.environ, "KERAS_BACKEND": backend},
        check=True,
    )
    return dict(np.load(file, allow_pickle=False))


def _compared(reference: dict, other: dict) -> dict:
    differences = {key: np.abs(reference[key] - other[key]).max() for key in ("decoded", "bits")}
    return {
        "codes_equal": all(np.array_equal(reference[key], other[key]) for key in ("new", "again")),
        "largest_difference": {key: float(f"{x:.2g}") for key, x in differences.items()},
    }


def compute(file: Path) -> None:
    """Writes what the backend of this process makes of the shipped weights."""
    models = load_pretrained(WEIGHTS)
    codes = sample_codes(models.prior, 4, seed=0)
    slices = models.vqvae.decode(codes)
    nats = models.prior.log_prob(codes, np.array([0, 8, 16, 24]))
    again = models.vqvae.encode(slices)
    np.savez(file, new=codes, decoded=slices, again=again, bits=-nats / np.log(2) / codes[0].size)


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
