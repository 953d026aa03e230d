"""Does the memorisation test see copies of training slices, and is it quiet without them?

In sets of generated slices, a few are replaced by copies: training slices that were moved by one
or two pixels, that were only encoded and decoded, or that were joined from halves of two subjects.
The test is run on 20 random sets of each kind. Unseen slices are those of a random half of all
validation and test subjects; those of the other half, in place of samples, are a control without
copies.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from oasis_helpers import metrics, pretrained, set_metrics
from oasis_helpers.data import SLICES_PER_SUBJECT, SliceSet, with_mirrored
from oasis_helpers.metrics import Estimate
from oasis_helpers.sampling import sample_codes

REPETITIONS = 20
PER_INDEX = 20  # samples at each slice index in a set; there are twice as many to choose from
COPIES = 128  # of each kind, to choose from
FRACTIONS = (0.01, 0.05, 0.1)  # of a set that are copies
ALARM = 0.05  # the highest p-value that raises it


def measure(root: str | Path, weights: str) -> dict:
    """Runs the memorisation test on planted copies and without them, and a test of membership.

    Returns:
        {"weights", "samples" in a set, "repetitions", "copies": {kind: {"pixels" or "codes":
        {"found": the fraction of copies nearer than every unseen slice, "alarms": {"0.05": in how
        many repetitions}}}}, "without copies": {"samples" or "unseen": {"pixels" or "codes":
        alarms}}, "membership": the AUC of bits per code, training against test subjects, as
        [mean, low, high]}.
    """
    models = pretrained.load_pretrained(weights)
    train, validate, test = (
        models.load_slices(root, split) for split in ("train", "validate", "test")
    )
    indices = np.repeat(np.arange(SLICES_PER_SUBJECT), 2 * PER_INDEX)
    maps = {"samples": sample_codes(models.prior, len(indices), indices, seed=0)}
    maps["unseen"] = models.vqvae.encode(np.concatenate([validate.images, test.images]))
    maps |= {kind: models.vqvae.encode(images) for kind, images in copies_of(train).items()}
    train_codes = models.vqvae.encode(with_mirrored(train.images))
    distances = {
        "pixels": {
            name: set_metrics.nearest_pixels(models.vqvae.decode(codes), train)[0]
            for name, codes in maps.items()
        },
        "codes": {
            name: set_metrics.nearest_codes(models.vqvae, codes, train_codes)
            for name, codes in maps.items()
        },
    }
    subjects = np.concatenate([validate.subjects, test.subjects])
    return {
        "weights": weights,
        "samples": len(indices) // 2,
        "repetitions": REPETITIONS,
        **alarms(distances, subjects),
        "membership": membership(models, train, test).rounded(),
    }


def copies_of(train: SliceSet, seed: int = 0) -> dict[str, np.ndarray]:
    """{kind: float32 (128, size, size, 1)}: copies of random training slices, before encoding."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(train), COPIES)
    images, middle = train.images[chosen], train.images.shape[2] // 2
    steps = rng.choice(set_metrics.STEPS, COPIES)
    moved, further = (
        np.stack([np.roll(image, step, axis=(0, 1)) for image, step in zip(images, pixels * steps)])
        for pixels in (1, 2)
    )
    partners = [
        rng.choice(np.flatnonzero((train.slices == k) & (train.subjects != subject)))
        for k, subject in zip(train.slices[chosen], train.subjects[chosen])
    ]
    halves = np.concatenate([images[:, :, :middle], train.images[partners][:, :, middle:]], axis=2)
    return {
        "moved by a pixel": moved,
        "moved by two pixels": further,
        "decoded again": images,
        "two halves": halves,
    }


def alarms(distances: dict[str, dict], subjects: np.ndarray, seed: int = 0) -> dict:
    """What the test says on random sets, {test: {"samples", "unseen" or a kind: distances}}.

    Args:
        distances: to the nearest training slice, as `measure` makes them.
        subjects: int (M,), of the unseen slices.

    Returns:
        {"copies", "without copies"}, as `measure` does.
    """
    sets = list(random_sets(subjects, seed))
    copies, quiet = {}, {"samples": {}, "unseen": {}}
    for test, of in distances.items():
        samples, unseen = of["samples"], of["unseen"]
        quiet["samples"][test] = sum(alarm(samples[s], unseen[u]) for s, u, _ in sets)
        quiet["unseen"][test] = sum(alarm(unseen[~u], unseen[u]) for _, u, _ in sets)
        for kind in (kind for kind in of if kind not in quiet):
            planted = [(samples[s], unseen[u], of[kind][c]) for s, u, c in sets]
            detected = np.mean([c < u.min() for _, u, c in planted])
            raised = {f: sum(alarm(plant(s, c, f), u) for s, u, c in planted) for f in FRACTIONS}
            copies.setdefault(kind, {})[test] = {
                "found": round(float(detected), 3),
                "alarms": {str(fraction): count for fraction, count in raised.items()},
            }
    return {"copies": copies, "without copies": quiet}


def random_sets(subjects: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, ...]]:
    """For each repetition: samples, int; unseen slices, bool; all copies in a random order, int."""
    rng, names = np.random.default_rng(seed), np.unique(subjects)
    for _ in range(REPETITIONS):
        of_index = [rng.permutation(2 * PER_INDEX)[:PER_INDEX] for _ in range(SLICES_PER_SUBJECT)]
        samples = np.add(of_index, 2 * PER_INDEX * np.arange(SLICES_PER_SUBJECT)[:, None]).ravel()
        unseen = np.isin(subjects, rng.permutation(names)[: len(names) // 2])
        yield rng.permutation(samples), unseen, rng.permutation(COPIES)


def plant(samples: np.ndarray, copies: np.ndarray, fraction: float) -> np.ndarray:
    """Distances of a set whose first slices are copies."""
    count = round(fraction * len(samples))
    return np.concatenate([copies[:count], samples[count:]])


def alarm(distances: np.ndarray, unseen: np.ndarray) -> bool:
    """Whether the test says that there are copies."""
    return set_metrics.memorisation_test(distances, unseen)[1] < ALARM


def membership(models: pretrained.Pretrained, train: SliceSet, unseen: SliceSet) -> Estimate:
    """How often a training subject needs fewer bits per code than an unseen one: 0.5 by chance."""
    means = []
    for slices in (train, unseen):
        codes = models.vqvae.encode(slices.images)
        bits = metrics.bits_per_code(models.prior.log_prob(codes, slices.slices), codes[0].size)
        _, group = np.unique(slices.subjects, return_inverse=True)
        means.append(np.bincount(group, bits) / np.bincount(group))

    return auc(*means, *(np.arange(len(one)) for one in means))


def auc(first: np.ndarray, second: np.ndarray, *subjects: np.ndarray) -> Estimate:
    """How often a value of the second set is above one of the first; 0.5 for equal sets.

    Values are float (N,) and (M,), `subjects` int (N,) and (M,), for the interval (`jackknife`).
    """

    def area(rows, columns):
        return [np.mean(np.less.outer(first[rows], second[columns]))]

    one = set_metrics.jackknife(area, *subjects)[0]
    return Estimate(one.mean, max(one.low, 0.0), min(one.high, 1.0))
