"""What do larger slices cost, in time and memory?

Both stages are trained for a few steps, and a few slices are sampled, at every size of
`distributed.SIZES`. Slices are streamed from the disk. Every size has a process of its own, so that
its memory is measured alone.
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import keras
import numpy as np

from experiments.variants import StopAfter, machine_facts, timed
from oasis_helpers.distributed import SIZES, stream_slices
from oasis_helpers.recipes import improved_vqvae
from oasis_helpers.sampling import sample_codes
from oasis_helpers.training import Batches, fit_prior

SAMPLES = 4  # sampled side by side


def measure(root: str | Path, names: tuple[str, ...] = tuple(SIZES), steps: int = 5) -> dict:
    """{"machine", "sizes": [as `cost`, ...]}, from `steps` steps of each stage."""
    costs = []
    for name in names:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            costs.append(process.submit(cost, name, Path(root), steps).result())
    return {"machine": machine_facts(), "sizes": costs}


def cost(name: str, root: Path, steps: int) -> dict:
    """Seconds and memory that one of `distributed.SIZES` takes in this process.

    Returns:
        {"name", "size", "positions", "bits" per slice, "weights" and "batch_size" of both stages,
        "steps", "fit_step" and "prior_step" in seconds, "sample" in seconds per slice, "peak_gb"
        of memory, None on Windows}.
    """
    recipe, stops = SIZES[name], (StopAfter(steps), StopAfter(steps))
    first, second = recipe.vqvae_schedule.batch_size, recipe.prior_schedule.batch_size
    keras.utils.set_random_seed(recipe.seed)
    train = stream_slices(root, "train", recipe.size, recipe.crop)
    vqvae = improved_vqvae(1.0, recipe.size, **recipe.vqvae)
    vqvae.compile(keras.optimizers.Adam())
    batches = Batches(lambda chosen: (train.read(chosen),) * 2, len(train), first)
    vqvae.fit(batches, epochs=steps, callbacks=[stops[0]], verbose=0)
    codes = np.tile(vqvae.encode(train.read(range(second))), (steps, 1, 1))  # an epoch of them
    training = codes, np.resize(train.slices[:second], len(codes)), len(codes)
    prior, _ = fit_prior(recipe, vqvae.num_embeddings, training, None, [stops[1]])
    vqvae.decode(sample_codes(prior, SAMPLES))  # what happens only once is not timed
    _, seconds = timed(lambda: vqvae.decode(sample_codes(prior, SAMPLES)))
    return {
        "name": name,
        "size": recipe.size,
        "positions": int(np.prod(vqvae.code_shape)),
        "bits": round(vqvae.bits_per_slice),
        "weights": [vqvae.count_params(), prior.count_params()],
        "batch_size": [first, second],
        "steps": steps,
        "fit_step": round(stops[0].step_seconds, 4),
        "prior_step": round(stops[1].step_seconds, 4),
        "sample": round(seconds / SAMPLES, 4),
        "peak_gb": peak_memory(),
    }


def peak_memory() -> float | None:
    """The largest memory that this process has held, in GiB; None where nothing measures it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)
