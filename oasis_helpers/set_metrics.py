"""How similar is a set of generated slices to real ones? Distances between *sets*, with baselines.

A new brain should differ from every given one, so no score between two images measures it. Sets are
compared, generated slices against real ones of test subjects, in the features of a small network
that predicts a slice's index, subject, and kind of corruption. Slices of one subject are nearly
copies of each other, so subjects are the units: no pair within a subject counts, and intervals come
from leaving subjects out. The slices of sample number j, one at each slice index, take the place of
a subject. They are independent of each other, which favours a generated set in recall and coverage.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import keras
import numpy as np
from keras import layers
from scipy import ndimage, stats
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics.pairwise import euclidean_distances, polynomial_kernel
from sklearn.pipeline import Pipeline, make_pipeline

from oasis_helpers.data import BRAIN_THRESHOLD, SliceSet, with_mirrored
from oasis_helpers.metrics import (
    Estimate,
    band_power,
    high_frequency_power,
    ssim_scores,
    student_interval,
)
from oasis_helpers.vqvae import VQVAE

WIDTH = 64  # number of features
NEIGHBOURS = 5  # k of precision, recall, density and coverage
CANDIDATES = 50  # training slices that are near, in the memorisation test
HALVES = 100  # random halves of the subjects, for the intervals of sets
STEPS = [step for step in product((-1, 0, 1), repeat=2) if any(step)]  # moves by a pixel
INDEX_TOLERANCE = 3  # slices, 3 mm: neighbours are similar
COMPONENTS = 100  # principal components of the pixels, for the slice index classifier

CORRUPTIONS = ("none", "blurred", "noisy", "two halves", "two heads mixed")


def corrupted(slices: SliceSet, kinds: list[str], seed: int = 0) -> np.ndarray:
    """Slices with a corruption of a given kind each, like those of generative models.

    Args:
        kinds: for each slice one of `CORRUPTIONS`: none; blurred by 0.5 to 2 pixels; noise of 0.03
            to 0.1; left and right half of two subjects; the mean of two subjects. The second
            subject is chosen at random from the others at that slice index.
        seed: of the random choices.

    Returns:
        float32 (N, size, size, 1) in [0, 1].
    """
    rng = np.random.default_rng(seed)
    images, middle = slices.images.copy(), slices.images.shape[2] // 2
    same_index = {index: np.flatnonzero(slices.slices == index) for index in set(slices.slices)}
    for number, kind in enumerate(kinds):
        image, others = images[number], same_index[slices.slices[number]]
        if kind == "blurred":
            sigma = rng.uniform(0.5, 2)
            image[:] = ndimage.gaussian_filter(image, (sigma, sigma, 0))
        elif kind == "noisy":
            noise = rng.normal(0, rng.uniform(0.03, 0.1), image.shape)
            image += np.where(image > BRAIN_THRESHOLD, noise, 0)
        elif kind == "two halves":
            image[:, middle:] = slices.images[rng.choice(others[others != number])][:, middle:]
        elif kind == "two heads mixed":
            image[:] = (image + slices.images[rng.choice(others[others != number])]) / 2
    return np.clip(images, 0, 1)


def feature_layers(shape: tuple[int, int, int], seed: int = 0) -> keras.Model:
    """The feature network before training: four strided convolutions and a dense layer.

    A model from float (N, size, size, 1) in [0, 1] to float (N, 64); `seed` is of its weights.
    """
    seeds = random.Random(seed)

    def glorot():
        return keras.initializers.GlorotUniform(seeds.randint(1, int(1e9)))

    image = keras.Input(shape)
    x = layers.Rescaling(2.0, offset=-1.0)(image)
    for filters in (16, 32, 64, 128):
        x = layers.Conv2D(filters, 3, 2, "same", activation="relu", kernel_initializer=glorot())(x)
    x = layers.Dense(WIDTH, kernel_initializer=glorot())(layers.Flatten()(x))
    return keras.Model(image, x)


def standardised(network: keras.Model, train: SliceSet) -> keras.Model:
    """The network with features of mean 0 and deviation 1 over the training slices."""
    normalization = layers.Normalization()
    normalization.adapt(network.predict(train.images, verbose=0))
    return keras.Model(network.input, normalization(network.output), name="features")


@dataclass(frozen=True)
class FeatureSet:
    """Slices in feature space: float (N, C), and int (N,), each slice's subject or sample."""

    values: np.ndarray
    subjects: np.ndarray

    def __post_init__(self):
        if len(self.values) != len(self.subjects) or not np.isfinite(self.values).all():
            raise ValueError(
                f"A set of {len(self.values)} slices of {len(self.subjects)} subjects cannot be "
                "scored; expected a subject for each slice, and finite features."
            )


def between_subjects(slices: FeatureSet) -> np.ndarray:
    """float (N, N): Euclidean distances, infinite within a subject."""
    distances = euclidean_distances(slices.values.astype("float64"))
    distances[np.equal.outer(slices.subjects, slices.subjects)] = np.inf
    return distances


def jackknife(statistic: Callable, *sets: np.ndarray) -> list[Estimate]:
    """Scores of sets of slices; their intervals come from random halves of each set's subjects.

    Halves vary about as whole sets do (the delete-half jackknife, Shao and Wu 1989). `statistic`
    takes a boolean (N,) for each set, the slices that count, and returns the scores; `sets` are
    int (N,), the subjects of each set's slices.
    """
    rng, names = np.random.default_rng(0), [np.unique(subjects) for subjects in sets]

    def scores(fraction):
        chosen = (rng.permutation(one)[: max(2, int(fraction * len(one)))] for one in names)
        return statistic(*map(np.isin, sets, chosen))

    errors = np.std([scores(0.5) for _ in range(HALVES)], axis=0)
    count = min(map(len, names))
    return [student_interval(*pair, count) for pair in zip(scores(1), errors)]


def kid(first: FeatureSet, second: FeatureSet) -> Estimate:
    """The KID of two sets: 0 on average where both come from one distribution.

    The unbiased squared maximum mean discrepancy with the polynomial kernel (x . y / C + 1)^3
    (Binkowski et al. 2018, arXiv 1801.01401), over pairs of different subjects only. It can be
    negative. Its interval (`jackknife`) is wider than needed where the sets are nearly equal.
    """
    sizes = [len(np.unique(one.subjects)) for one in (first, second)]
    if min(sizes) < 2:
        raise ValueError(
            f"The KID needs two subjects or more in each set; these have {sizes[0]} and {sizes[1]}."
        )

    values = [one.values.astype("float64") for one in (first, second)]
    kernels, across = [polynomial_kernel(one) for one in values], polynomial_kernel(*values)
    for kernel, one in zip(kernels, (first, second)):
        kernel[np.equal.outer(one.subjects, one.subjects)] = np.nan

    def distance(rows, columns):
        within = [np.nanmean(k[np.ix_(x, x)]) for k, x in zip(kernels, (rows, columns))]
        return [sum(within) - 2 * across[np.ix_(rows, columns)].mean()]

    return jackknife(distance, first.subjects, second.subjects)[0]


def prdc(real: FeatureSet, other: FeatureSet) -> dict[str, Estimate]:
    """Precision, recall, density and coverage of two sets.

    Each slice has a ball; its radius is the distance to the fifth nearest slice *of other
    subjects* in its own set. Intervals come from the `jackknife` of both sets.

    Returns:
        "precision", the fraction of the other set inside a real slice's ball, and "recall", the
        fraction of real slices inside a ball of the other set (Kynkaanniemi et al. 2019, arXiv
        1904.06991); "density", how many real balls hold a slice of the other set, over k, and
        "coverage", the fraction of real balls that hold at least one (Naeem et al. 2020, arXiv
        2002.09797): the large ball of an outlier adds little to the first and nothing to the
        second.
    """
    across = euclidean_distances(real.values.astype("float64"), other.values.astype("float64"))
    within = between_subjects(real), between_subjects(other)

    def scores(rows, columns):
        distances = across[np.ix_(rows, columns)]
        in_real = distances <= _radius(within[0][np.ix_(rows, rows)])[:, None]
        in_other = distances <= _radius(within[1][np.ix_(columns, columns)])
        density = in_real.sum(0).mean() / NEIGHBOURS
        return in_real.any(0).mean(), in_other.any(1).mean(), density, in_real.any(1).mean()

    highest = {"precision": 1.0, "recall": 1.0, "density": np.inf, "coverage": 1.0}
    estimates = zip(highest.items(), jackknife(scores, real.subjects, other.subjects))
    return {
        name: Estimate(one.mean, max(one.low, 0.0), min(one.high, end))
        for (name, end), one in estimates
    }


def _radius(distances: np.ndarray) -> np.ndarray:
    """float (N,): the distance of each slice to its fifth nearest slice of other subjects."""
    if np.isfinite(distances).sum(1).min(initial=len(distances)) < NEIGHBOURS:
        raise ValueError(
            f"A ball needs {NEIGHBOURS} slices of other subjects for each slice, in each half of a "
            "set; choose a larger one."
        )
    return np.partition(distances, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]


def pairwise_ssim(images: np.ndarray, slices: np.ndarray, subjects: np.ndarray) -> Estimate:
    """Mean SSIM of slices of different subjects at the same slice index: high means low diversity.

    All pairs of subjects; interval by `jackknife`. Images are float (N, size, size, 1) in [0, 1],
    slices and subjects int (N,).
    """
    if not len(images) == len(slices) == len(subjects):
        raise ValueError(
            f"{len(images)} images, {len(slices)} slice indices and {len(subjects)} subjects do "
            "not belong together; expected one of each for every image."
        )
    first, second = np.nonzero(np.equal.outer(slices, slices) & np.less.outer(subjects, subjects))
    count = len(np.unique(subjects[[*first, *second]]))
    if count < 3:
        raise ValueError(
            f"Pairs of slices of {count} subjects have no interval; expected three subjects or "
            "more with slices at the same index."
        )
    similarity = ssim_scores(images[first], images[second])[0]
    return jackknife(lambda x: [similarity[x[first] & x[second]].mean()], subjects)[0]


def nearest_pixels(images: np.ndarray, train: SliceSet) -> tuple[np.ndarray, np.ndarray]:
    """How near the nearest training slice is, as it is or mirrored, and which one it is.

    The distance to the nearest slice over the mean of the 50 nearest (Carlini et al. 2023, arXiv
    2301.13188): near 1 for a new slice, lower for a copy. Left and right halves are compared one by
    one, because a slice joined from halves of two training slices is a copy, too.

    Returns float (N,), the mean of both halves, and int (N,), indices in `with_mirrored`.
    """
    candidates, middle = with_mirrored(train.images), images.shape[2] // 2
    distances = [
        euclidean_distances(*(x[:, :, half].reshape(len(x), -1) for x in (images, candidates)))
        for half in (slice(middle), slice(middle, None))
    ]
    last = min(CANDIDATES, len(candidates)) - 1
    nearest = [np.partition(distance, last, axis=1)[:, : last + 1] for distance in distances]
    ratios = [distance.min(1) / distance.mean(1) for distance in nearest]
    return np.mean(ratios, axis=0), np.linalg.norm(distances, axis=0).argmin(1)


def nearest_codes(vqvae: VQVAE, codes: np.ndarray, train_codes: np.ndarray) -> np.ndarray:
    """How near the nearest training code map is: the fraction of positions that differ, float (N,).

    A map has other codes after its slice has moved by a pixel. So each decoded slice is also moved
    in eight directions and encoded again, and the nearest of its nine maps counts.
    """
    images, candidates = vqvae.decode(codes), train_codes.reshape(len(train_codes), -1)
    moved = [vqvae.encode(np.roll(images, step, axis=(1, 2))) for step in STEPS]
    flat = [maps.reshape(len(maps), -1) for maps in (codes, *moved)]
    return np.min([cdist(maps, candidates, "hamming").min(1) for maps in flat], axis=0)


def memorisation_test(distances: np.ndarray, unseen: np.ndarray) -> tuple[int, float]:
    """How many samples are nearer to a training slice than every unseen slice, and its p-value.

    Were samples like unseen slices, any of the N + M could be the nearest: the first `count` are
    all samples by chance with probability (N / (N + M))^count or less (Nelson 1963). Both are
    distances to the nearest training slice, float (N,) and (M,), of slices from the same decoder.
    """
    count = int(np.sum(distances < unseen.min()))
    return count, (len(distances) / (len(distances) + len(unseen))) ** count


FLUID_THRESHOLD = 0.55  # of the brain's median grey: fluid is darker, cortex is brighter
ANATOMY = ("brain area", "fluid area", "symmetry", "mean grey", "contrast")


def anatomy(images: np.ndarray) -> dict[str, np.ndarray]:
    """Simple measurements of each slice: float (N,) under the names in `ANATOMY`.

    Brain area: fraction of the image above 10 / 255, holes filled. Fluid area: fraction of the
    inner brain (without its outer 3 pixels) darker than 0.55 of its median, mostly ventricles.
    Symmetry: correlation of the brain with its mirror image about its own middle line, where both
    are brain. Mean grey and contrast: mean and standard deviation inside the brain. Images are
    float (N, size, size, 1) in [0, 1].
    """
    values = np.full((len(images), len(ANATOMY)), np.nan)
    for number, image in enumerate(images[..., 0]):
        brain = ndimage.binary_fill_holes(image > BRAIN_THRESHOLD)
        inner = ndimage.binary_erosion(brain, iterations=3)
        if not inner.any():
            continue
        columns = np.flatnonzero(brain.any(0))
        box = slice(columns[0], columns[-1] + 1)
        both = brain[:, box] & brain[:, box][:, ::-1]
        greys = image[brain]
        fluid = np.mean(image[inner] < FLUID_THRESHOLD * np.median(image[inner]))
        symmetry = np.corrcoef(image[:, box][both], image[:, box][:, ::-1][both])[0, 1]
        values[number] = brain.mean(), fluid, symmetry, greys.mean(), greys.std()
    return dict(zip(ANATOMY, values.T))


def head_measures(images: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """float (S, 4): what distinguishes one head from another, as means over all its slices.

    Fluid area (ventricle size), mean grey (brightness) and contrast of `anatomy`, and
    `metrics.high_frequency_power` (sharpness); subjects (N,) in increasing order.
    """
    measures = anatomy(images)
    columns = [measures[name] for name in ("fluid area", "mean grey", "contrast")]
    values = np.stack([*columns, high_frequency_power(band_power(images))], axis=1)
    return np.stack([np.nanmean(values[subjects == one], 0) for one in np.unique(subjects)])


def quantile_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """int (S, M): the bin, 0 ... bins - 1, of each of S values; bins are equally filled."""
    edges = np.quantile(values, np.arange(1, bins) / bins, axis=0)
    return np.stack([np.searchsorted(*pair) for pair in zip(edges.T, values.T)], axis=1)


def slice_index_classifier(train: SliceSet, seed: int = 0) -> Pipeline:
    """A small classifier of the slice index, fitted to real training slices.

    Principal components of the pixels, then a linear discriminant analysis (Fisher 1936): a fitted
    scikit-learn pipeline, whose `predict` takes float (N, size * size).
    """
    flat = train.images.reshape(len(train), -1)
    components = min(COMPONENTS, *flat.shape)
    classifier = make_pipeline(
        PCA(components, svd_solver="randomized", random_state=seed), LinearDiscriminantAnalysis()
    )
    return classifier.fit(flat, train.slices)


def neighbour_agreement(stacks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square difference and brain SSIM of slices k and k + 1, float (n, 31) each.

    Of stacks (n, 32, size, size, 1) in [0, 1].
    """
    lower, upper = (x.reshape(-1, *stacks.shape[2:]) for x in (stacks[:, :-1], stacks[:, 1:]))
    difference = np.sqrt(np.mean((lower - upper) ** 2, axis=(1, 2, 3)))
    shape = len(stacks), stacks.shape[1] - 1
    return difference.reshape(shape), ssim_scores(lower, upper)[1].reshape(shape)


def reformats(stacks: np.ndarray) -> dict[str, np.ndarray]:
    """{"coronal", "sagittal"}: float (n, size, 32, size), planes cut through stacks, top first.

    One at each row (coronal) and column (sagittal) of stacks (n, 32, size, size, 1).
    """
    upright = stacks[:, ::-1, ..., 0]
    return {"coronal": upright.swapaxes(1, 2), "sagittal": upright.transpose(0, 3, 1, 2)}


def set_table(
    networks: dict[str, keras.Model],
    real: SliceSet,
    images: np.ndarray,
    slices: np.ndarray,
    subjects: np.ndarray,
) -> dict:
    """All scores of a set of slices against the real ones of test subjects.

    Args:
        networks: {"trained": ..., "random": ...}, from `pretrained.load_feature_networks`.
        real: slices of test subjects.
        images, slices, subjects: float (N, size, size, 1) in [0, 1], int (N,), int (N,), the set.

    Returns:
        Estimates as [mean, low, high]: "kid" in trained and "kid_random" in random features;
        "precision", "recall", "density", "coverage" in trained ones; "pairwise_ssim". "anatomy":
        the Kolmogorov-Smirnov statistic of each measurement, the largest difference of cumulative
        distributions, 0 for equal and 1 for disjoint ones.
    """
    parts = (real.images, real.subjects), (images, subjects)
    sets = {
        kind: [FeatureSet(network.predict(part, verbose=0), numbers) for part, numbers in parts]
        for kind, network in networks.items()
    }
    estimates = {
        "kid": kid(*sets["trained"]),
        "kid_random": kid(*sets["random"]),
        **prdc(*sets["trained"]),
        "pairwise_ssim": pairwise_ssim(images, slices, subjects),
    }
    row = {"slices": len(images)} | {k: v.rounded() for k, v in estimates.items()}
    pairs = zip(anatomy(images).values(), anatomy(real.images).values())
    tests = [stats.ks_2samp(*pair, nan_policy="omit", method="asymp") for pair in pairs]
    return row | {"anatomy": {k: round(float(v.statistic), 3) for k, v in zip(ANATOMY, tests)}}
