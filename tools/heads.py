"""Scores of generated heads: stacks of 32 slices beside real ones and beside independent slices.

A stack is float (n, 32, size, size, 1) in [0, 1]. Most tables have four rows: "real" heads, the
same heads "reconstructed", generated "heads", and stacks of "independent" slices, one sampled at
each slice index without its neighbour. The second and third are decoded as whole heads.
"""

from __future__ import annotations

import keras
import numpy as np

from oasis_helpers import metrics, sample_codes, sample_heads, set_metrics
from oasis_helpers.data import SLICES_PER_SUBJECT, SliceSet
from oasis_helpers.pretrained import Pretrained
from oasis_helpers.set_metrics import FeatureSet

ASKED = 200  # generated heads whose ventricle size is asked for
PLANES = range(12, 72, 6)  # rows and columns of the 80 x 80 frame that are cut through
THIRDS = 3


def heads_table(
    models: Pretrained,
    networks: dict[str, keras.Model],
    splits: tuple[SliceSet, SliceSet, SliceSet],
    seed: int,
    asked: int = ASKED,
) -> dict:
    """All scores of generated heads, as many as there are subjects in the split scored on.

    Args:
        networks: as for `set_metrics.set_table`.
        splits: training slices, those of other subjects for the rows of sets, and those that
            everything is compared with.
        seed: of the samples.
        asked: how many heads of a given ventricle size are sampled.

    Returns:
        "reconstruction" by both decoders; "agreement", "area_roughness" and "feature_steps" of
        single stacks; "nearest_subject" and "memorisation", the copy alarms; "sets" and
        "reformats" against the real heads; "ventricles", the correlation of what is asked for and
        measured.
    """
    training, other, real = splits
    n = len(np.unique(real.subjects))
    index = np.tile(np.arange(SLICES_PER_SUBJECT), n)
    independent = sample_codes(models.prior, len(index), index, seed=seed)
    generated = {
        "heads": models.decode_heads(sample_heads(models.prior, n, seed=seed)),
        "independent": stacks_of(models.vqvae.decode(independent)),
    }

    def reconstructed(images):
        return models.decode_heads(stacks_of(models.vqvae.encode(images)))

    def with_real(images):
        return {"real": stacks_of(images), "reconstructed": reconstructed(images)} | generated

    own, sets = with_real(real.images), with_real(other.images)
    alone = models.vqvae.decode(models.vqvae.encode(real.images))
    copies = reconstructed(training.images[: len(index)])
    nearest = {
        name: set_metrics.nearest_pixels(stacks.reshape(-1, *stacks.shape[2:]), training)
        for name, stacks in (own | {"planted copies": copies}).items()
    }
    return {
        "heads": n,
        "reconstruction": {
            "each slice alone": reconstruction(real, alone),
            "with its neighbours": reconstruction(real, own["reconstructed"]),
        },
        "agreement": {name: agreement(stacks) for name, stacks in own.items()},
        "area_roughness": {name: area_roughness(stacks) for name, stacks in own.items()},
        "feature_steps": {name: feature_steps(networks, stacks) for name, stacks in own.items()},
        "nearest_subject": {
            name: one_subject_fraction(places, training) for name, (_, places) in nearest.items()
        },
        "memorisation": {
            name: memorisation(*(of_heads(nearest[one][0]) for one in (name, "reconstructed")))
            for name in ("heads", "planted copies")
        },
        "sets": {name: sets_by_third(networks, real, stacks) for name, stacks in sets.items()},
        "reformats": reformat_kid(networks, training, real, sets),
        "ventricles": ventricle_correlation(models, training, asked, seed),
    }


def memorisation(distances: np.ndarray, unseen: np.ndarray) -> dict:
    """The result of `set_metrics.memorisation_test` as {"count", "p_value"}."""
    count, p_value = set_metrics.memorisation_test(distances, unseen)
    return {"count": count, "p_value": round(p_value, 4)}


def of_heads(values: np.ndarray) -> np.ndarray:
    """Means over the slices of each head: float (n,) from (n * 32,)."""
    return values.reshape(-1, SLICES_PER_SUBJECT).mean(1)


def stacks_of(images: np.ndarray) -> np.ndarray:
    """Slices (n * 32, size, size, 1), or code maps, sorted by subject and index, as stacks."""
    return images.reshape(-1, SLICES_PER_SUBJECT, *images.shape[1:])


def reconstruction(real: SliceSet, decoded: np.ndarray) -> dict:
    """Brain SSIM, [mean, low, high], and high-frequency power as a fraction of the originals'."""
    images = decoded.reshape(real.images.shape)
    similarity = metrics.ssim_scores(real.images, images)[1]
    sharpness = metrics.sharpness_table(real.images, images)
    return {
        "brain_ssim": metrics.subject_interval(similarity, real.subjects).rounded(),
        "high_frequency_power": sharpness["high_frequency_power"],
    }


def by_third(values: np.ndarray) -> list[float]:
    """Means of values (n, m) over all heads and each third of the stack, from the bottom."""
    return [round(float(part.mean()), 4) for part in np.array_split(values, THIRDS, axis=1)]


def agreement(stacks: np.ndarray) -> dict[str, list[float]]:
    """Of neighbouring slices: "difference", root mean square, and "brain_ssim", by third."""
    difference, similarity = set_metrics.neighbour_agreement(stacks)
    return {"difference": by_third(difference), "brain_ssim": by_third(similarity)}


def area_roughness(stacks: np.ndarray) -> dict[str, float]:
    """Mean absolute second difference of the areas along a head, over the mean area."""
    measures = set_metrics.anatomy(stacks.reshape(-1, *stacks.shape[2:]))
    curves = {
        name: measures[name].reshape(len(stacks), -1) for name in ("brain area", "fluid area")
    }
    return {
        name: round(float(np.nanmean(np.abs(np.diff(curve, 2))) / np.nanmean(curve)), 4)
        for name, curve in curves.items()
    }


def feature_steps(networks: dict[str, keras.Model], stacks: np.ndarray) -> list[float]:
    """Distance of neighbouring slices in the trained features, by third."""
    features = networks["trained"].predict(stacks.reshape(-1, *stacks.shape[2:]), verbose=0)
    steps = np.diff(features.reshape(*stacks.shape[:2], -1), axis=1)
    return by_third(np.linalg.norm(steps, axis=-1))


def one_subject_fraction(places: np.ndarray, training: SliceSet) -> dict[str, float]:
    """The largest fraction of a head's slices whose nearest training subject is one and the same.

    "mean" and "largest" over heads. A copy of a training head reaches 1. `places` are those of
    `set_metrics.nearest_pixels`, int (n * 32,).
    """
    subjects = training.subjects[places % len(training)].reshape(-1, SLICES_PER_SUBJECT)
    fractions = [np.unique(head, return_counts=True)[1].max() / len(head) for head in subjects]
    return {"mean": round(float(np.mean(fractions)), 4), "largest": round(float(max(fractions)), 4)}


def sets_by_third(
    networks: dict[str, keras.Model], real: SliceSet, stacks: np.ndarray
) -> dict[str, dict]:
    """KID, precision, recall, density and coverage of all slices and of each third of the stack."""
    parts = np.array_split(np.arange(SLICES_PER_SUBJECT), THIRDS)
    scores = {}
    of_real = networks["trained"].predict(real.images, verbose=0)
    of_stacks = networks["trained"].predict(stacks.reshape(-1, *stacks.shape[2:]), verbose=0)
    of_stacks = of_stacks.reshape(*stacks.shape[:2], -1)
    for name, part in zip(("all", "bottom", "middle", "top"), (np.concatenate(parts), *parts)):
        inside = np.isin(real.slices, part)
        first = FeatureSet(of_real[inside], real.subjects[inside])
        number = np.repeat(np.arange(len(stacks)), len(part))
        second = FeatureSet(of_stacks[:, part].reshape(len(number), -1), number)
        values = {"kid": set_metrics.kid(first, second), **set_metrics.prdc(first, second)}
        scores[name] = {key: value.rounded() for key, value in values.items()}
    return scores


def reformat_kid(
    networks: dict[str, keras.Model], training: SliceSet, real: SliceSet, rows: dict
) -> dict[str, dict]:
    """KID of coronal and sagittal reformats of stacks against those of real heads.

    The feature networks know axial slices only, so their features are standardised once more, on
    the reformats of training heads. The figures compare rows of this table and nothing else.
    """
    table = {name: {} for name in rows}
    size = real.images.shape[1]
    for plane in ("coronal", "sagittal"):
        for kind, network in networks.items():

            def features(stacks, plane=plane, network=network):
                planes = set_metrics.reformats(stacks)[plane][:, list(PLANES)]
                pictures = framed(planes.reshape(-1, *planes.shape[2:]), size)
                number = np.repeat(np.arange(len(stacks)), len(PLANES))
                return network.predict(pictures, verbose=0), number

            values, _ = features(stacks_of(training.images))
            mean, deviation = values.mean(0), values.std(0) + 1e-6

            def standardised(stacks, mean=mean, deviation=deviation):
                values, number = features(stacks)
                return FeatureSet((values - mean) / deviation, number)

            reference = standardised(stacks_of(real.images))
            for name, stacks in rows.items():
                score = set_metrics.kid(reference, standardised(stacks)).rounded()
                table[name][f"{plane} {kind}"] = score
    return table


def framed(planes: np.ndarray, size: int) -> np.ndarray:
    """Reformats (n, 32, size) as the networks' pictures (n, size, size, 1).

    Every slice becomes two rows, a whole number, because interpolation would blur what separates
    neighbouring slices. Black rows fill the frame.
    """
    tall = np.repeat(planes, size // planes.shape[1], axis=1)
    margin = size - tall.shape[1]
    pad = (0, 0), (margin // 2, margin - margin // 2), (0, 0)
    return np.pad(tall, pad)[..., None]


def ventricle_correlation(models: Pretrained, training: SliceSet, asked: int, seed: int) -> dict:
    """Ventricle size asked for and measured: their correlation over generated heads.

    What is asked for is a bin; its value is the median of the training heads in it.
    """
    values = set_metrics.head_measures(training.images, training.subjects)
    count = models.prior.head_bins
    bins = set_metrics.quantile_bins(values, count)[:, 0]
    medians = np.array([np.median(values[bins == one, 0]) for one in range(count)])
    wanted = np.arange(asked) % count
    heads = models.decode_heads(sample_heads(models.prior, asked, seed=seed, ventricles=wanted))
    slices, number = heads.reshape(-1, *heads.shape[2:]), np.arange(asked)
    measured = set_metrics.head_measures(slices, np.repeat(number, SLICES_PER_SUBJECT))
    return {
        "heads": asked,
        "correlation": round(float(np.corrcoef(medians[wanted], measured[:, 0])[0, 1]), 4),
        "asked": [round(float(x), 4) for x in medians],
        "measured": [
            [round(float(x), 4) for x in np.quantile(measured[wanted == one, 0], (0.1, 0.5, 0.9))]
            for one in range(count)
        ],
    }
