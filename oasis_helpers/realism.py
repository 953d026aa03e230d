"""Are drawn slices like real ones? Distances between *sets* of slices, beside their yardsticks.

A new brain should differ from every given one, so no score between two pictures judges it. What
is compared are sets: drawn slices against real ones of test subjects, in the feature space of a
small network that learnt, from real training slices, at which level of the head a slice lies,
whose it is and whether it was damaged. Slices of one person are near copies of each other, so
people are the units everywhere: no pair within a person counts, and intervals come from leaving
people out. The slices of drawing number j, one at each level, take a person's place; they share
nothing across levels, so a drawn set holds more independent pictures than as many people give,
which favours it in recall and coverage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import keras
import numpy as np
from keras import layers
from scipy import ndimage, stats
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import Pipeline, make_pipeline

from oasis_helpers.data import (
    BRAIN_THRESHOLD,
    SLICES_PER_SUBJECT,
    SliceSet,
    shifted_and_mirrored,
    with_mirrored,
)
from oasis_helpers.metrics import (
    RESAMPLES,
    Estimate,
    band_power,
    fine_power,
    ssim_scores,
    subject_interval,
)

WIDTH = 64  # number of features
NEIGHBOURS = 5  # k of precision, recall, density and coverage
INDEX_TOLERANCE = 3  # slices, 3 mm: neighbours look alike
COMPONENTS = 100  # of the pixels, that the index classifier sees


# ------------------------------------------------------------------------------------ features


DAMAGE = ("none", "blurred", "noisy", "two halves", "two heads mixed")  # what the network learns
UNTRAINED = "half resolution"  # and what it is only tried on


def damaged(slices: SliceSet, kinds: list[str], seed: int = 0) -> np.ndarray:
    """Slices with damage of a given kind each, as generative models do it.

    Args:
        slices: N of them.
        kinds: for each slice one of `DAMAGE` or `UNTRAINED`: blurred by 0.5 to 2 pixels; noise of
            0.03 to 0.1; left and right half of two people; the mean of two people; every other
            pixel drawn twice as large. The second person is drawn from the others at that level.
        seed: of the random choices.

    Returns:
        float32 (N, size, size, 1) in [0, 1].
    """
    rng = np.random.default_rng(seed)
    found, middle = slices.images.copy(), slices.images.shape[2] // 2
    of_level = {level: np.flatnonzero(slices.slices == level) for level in set(slices.slices)}
    for number, kind in enumerate(kinds):
        picture, others = found[number], of_level[slices.slices[number]]
        if kind == "blurred":
            sigma = rng.uniform(0.5, 2)
            picture[:] = ndimage.gaussian_filter(picture, (sigma, sigma, 0))
        elif kind == "noisy":
            noise = rng.normal(0, rng.uniform(0.03, 0.1), picture.shape)
            picture += np.where(picture > BRAIN_THRESHOLD, noise, 0)
        elif kind == "two halves":
            picture[:, middle:] = slices.images[rng.choice(others[others != number])][:, middle:]
        elif kind == "two heads mixed":
            picture[:] = (picture + slices.images[rng.choice(others[others != number])]) / 2
        elif kind == UNTRAINED:
            picture[:] = picture[::2, ::2].repeat(2, 0).repeat(2, 1)
    return np.clip(found, 0, 1)


def feature_network(train: SliceSet, epochs: int = 6, seed: int = 0) -> keras.Model:
    """A small network whose features tell level, person and damage of a slice.

    Four strided convolutions and a dense layer, trained with three heads on training slices:
    which of the 32 slice indices, which of the subjects, and what kind of damage was done to it,
    none for half of them. The heads are thrown away. Who must tell levels apart can't ignore
    ventricles, who must tell people apart can't ignore folds, and who must tell damage can't
    ignore sharpness. What it sees in people it has never met, `sensitivity` measures.

    Args:
        train: real training slices. Fix the network before anything is judged with it.
        epochs: of training; 0 leaves the weights random, the control.
        seed: of weights, damage and batches.

    Returns:
        A model from float (N, size, size, 1) in [0, 1] to float (N, 64), each feature with mean 0
        and deviation 1 over the training slices.
    """
    keras.utils.set_random_seed(seed)
    image = keras.Input(train.images.shape[1:])
    x = layers.Rescaling(2.0, offset=-1.0)(image)
    for filters in (16, 32, 64, 128):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Dense(WIDTH)(layers.Flatten()(x))
    if epochs:
        _train_features(image, x, train, epochs, seed)
    plain = keras.Model(image, x)
    standard = layers.Normalization()
    standard.adapt(plain.predict(train.images, verbose=0))
    return keras.Model(image, standard(x), name="features")


def _train_features(image, features, train: SliceSet, epochs: int, seed: int) -> None:
    """Trains the layers between `image` and `features` (Keras tensors), through three heads."""
    kept = layers.Dropout(0.2)(layers.Activation("relu")(features))
    subjects, person = np.unique(train.subjects, return_inverse=True)
    answers = {"level": SLICES_PER_SUBJECT, "person": len(subjects), "damage": len(DAMAGE)}
    heads = [
        layers.Dense(count, activation="softmax", name=name)(kept)
        for name, count in answers.items()
    ]
    damage = np.zeros(4 * len(train), int)  # half of the slices keep "none"
    damage[2 * len(train) :] = np.tile(
        np.random.default_rng(seed).integers(1, len(DAMAGE), len(train)), 2
    )
    kinds = [DAMAGE[kind] for kind in damage[-len(train) :]]
    moved = replace(train, images=shifted_and_mirrored(train.images, seed))
    images = [train.images, moved.images]
    images += [damaged(part, kinds, seed) for part in (train, moved)]
    classifier = keras.Model(image, heads)
    classifier.compile("adam", ["sparse_categorical_crossentropy"] * len(heads))
    everywhere = np.ones(len(damage), "float32")
    one_person = (damage < DAMAGE.index("two halves")).astype("float32")
    classifier.fit(
        np.concatenate(images),
        [np.tile(train.slices, 4), np.tile(person, 4), damage],
        sample_weight=[everywhere, one_person, everywhere],
        batch_size=64,
        epochs=epochs,
        verbose=0,
    )


@dataclass(frozen=True)
class FeatureSet:
    """Slices in feature space.

    Attributes:
        values: float (N, C).
        people: int (N,), whose slice each is: a subject's number, or a drawing's.

    Raises:
        ValueError: for different lengths, or features that are no numbers.
    """

    values: np.ndarray
    people: np.ndarray

    def __post_init__(self):
        if len(self.values) != len(self.people) or not np.isfinite(self.values).all():
            raise ValueError(
                f"A set of {len(self.values)} slices of {len(self.people)} people can't be judged; "
                "expected a person for each slice, and finite features."
            )


def _squared_distances(first: FeatureSet, second: FeatureSet) -> np.ndarray:
    """float (N, M)."""
    a, b = first.values.astype("float64"), second.values.astype("float64")
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)


def _between_people(slices: FeatureSet) -> np.ndarray:
    """float (N, N): squared distances, infinite within a person."""
    distances = _squared_distances(slices, slices)
    distances[np.equal.outer(slices.people, slices.people)] = np.inf
    return distances


def level_of_neighbours(network: keras.Model, slices: SliceSet) -> float:
    """The share of slices whose nearest slice of another person lies at their level, up to 3.

    Tells whether the features know anatomy from one person to another.
    """
    here = FeatureSet(network.predict(slices.images, verbose=0), slices.subjects)
    nearest = _between_people(here).argmin(1)
    return float(np.mean(np.abs(slices.slices[nearest] - slices.slices) <= INDEX_TOLERANCE))


# --------------------------------------------------------------------------- between two sets


def kernel_distance(first: FeatureSet, second: FeatureSet, seed: int = 0) -> Estimate:
    """The kernel distance (KID) of two sets: 0 on average where both come from one distribution.

    The unbiased squared maximum mean discrepancy with the kernel (x . y / C + 1)^3 of Binkowski
    et al. 2018 (arXiv 1801.01401), over pairs of different people only. The 95 % interval comes
    from random halves of the people of both sets, which scatter as whole sets do (the delete-half
    jackknife, Shao and Wu 1989), and up to 1.7 times as much where the sets are nearly alike: it
    is on the safe side there. It can reach below 0.
    """
    sums = {}
    for name, (one, other) in {
        "first": (first, first),
        "second": (second, second),
        "across": (first, second),
    }.items():
        kernel = (one.values.astype("float64") @ other.values.T / one.values.shape[1] + 1) ** 3
        sums[name] = _block_sums(kernel, one.people, other.people)
    rng = np.random.default_rng(seed)

    def distance(chosen_first, chosen_second):
        def mean(name, rows, columns, within):
            total, count = (part[np.ix_(rows, columns)] for part in sums[name])
            other_person = ~np.eye(len(rows), dtype=bool) if within else np.ones(total.shape, bool)
            return total[other_person].sum() / count[other_person].sum()

        return (
            mean("first", chosen_first, chosen_first, True)
            + mean("second", chosen_second, chosen_second, True)
            - 2 * mean("across", chosen_first, chosen_second, False)
        )

    sizes = len(sums["first"][0]), len(sums["second"][0])
    halves = [
        distance(*(rng.permutation(size)[: max(2, size // 2)] for size in sizes))
        for _ in range(RESAMPLES // 4)
    ]
    low, high = np.percentile(halves, [2.5, 97.5])
    return Estimate(float(distance(*map(np.arange, sizes))), float(low), float(high))


def _block_sums(matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray):
    """Sums of a matrix (N, M) over blocks of one person by another, and the blocks' sizes."""
    of_row, of_column = (
        np.equal.outer(np.unique(people), people).astype("float64") for people in (rows, columns)
    )
    return of_row @ matrix @ of_column.T, np.outer(of_row.sum(1), of_column.sum(1))


def sensitivity(network: keras.Model, train: SliceSet, slices: SliceSet) -> dict[str, float]:
    """Kernel distance to training slices for slices of other people with each kind of damage.

    What a feature network can't see here, it can't see in drawn slices either.

    Args:
        network: from `feature_network`.
        train: real slices.
        slices: real slices of other people, to be damaged.

    Returns:
        {kind of `DAMAGE`, or `UNTRAINED`: distance}; that of "none" is the floor.
    """
    real = FeatureSet(network.predict(train.images, verbose=0), train.subjects)
    found = {}
    for kind in (*DAMAGE, UNTRAINED):
        pictures = damaged(slices, [kind] * len(slices), seed=1)
        others = FeatureSet(network.predict(pictures, verbose=0), slices.subjects)
        found[kind] = round(kernel_distance(real, others).mean, 3)
    return found


def overlap(real: FeatureSet, other: FeatureSet) -> dict[str, Estimate]:
    """How two sets cover each other, by balls that reach to each slice's fifth neighbour.

    A slice's ball reaches to its fifth nearest slice *of other people* in its own set. Intervals
    are from resampling the people whose share is taken, the other set given.

    Returns:
        "precision", the share of the other set inside a real slice's ball, and "recall", the share
        of real slices inside a ball of the other set (Kynkaanniemi et al. 2019, arXiv
        1904.06991); "density", how many real balls hold a slice of the other set, over k, and
        "coverage", the share of real balls that hold at least one (Naeem et al. 2020, arXiv
        2002.09797): one outlier's huge ball adds little to the first and nothing to the second.
    """
    across = _squared_distances(real, other)
    in_real = across <= _reach(real)[:, None]
    in_other = across <= _reach(other)[None]
    return {
        "precision": subject_interval(in_real.any(0).astype(float), other.people),
        "recall": subject_interval(in_other.any(1).astype(float), real.people),
        "density": subject_interval(in_real.sum(0) / NEIGHBOURS, other.people),
        "coverage": subject_interval(in_real.any(1).astype(float), real.people),
    }


def _reach(slices: FeatureSet) -> np.ndarray:
    """float (N,): the squared distance of each slice to its fifth nearest of other people."""
    return np.partition(_between_people(slices), NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]


def pairwise_ssim(pictures: np.ndarray, levels: np.ndarray, people: np.ndarray) -> Estimate:
    """Mean SSIM of slices of different people at the same level: high means they are all alike.

    All pairs of people; the 95 % interval is from leaving each person out in turn (jackknife).

    Args:
        pictures: float (N, size, size, 1) in [0, 1].
        levels, people: int (N,).

    Raises:
        ValueError: for different lengths.
    """
    if not len(pictures) == len(levels) == len(people):
        raise ValueError(
            f"{len(pictures)} pictures, {len(levels)} levels and {len(people)} people don't belong "
            "together; expected one of each for every picture."
        )
    first, second = np.nonzero(np.equal.outer(levels, levels) & np.less.outer(people, people))
    similarity = ssim_scores(pictures[first], pictures[second])[0]

    def without(person):
        return similarity[(people[first] != person) & (people[second] != person)].mean()

    left_out = np.array([without(person) for person in np.unique(people)])
    count = len(left_out)
    error = np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2))
    mean = similarity.mean()
    return Estimate(float(mean), float(mean - 1.96 * error), float(mean + 1.96 * error))


# ------------------------------------------------------------------------- near a training slice


def nearest_pixels(pictures: np.ndarray, train: SliceSet) -> tuple[np.ndarray, np.ndarray]:
    """The training slice, as it is or mirrored, that is nearest to each picture.

    Returns:
        float (N,), root mean square difference of pixels; int (N,), which of `with_mirrored`.
    """
    known = with_mirrored(train.images).reshape(2 * len(train), -1)
    squares = (known**2).sum(1)
    distance, place = np.empty(len(pictures)), np.empty(len(pictures), int)
    for start in range(0, len(pictures), 256):
        batch = pictures[start : start + 256].reshape(-1, known.shape[1])
        found = (batch**2).sum(1)[:, None] + squares - 2 * batch @ known.T
        place[start : start + 256] = found.argmin(1)
        distance[start : start + 256] = np.maximum(found.min(1), 0)
    return np.sqrt(distance / known.shape[1]), place


def nearest_codes(codes: np.ndarray, train_codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The training code map that agrees with each code map in the most cells.

    Args:
        codes, train_codes: int (N, h, w) and (M, h, w).

    Returns:
        float (N,), the share of cells that differ; int (N,), which of `train_codes`.

    Raises:
        ValueError: for maps of different grids.
    """
    if codes.shape[1:] != train_codes.shape[1:]:
        raise ValueError(
            f"Code maps of shapes {codes.shape} and {train_codes.shape} don't compare; expected "
            "one grid: encode both with the same weights."
        )
    known = train_codes.reshape(len(train_codes), -1)
    equal = np.array([(known == one).sum(1) for one in codes.reshape(len(codes), -1)])
    return 1 - equal.max(1) / known.shape[1], equal.argmax(1)


def share_too_near(
    distances: np.ndarray, unseen: np.ndarray, people: np.ndarray, seed: int = 0
) -> Estimate:
    """The share of distances below the first percentile of those of unseen people's slices.

    By chance it is 1 %; copies of training slices would raise it. The 95 % interval is from
    resampling the unseen people, whose first percentile hangs on few of them.

    Args:
        distances: float (N,), of drawn slices to their nearest training slices.
        unseen: float (M,), the same of slices of unseen people, made by the same decoder.
        people: int (M,), who these are.
        seed: of the resampling.
    """
    of_person = [unseen[people == person] for person in np.unique(people)]
    chosen = np.random.default_rng(seed).integers(len(of_person), size=(RESAMPLES, len(of_person)))
    limits = [np.percentile(np.concatenate([of_person[i] for i in row]), 1) for row in chosen]
    shares = np.searchsorted(np.sort(distances), limits) / len(distances)
    share = float(np.mean(distances < np.percentile(unseen, 1)))
    return Estimate(share, *map(float, np.percentile(shares, [2.5, 97.5])))


# ------------------------------------------------------------------------------------- anatomy

VENTRICLE_LEVEL = 0.55  # of the brain's median grey: fluid is darker, cortex is brighter
ANATOMY = ("brain area", "fluid area", "symmetry", "mean grey", "contrast")


def anatomy(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Simple measurements of each slice, float (N,) under the names in `ANATOMY`.

    Brain area: share of the picture above 10 / 255, holes filled. Fluid area: share of the inner
    brain (without its outer 3 pixels) darker than 0.55 of its median, ventricles above all.
    Symmetry: correlation of the brain with its mirror image about its own middle line, where both
    are brain. Mean grey and contrast: mean and standard deviation inside the brain.

    Args:
        pictures: float (N, size, size, 1) in [0, 1].
    """
    found = np.full((len(pictures), len(ANATOMY)), np.nan)
    for number, picture in enumerate(pictures[..., 0]):
        brain = ndimage.binary_fill_holes(picture > BRAIN_THRESHOLD)
        inner = ndimage.binary_erosion(brain, iterations=3)
        if not inner.any():
            continue
        columns = np.flatnonzero(brain.any(0))
        box = slice(columns[0], columns[-1] + 1)
        both = brain[:, box] & brain[:, box][:, ::-1]
        halves = picture[:, box][both], picture[:, box][:, ::-1][both]
        greys = picture[brain]
        fluid = np.mean(picture[inner] < VENTRICLE_LEVEL * np.median(picture[inner]))
        symmetry = np.corrcoef(*halves)[0, 1]
        found[number] = brain.mean(), fluid, symmetry, greys.mean(), greys.std()
    return dict(zip(ANATOMY, found.T))


def anatomy_distances(pictures: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """For each measurement, how far two sets' distributions are apart: 0 alike, 1 disjoint.

    The Kolmogorov-Smirnov statistic, the largest difference of the cumulative distributions.
    """
    distances = {}
    for name, here, there in zip(ANATOMY, anatomy(pictures).values(), anatomy(real).values()):
        found = stats.ks_2samp(here, there, nan_policy="omit", method="asymp")
        distances[name] = round(float(found.statistic), 3)
    return distances


# ---------------------------------------------------------------------------- the level asked for


def index_classifier(train: SliceSet, seed: int = 0) -> Pipeline:
    """A small classifier that tells the slice index of a slice, fitted to real training slices.

    Principal components of the pixels, then a linear discriminant analysis (Fisher 1936).

    Returns:
        A fitted scikit-learn pipeline; `predict` takes float (N, size * size).
    """
    classifier = make_pipeline(
        PCA(COMPONENTS, svd_solver="randomized", random_state=seed), LinearDiscriminantAnalysis()
    )
    return classifier.fit(train.images.reshape(len(train), -1), train.slices)


def drawn_table(
    drawn: np.ndarray, indices: np.ndarray, train: SliceSet, unseen: SliceSet
) -> dict[str, dict]:
    """Whether drawn slices show the level asked for, and are as crisp as real ones.

    Args:
        drawn: float (N, size, size, 1) in [0, 1].
        indices: int (N,), the slice indices they were asked for.
        train: fits the classifier.
        unseen: real slices of other subjects, to hold the drawn ones against.

    Returns:
        "slices": how many; "index_recognised": the share whose index the classifier tells to
        within 3; both for "drawn" and for "unseen"; "fine_power": as `fine_power_by_third`.
    """
    classifier = index_classifier(train)

    def recognised(pictures, truth):
        found = classifier.predict(pictures.reshape(len(pictures), -1))
        return round(float(np.mean(np.abs(found - truth) <= INDEX_TOLERANCE)), 4)

    return {
        "slices": {"drawn": len(drawn), "unseen": len(unseen)},
        "index_recognised": {
            "drawn": recognised(drawn, indices),
            "unseen": recognised(unseen.images, unseen.slices),
        },
        "fine_power": fine_power_by_third(drawn, indices, unseen),
    }


def fine_power_by_third(drawn: np.ndarray, indices: np.ndarray, unseen: SliceSet) -> list[float]:
    """Mean `metrics.fine_power` of drawn slices as a share of real ones', by third of the slab."""

    def by_third(pictures, where):
        power, third = fine_power(band_power(pictures)), where * 3 // SLICES_PER_SUBJECT
        return np.array([power[third == number].mean() for number in range(3)])

    share = by_third(drawn, indices) / by_third(unseen.images, unseen.slices)
    return [round(float(x), 3) for x in share]


# ------------------------------------------------------------------------------- the whole table


def set_table(
    networks: dict[str, keras.Model],
    real: SliceSet,
    pictures: np.ndarray,
    levels: np.ndarray,
    people: np.ndarray,
) -> dict:
    """One row of the table of realism: a set of slices against the real ones of test subjects.

    Args:
        networks: {"learnt": ..., "random": ...}, from `feature_network`.
        real: slices of test subjects.
        pictures: float (N, size, size, 1) in [0, 1], the set that is judged.
        levels, people: int (N,).

    Returns:
        Estimates as [mean, low, high]: "kid" in learnt and "kid_random" in random features;
        "precision", "recall", "density", "coverage" in learnt ones; "pairwise_ssim"; "anatomy", as
        `anatomy_distances`.
    """

    def estimate(value: Estimate) -> list[float]:
        return [round(x, 4) for x in (value.mean, value.low, value.high)]

    sets = {
        kind: [
            FeatureSet(network.predict(images, verbose=0), whose)
            for images, whose in ((real.images, real.subjects), (pictures, people))
        ]
        for kind, network in networks.items()
    }
    row = {
        "slices": len(pictures),
        "kid": kernel_distance(*sets["learnt"]),
        "kid_random": kernel_distance(*sets["random"]),
        **overlap(*sets["learnt"]),
        "pairwise_ssim": pairwise_ssim(pictures, levels, people),
    }
    row = {k: estimate(v) if isinstance(v, Estimate) else v for k, v in row.items()}
    return row | {"anatomy": anatomy_distances(pictures, real.images)}
