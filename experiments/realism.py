"""Can a classifier separate generated slices from real ones of subjects that it never saw?

A classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv 1610.06545): a small network learns to
separate two sets of slices of the training split. The validation split chooses the epoch, and the
test split gives the AUC, once: 0.5 is a coin, 1 separates every pair. A second network learns from
real slices whether a left and a mirrored right half are of one subject.
"""

from pathlib import Path

import keras
import numpy as np
from keras import layers
from scipy import ndimage, special

from experiments.memorisation import auc
from oasis_helpers import metrics, pretrained, set_metrics
from oasis_helpers.data import BRAIN_THRESHOLD, SLICES_PER_SUBJECT, SliceSet, with_mirrored
from oasis_helpers.sampling import sample_codes, sample_heads

EPOCHS, BATCH_SIZE = 5, 64
PARTNERS = (1, 2)  # the other half is of the subject that comes so many earlier
PAIRS = {  # the sets of each test; the first two are its controls
    "real, other subjects": ("real, even subjects", "real, odd subjects"),
    "real, blurred by a pixel": ("real", "blurred"),
    "reconstructed": ("real", "reconstructed"),
    "samples": ("real", "samples"),
    "heads": ("real", "heads"),
    "samples, against reconstructed": ("reconstructed", "samples"),
    "heads, against reconstructed": ("heads reconstructed", "heads"),
}
Sets = dict[str, tuple[np.ndarray, np.ndarray]]  # float32 (N, size, size, 1), int (N,): subjects


def measure(root: str | Path, weights: str) -> dict:
    """Tests generated slices with classifiers.

    Returns:
        {"weights", "auc": {name in `PAIRS`: [mean, low, high]}, "one head": {kind: {"auc"; "one"
        and "two": the mean score of slices, and of halves joined from two}}}.
    """
    models = pretrained.load_pretrained(weights)
    splits = [models.load_slices(root, split) for split in ("train", "validate", "test")]
    train, validate, test = (sets_of(models, real, seed) for seed, real in enumerate(splits))
    areas = {}
    for name, pair in PAIRS.items():
        images = ([one[kind][0] for kind in pair] for one in (train, validate))
        model, of_test = trained(*(labelled(*both) for both in images)), [test[k] for k in pair]
        scores = (model.predict(images, verbose=0)[:, 0] for images, _ in of_test)
        areas[name] = auc(*scores, *(subjects for _, subjects in of_test)).rounded()
    return {"weights": weights, "auc": areas, "one head": one_head(train, validate, test)}


def sets_of(models: pretrained.Pretrained, real: SliceSet, seed: int) -> Sets:
    """Real slices, and others at the same slice indices, in 256 grey levels on a black background.

    The faint rim that resizing leaves around a real brain would separate them all, unseen. The
    numbers of samples and of heads take the place of subjects.
    """
    codes = models.vqvae.encode(real.images)
    stacks = codes.reshape(-1, SLICES_PER_SUBJECT, *codes.shape[1:])
    samples = sample_codes(models.prior, len(real), real.slices, seed=seed)
    images = {
        "real": real.images,
        "blurred": ndimage.gaussian_filter(real.images, (0, 1, 1, 0)),
        "reconstructed": models.vqvae.decode(codes),
        "samples": models.vqvae.decode(samples),
        "heads reconstructed": models.decode_heads(stacks),
        "heads": models.decode_heads(sample_heads(models.prior, len(stacks), seed=seed)),
    }
    for kind, one in images.items():
        one = np.rint(255 * one.reshape(real.images.shape)) / 255
        images[kind] = np.where(one > BRAIN_THRESHOLD, one, 0)
    odd = np.arange(len(real)) // SLICES_PER_SUBJECT % 2 == 1
    sets = {kind: (one, real.subjects) for kind, one in images.items()}
    for name, rows in (("odd", odd), ("even", ~odd)):
        sets[f"real, {name} subjects"] = images["real"][rows], real.subjects[rows]
    return sets


def labelled(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets and their mirror images, and labels, 0 and 1."""
    images = [with_mirrored(first), with_mirrored(second)]
    return np.concatenate(images), np.repeat([0.0, 1.0], [len(one) for one in images])


def trained(train: tuple, validate: tuple) -> keras.Model:
    """A classifier from images (N, height, width, channels) to scores (N, 1), logits of label 1.

    The layers of the feature network and a dense one, at the epoch with the best AUC on `validate`.
    """
    keras.utils.set_random_seed(0)
    network = set_metrics.feature_layers(train[0].shape[1:])
    x = layers.Dropout(0.2)(layers.Activation("relu")(network.output))
    model = keras.Model(network.input, layers.Dense(1)(x))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=[keras.metrics.AUC(from_logits=True, name="auc")])
    best = {"mode": "max", "patience": EPOCHS, "restore_best_weights": True}
    stop = keras.callbacks.EarlyStopping("val_auc", **best)
    model.fit(*train, BATCH_SIZE, EPOCHS, 0, [stop], validation_data=validate)
    return model


def one_head(train: Sets, validate: Sets, test: Sets) -> dict:
    """How a classifier of halves scores slices of each kind, and halves joined from two of them."""

    def labelled_halves(real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        two = np.concatenate([of_two_subjects(real, steps) for steps in PARTNERS])
        images, labels = labelled(two, np.concatenate([real] * len(PARTNERS)))
        return halves(images), labels

    model = trained(*(labelled_halves(one["real"][0]) for one in (train, validate)))
    result = {}
    for kind in ("real", "reconstructed", "samples", "heads"):
        images, subjects = test[kind]
        both = {"one": images, "two": of_two_subjects(images, 1)}
        scores = {k: model.predict(halves(v), verbose=0)[:, 0] for k, v in both.items()}
        area = auc(scores["two"], scores["one"], subjects, subjects)
        means = {k: metrics.subject_interval(special.expit(v), subjects) for k, v in scores.items()}
        result[kind] = {k: v.rounded() for k, v in {"auc": area, **means}.items()}
    return result


def of_two_subjects(images: np.ndarray, steps: int) -> np.ndarray:
    """Slices with the right half of the subject that comes so many earlier, at the same index."""
    middle, others = images.shape[2] // 2, np.roll(images, SLICES_PER_SUBJECT * steps, axis=0)
    return np.concatenate([images[:, :, :middle], others[:, :, middle:]], axis=2)


def halves(images: np.ndarray) -> np.ndarray:
    """float (N, size, size / 2, 2): left halves, and mirrored right halves."""
    return np.concatenate([images, images[:, :, ::-1]], axis=-1)[:, :, : images.shape[2] // 2]
