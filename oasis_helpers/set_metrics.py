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
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers
from scipy import ndimage, stats
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.metrics.pairwise import euclidean_distances, polynomial_kernel
from sklearn.pipeline import Pipeline, make_pipeline

from oasis_helpers.data import BRAIN_THRESHOLD, SLICES_PER_SUBJECT, SliceSet, with_mirrored
from oasis_helpers.metrics import (
    RESAMPLES,
    Estimate,
    band_power,
    high_frequency_power,
    ssim_scores,
    subject_interval,
)

WIDTH = 64  # number of features
NEIGHBOURS = 5  # k of precision, recall, density and coverage
INDEX_TOLERANCE = 3  # slices, 3 mm: neighbours are similar
COMPONENTS = 100  # principal components of the pixels, for the slice index classifier


# What the feature network is trained on, and one kind that it is only tested on.
CORRUPTIONS = ("none", "blurred", "noisy", "two halves", "two heads mixed")
HELD_OUT_CORRUPTION = "half resolution"


def corrupted(slices: SliceSet, kinds: list[str], seed: int = 0) -> np.ndarray:
    """Slices with a corruption of a given kind each, like those of generative models.

    Args:
        slices: N of them.
        kinds: for each slice one of `CORRUPTIONS` or `HELD_OUT_CORRUPTION`: blurred by 0.5 to 2
            pixels; noise of 0.03 to 0.1; left and right half of two subjects; the mean of two
            subjects; every other pixel, enlarged twofold. The second subject is chosen at random
            from the others at that slice index.
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
        elif kind == HELD_OUT_CORRUPTION:
            image[:] = image[::2, ::2].repeat(2, 0).repeat(2, 1)
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


def kid(first: FeatureSet, second: FeatureSet, seed: int = 0) -> Estimate:
    """The KID of two sets: 0 on average where both come from one distribution.

    The unbiased squared maximum mean discrepancy with the polynomial kernel (x . y / C + 1)^3
    (Binkowski et al. 2018, arXiv 1801.01401), over pairs of different subjects only. It can be
    negative. The 95 % interval comes from random halves of the subjects of both sets, which vary
    as whole sets do (the delete-half jackknife, Shao and Wu 1989), and up to 1.7 times as much
    where the sets are nearly equal: there the interval is conservative.
    """
    sums = [_block_sums(*pair) for pair in ((first, first), (second, second), (first, second))]
    sizes = sums[2][0].shape
    if min(sizes) < 2:
        raise ValueError(
            f"The KID needs two subjects or more in each set; these have {sizes[0]} and {sizes[1]}."
        )
    rng = np.random.default_rng(seed)

    def distance(of_first, of_second):
        means, chosen = [], ((of_first, of_first), (of_second, of_second), (of_first, of_second))
        for (rows, columns), blocks in zip(chosen, sums):
            total, count = (part[np.ix_(rows, columns)] for part in blocks)
            pairs = ~np.eye(*total.shape, dtype=bool) | (blocks is sums[2])  # across: all pairs
            means.append(total[pairs].sum() / count[pairs].sum())
        return means[0] + means[1] - 2 * means[2]

    halves = [
        distance(*(rng.permutation(size)[: max(2, size // 2)] for size in sizes))
        for _ in range(RESAMPLES // 4)
    ]
    low, high = np.percentile(halves, [2.5, 97.5])
    return Estimate(float(distance(*map(np.arange, sizes))), float(low), float(high))


def _block_sums(first: FeatureSet, second: FeatureSet) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the kernel over blocks of one subject by another, and the blocks' sizes."""
    matrix = polynomial_kernel(*(x.values.astype("float64") for x in (first, second)))
    of_row, of_column = (
        np.equal.outer(np.unique(x.subjects), x.subjects).astype("float64") for x in (first, second)
    )
    return of_row @ matrix @ of_column.T, np.outer(of_row.sum(1), of_column.sum(1))


def prdc(real: FeatureSet, other: FeatureSet) -> dict[str, Estimate]:
    """Precision, recall, density and coverage of two sets.

    Each slice has a ball; its radius is the distance to the fifth nearest slice *of other
    subjects* in its own set. Intervals come from resampling the subjects whose fraction is taken,
    with the other set fixed.

    Returns:
        "precision", the fraction of the other set inside a real slice's ball, and "recall", the
        fraction of real slices inside a ball of the other set (Kynkaanniemi et al. 2019, arXiv
        1904.06991); "density", how many real balls hold a slice of the other set, over k, and
        "coverage", the fraction of real balls that hold at least one (Naeem et al. 2020, arXiv
        2002.09797): the large ball of an outlier adds little to the first and nothing to the
        second.
    """
    across = euclidean_distances(real.values.astype("float64"), other.values.astype("float64"))
    in_real = across <= _radius(real)[:, None]
    in_other = across <= _radius(other)[None]
    return {
        "precision": subject_interval(in_real.any(0).astype(float), other.subjects),
        "recall": subject_interval(in_other.any(1).astype(float), real.subjects),
        "density": subject_interval(in_real.sum(0) / NEIGHBOURS, other.subjects),
        "coverage": subject_interval(in_real.any(1).astype(float), real.subjects),
    }


def _radius(slices: FeatureSet) -> np.ndarray:
    """float (N,): the distance of each slice to its fifth nearest slice of other subjects."""
    distances, nearest = between_subjects(slices), NEIGHBOURS - 1
    if np.isfinite(distances).sum(1).min(initial=len(distances)) < NEIGHBOURS:
        raise ValueError(
            f"A ball needs {NEIGHBOURS} slices of other subjects for each slice; choose a larger "
            "set."
        )
    return np.partition(distances, nearest, axis=1)[:, nearest]


def pairwise_ssim(images: np.ndarray, slices: np.ndarray, subjects: np.ndarray) -> Estimate:
    """Mean SSIM of slices of different subjects at the same slice index: high means low diversity.

    All pairs of subjects; the 95 % interval comes from leaving out each subject in turn
    (jackknife). Images are float (N, size, size, 1) in [0, 1], slices and subjects int (N,).
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

    def without(subject):
        return similarity[(subjects[first] != subject) & (subjects[second] != subject)].mean()

    left_out = np.array([without(subject) for subject in np.unique(subjects)])
    error = np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2))
    mean = similarity.mean()
    return Estimate(float(mean), float(mean - 1.96 * error), float(mean + 1.96 * error))


def nearest_pixels(images: np.ndarray, train: SliceSet) -> tuple[np.ndarray, np.ndarray]:
    """The training slice, as it is or mirrored, that is nearest to each image.

    Returns root mean square differences, float (N,), and indices in `with_mirrored`, int (N,).
    """
    candidates = with_mirrored(train.images).reshape(2 * len(train), -1)
    flat = images.reshape(len(images), -1)
    nearest, distance = pairwise_distances_argmin_min(flat, candidates)
    return distance / candidates.shape[1] ** 0.5, nearest


def nearest_codes(codes: np.ndarray, train_codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The training code map (h, w) that agrees with each code map at the most positions.

    Returns the fractions of positions that differ, float (N,), and indices, int (N,).
    """
    if codes.shape[1:] != train_codes.shape[1:]:
        raise ValueError(
            f"Code maps of shapes {codes.shape} and {train_codes.shape} cannot be compared; "
            "expected one grid: encode both with the same weights."
        )
    flat, candidates = (maps.reshape(len(maps), -1) for maps in (codes, train_codes))
    distances = cdist(flat, candidates, "hamming")
    return distances.min(1), distances.argmin(1)


def memorised_fraction(
    distances: np.ndarray, unseen: np.ndarray, subjects: np.ndarray, seed: int = 0
) -> Estimate:
    """The fraction of samples nearer to a training slice than 99 % of unseen subjects' slices.

    The nearest-neighbour memorisation test: by chance the fraction is 1 %, and copies of training
    slices raise it. The 95 % interval comes from resampling the unseen subjects.

    Args:
        distances: float (N,), of generated slices to their nearest training slices.
        unseen: float (M,), the same for slices of unseen subjects, decoded by the same decoder.
        subjects: int (M,), of the latter.
        seed: of the resampling.
    """
    by_subject = [unseen[subjects == subject] for subject in np.unique(subjects)]
    count = len(by_subject)
    chosen = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    limits = [np.percentile(np.concatenate([by_subject[i] for i in row]), 1) for row in chosen]
    fractions = np.searchsorted(np.sort(distances), limits) / len(distances)
    fraction = float(np.mean(distances < np.percentile(unseen, 1)))
    return Estimate(fraction, *map(float, np.percentile(fractions, [2.5, 97.5])))


FLUID_THRESHOLD = 0.55  # of the brain's median grey: fluid is darker, cortex is brighter
ANATOMY = ("brain area", "fluid area", "symmetry", "mean grey", "contrast")


def anatomy(images: np.ndarray) -> dict[str, np.ndarray]:
    """Simple measurements of each slice: float (N,) under the names in `ANATOMY`.

    Brain area: fraction of the image above 10 / 255, holes filled. Fluid area: fraction of the
    inner brain (without its outer 3 pixels) darker than 0.55 of its median, mostly ventricles.
    Symmetry: correlation of the brain with its mirror image about its own middle line, where both
    are brain. Mean grey and contrast: mean and standard deviation inside the brain.

    Args:
        images: float (N, size, size, 1) in [0, 1].
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
    """float (S, 2): fluid area (ventricle size) and mean grey (brightness) of each head.

    The means of `anatomy` over all slices of a subject, subjects (N,) in increasing order.
    """
    measures = anatomy(images)
    values = np.stack([measures["fluid area"], measures["mean grey"]], axis=1)
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


def high_frequency_power_by_third(
    samples: np.ndarray, indices: np.ndarray, unseen: SliceSet
) -> list[float]:
    """High-frequency power of samples over that of real slices, by third of the stack.

    Args:
        samples: float (N, size, size, 1) in [0, 1].
        indices: int (N,), their slice indices.
        unseen: real slices of other subjects.
    """

    def by_third(images, slices):
        power, third = high_frequency_power(band_power(images)), slices * 3 // SLICES_PER_SUBJECT
        return np.array([power[third == number].mean() for number in range(3)])

    ratio = by_third(samples, indices) / by_third(unseen.images, unseen.slices)
    return [round(float(x), 3) for x in ratio]


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
        "precision", "recall", "density", "coverage" in trained ones; "pairwise_ssim". "anatomy" is
        the Kolmogorov-Smirnov statistic of each measurement: 0 equal, 1 disjoint.
    """
    parts = (real.images, real.subjects), (images, subjects)
    sets = {
        kind: [FeatureSet(network.predict(part, verbose=0), numbers) for part, numbers in parts]
        for kind, network in networks.items()
    }
    row = {
        "slices": len(images),
        "kid": kid(*sets["trained"]),
        "kid_random": kid(*sets["random"]),
        **prdc(*sets["trained"]),
        "pairwise_ssim": pairwise_ssim(images, slices, subjects),
    }
    row = {k: v.rounded() if isinstance(v, Estimate) else v for k, v in row.items()}
    pairs = zip(ANATOMY, anatomy(images).values(), anatomy(real.images).values())
    options = {"nan_policy": "omit", "method": "asymp"}
    distances = {name: stats.ks_2samp(*pair, **options).statistic for name, *pair in pairs}
    return row | {"anatomy": {name: round(float(x), 3) for name, x in distances.items()}}
