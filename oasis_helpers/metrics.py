"""Scores of reconstructions, codebooks and priors, each defined once.

Images are float arrays (N, size, size, 1) in [0, 1]; SSIM's luminance term presumes
non-negative data, so the range [-0.5, 0.5] of the networks is never scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage, stats
from skimage.metrics import structural_similarity

from oasis_helpers.data import BRAIN_THRESHOLD, SLICES_PER_SUBJECT, SliceSet
from oasis_helpers.layers import checked_codes
from oasis_helpers.pixelcnn import Prior
from oasis_helpers.vqvae import SSIM_SIGMA, VQVAE

PSEUDO_COUNTS = (1, 2, 5, 10, 20, 40, 80, 160)  # tried for the unigram baselines
BANDWIDTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # slice indices, tried for the smoothed one


def ssim_scores(originals: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SSIM and brain SSIM of each image (Wang et al. 2004).

    skimage's `structural_similarity` with Gaussian weights, sigma 1.5 pixels,
    `use_sample_covariance=False` and `data_range=1`. Brain SSIM is the mean of the SSIM map over
    pixels whose original is above 10 / 255: two thirds of a whole-frame slice are black and score
    1 for nothing.

    Images are float (N, size, size, 1) in [0, 1]; ValueError for others. Returns two float64 (N,);
    brain SSIM is NaN for a black original.
    """
    _refuse_bad_images(originals, images)
    whole, brain = np.empty(len(originals)), np.full(len(originals), np.nan)
    for number, (original, image) in enumerate(zip(originals[..., 0], images[..., 0])):
        whole[number], similarity = structural_similarity(
            original,
            image,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
            data_range=1.0,
            full=True,
        )
        inside = original > BRAIN_THRESHOLD
        if inside.any():
            brain[number] = similarity[inside].mean()
    return whole, brain


def psnr(originals: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image in decibels, float64 (N,)."""
    _refuse_bad_images(originals, images)
    error = np.mean((originals.astype("float64") - images) ** 2, axis=(1, 2, 3))
    return -10 * np.log10(np.maximum(error, 1e-12))


def _refuse_bad_images(originals: np.ndarray, images: np.ndarray) -> None:
    if originals.shape != images.shape or originals.ndim != 4:
        raise ValueError(
            f"Images of shapes {originals.shape} and {images.shape} cannot be compared; "
            "expected (N, size, size, 1) twice."
        )
    for name, values in (("originals", originals), ("images", images)):
        if not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"The {name} are of type {values.dtype}; expected floats in [0, 1].")
        if values.size and not (values.min() >= 0 and values.max() <= 1):
            centred = "SSIM means nothing on data centred at 0"
            raise ValueError(
                f"The {name} hold values from {values.min():.3g} to {values.max():.3g}; expected "
                f"[0, 1]: {'divide by the highest intensity' if values.min() >= 0 else centred}."
            )


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval over subjects."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def rounded(self) -> list[float]:
        """[mean, low, high], to four digits."""
        return [round(x, 4) for x in (self.mean, self.low, self.high)]


def student_interval(mean: float, error: float, subjects: int) -> Estimate:
    """Student's t interval (1908) of an estimate and its standard error; NaN for one subject."""
    half = stats.t.ppf(0.975, subjects - 1) * error
    return Estimate(float(mean), float(mean - half), float(mean + half))


def subject_interval(values: np.ndarray, subjects: np.ndarray) -> Estimate:
    """The mean over subjects of the means of their slices, with its interval.

    Slices of one subject are alike, so a subject counts once, however many slices it has. Values
    are float (N,), NaN where a slice has none; ValueError for infinite or no values.
    """
    valid = ~np.isnan(values)
    if np.shape(values) != np.shape(subjects) or not valid.any() or np.isinf(values).any():
        raise ValueError(
            f"{np.shape(values)} values for {np.shape(subjects)} subjects make no mean; expected "
            "one subject for each value, and finite values."
        )
    _, group = np.unique(np.asarray(subjects)[valid], return_inverse=True)
    means = np.bincount(group, np.asarray(values)[valid]) / np.bincount(group)
    return student_interval(means.mean(), means.std() / max(1, len(means) - 1) ** 0.5, len(means))


HALF_NYQUIST = 0.25  # cycles per pixel: above it lie waves shorter than four pixels
BAND_EDGES = np.linspace(0, 0.5, 9)  # cycles per pixel, up to the Nyquist frequency
_RIM = 3  # pixels of the brain's edge that are left out: it is sharp in any image


def inner_brain(images: np.ndarray) -> np.ndarray:
    """Weights that fade from 1 inside the brain to 0 at its edge, float64 (N, size, size).

    Holes are filled, and the outer 3 pixels left out: the spectrum shows folds, not the outline.
    """
    weights = np.zeros(images.shape[:3])
    for number, image in enumerate(images[..., 0]):
        brain = ndimage.binary_fill_holes(image > BRAIN_THRESHOLD)
        inner = ndimage.binary_erosion(brain, iterations=_RIM + 2)
        weights[number] = ndimage.gaussian_filter(inner.astype("float64"), 1.5)
    return weights


def _inner_spectrum(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fourier transforms of the weighted images without their mean, complex (N, size, size)."""
    images = images[..., 0].astype("float64")
    total = np.maximum(weights.sum((1, 2), keepdims=True), 1e-12)
    mean = (images * weights).sum((1, 2), keepdims=True) / total
    return np.fft.fft2((images - mean) * weights)


def _frequency(size: int) -> np.ndarray:
    """The frequency of each wave in any direction, cycles per pixel, (size, size)."""
    return np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])


def band_power(images: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Power in the bands between `BAND_EDGES`, float64 (N, bands); weights from `inner_brain`."""
    weights = inner_brain(images) if weights is None else weights
    power = np.abs(_inner_spectrum(images, weights)) ** 2
    power /= np.maximum(weights.sum((1, 2), keepdims=True), 1e-12)  # big brains do not count more
    frequency = _frequency(images.shape[1])
    within = [(low < frequency) & (frequency <= high) for low, high in pairwise(BAND_EDGES)]
    return np.stack([power[:, waves].sum(-1) for waves in within], axis=-1)


def high_frequency_power(power: np.ndarray) -> np.ndarray:
    """The part of `band_power` (N, bands) that lies above half the Nyquist frequency, (N,)."""
    return power[:, BAND_EDGES[:-1] >= HALF_NYQUIST].sum(-1)


def sharpness_table(originals: np.ndarray, images: np.ndarray) -> dict:
    """How much high-frequency detail decoded images have, and whether it agrees with the originals.

    Returns:
        "high_frequency_power": power above half the Nyquist frequency, as a fraction of the
        originals'; "bands": the same in each band; "high_frequency_correlation": Pearson
        correlation of both after a high-pass at half the Nyquist frequency.
    """
    weights = inner_brain(originals)
    powers = [band_power(x, weights) for x in (images, originals)]
    decoded, original = (high_frequency_power(power).sum() for power in powers)
    high = _frequency(originals.shape[1]) > HALF_NYQUIST
    waves = [_inner_spectrum(x, weights)[:, high] for x in (originals, images)]
    norms = np.sqrt(np.prod([np.sum(np.abs(wave) ** 2) for wave in waves]))
    correlation = np.sum(waves[0] * waves[1].conj()).real / norms
    return {
        "high_frequency_power": round(float(decoded / original), 4),
        "bands": [round(float(x), 4) for x in powers[0].sum(0) / powers[1].sum(0)],
        "high_frequency_correlation": round(float(correlation), 4),
    }


def code_counts(codes: np.ndarray, num_embeddings: int) -> np.ndarray:
    """How often each code occurs: int (K,)."""
    return np.bincount(np.ravel(codes), minlength=num_embeddings)


def perplexity(counts: np.ndarray) -> float:
    """The exponential of the entropy: how many equally used codes have the same entropy."""
    return float(np.exp(stats.entropy(counts)))


def bits_per_code(log_prob: np.ndarray, positions: int) -> np.ndarray:
    """Bits per code of whole maps: -log2 p / positions, from natural logarithms float (N,)."""
    return -np.asarray(log_prob, "float64") / (positions * np.log(2))


def baseline_bits(
    train_codes: np.ndarray,
    train_slices: np.ndarray,
    codes: np.ndarray,
    slices: np.ndarray,
    num_embeddings: int,
) -> dict[str, float]:
    """Bits per code of five unigram baselines, which only count codes.

    Pseudo-counts, distributed like the next coarser table, leave no code with probability 0. The
    last table shares counts with neighbouring slice indices. Leave-one-out likelihood of the
    training codes chooses how many and how far.

    Args:
        train_codes, train_slices: int (N, h, w) and int (N,), what is counted; slices of a subject
            stand together, by increasing index.
        codes, slices: int (M, h, w) and int (M,), what is scored, on the same grid.

    Returns:
        {"uniform", "marginal", "per position", "per slice index and position", "smoothed over
        indices"}: mean bits per code.
    """
    for what, maps in (("train_codes", train_codes), ("codes", codes)):
        checked_codes(f"{what} holds", maps, num_embeddings)
    if train_codes.shape[1:] != codes.shape[1:]:
        raise ValueError(
            f"Code maps of shapes {train_codes.shape} and {codes.shape} cannot be compared; "
            "expected one grid: encode both with the same weights."
        )
    rows, columns = np.indices(codes.shape[1:])
    counts = np.zeros((SLICES_PER_SUBJECT, *codes.shape[1:], num_embeddings))
    np.add.at(counts, (train_slices[:, None, None], rows, columns, train_codes), 1)
    uniform = np.full(num_embeddings, 1 / num_embeddings)
    marginal = _smoothed(counts.sum((0, 1, 2)), uniform)
    per_position = _smoothed(counts.sum(0), marginal)
    tables = {
        "uniform": uniform,
        "marginal": marginal,
        "per position": per_position,
        "per slice index and position": _smoothed(counts, per_position),
        "smoothed over indices": _over_indices(counts, per_position, train_codes, train_slices),
    }
    at = slices[:, None, None], rows, columns, codes
    return {
        name: float(-np.log2(np.broadcast_to(table, counts.shape)[at]).mean())
        for name, table in tables.items()
    }


def _smoothed(counts: np.ndarray, coarser: np.ndarray) -> np.ndarray:
    """Counts (..., K) plus pseudo-counts distributed like `coarser`, as probabilities."""
    total = counts.sum(-1, keepdims=True)
    observed = counts > 0

    def leave_one_out(weight):
        """Log likelihood of every observation given all the others."""
        probability = (counts - 1 + weight * coarser) / np.maximum(total - 1 + weight, 1e-12)
        return np.sum(counts[observed] * np.log(np.maximum(probability[observed], 1e-12)))

    weight = max(PSEUDO_COUNTS, key=leave_one_out)
    return (counts + weight * coarser) / (total + weight)


def _over_indices(counts, coarser, codes, slices) -> np.ndarray:
    """Counts (32, h, w, K), smoothed over slice indices by a Gaussian kernel, as probabilities.

    Its bandwidth and the pseudo-counts are the likeliest with each subject left out.
    """
    subjects = np.cumsum(np.diff(slices, prepend=0) <= 0)  # the next one starts at a lower index
    at = slices[:, None, None], *np.indices(codes.shape[1:]), codes
    index, highest = np.arange(len(counts)), -np.inf
    for bandwidth in BANDWIDTHS:
        kernel = np.exp(-0.5 * (np.subtract.outer(index, index) / bandwidth) ** 2)
        smooth = np.tensordot(kernel, counts, 1)
        others, total = smooth[at], smooth.sum(-1)[slices]
        for own in (subjects == subject for subject in np.unique(subjects)):
            weights = kernel[np.ix_(slices[own], slices[own])]
            others[own] -= np.einsum("ij,ij...->i...", weights, codes[own][:, None] == codes[own])
            total[own] -= weights.sum(1)[:, None, None]
        for pseudo in PSEUDO_COUNTS:
            log_prob = np.log((others + pseudo * coarser[at[1:]]) / (total + pseudo)).sum()
            if log_prob > highest:
                highest, table = log_prob, smooth + pseudo * coarser
    return table / table.sum(-1, keepdims=True)


def reconstruction_table(vqvae: VQVAE, slices: SliceSet) -> dict:
    """Scores of a VQ-VAE on every slice of a split: similarity, sharpness, rate, codebook usage.

    A dict of numbers that JSON can hold; each estimate is [mean, low, high].
    """
    codes = vqvae.encode(slices.images)
    decoded = vqvae.decode(codes)
    whole, brain = ssim_scores(slices.images, decoded)
    counts = code_counts(codes, vqvae.num_embeddings)
    in_brain = code_counts(codes[vqvae.brain_positions(slices.images)], vqvae.num_embeddings)

    scores = {"ssim": whole, "brain_ssim": brain, "psnr_db": psnr(slices.images, decoded)}
    return {
        "slices": len(slices),
        "subjects": len(np.unique(slices.subjects)),
        **{k: subject_interval(v, slices.subjects).rounded() for k, v in scores.items()},
        "sharpness": sharpness_table(slices.images, decoded),
        "bits_per_slice": round(vqvae.bits_per_slice, 1),
        "perplexity": round(perplexity(counts), 1),
        "perplexity_brain": round(perplexity(in_brain), 1),
        "codes_used": int((counts > 0).sum()),
        "codes_used_brain": int((in_brain > 0).sum()),
        "dead_codes": int((counts == 0).sum()),
    }


def prior_table(vqvae: VQVAE, prior: Prior, train: SliceSet, slices: SliceSet) -> dict:
    """Bits per code of a prior on a split and of the baselines counted on `train`.

    "bits_per_code" is [mean, low, high]; "baselines" as `baseline_bits`; "given_below", for a
    prior that takes the slice below, as `_bits_given_below`.
    """
    train_codes, codes = vqvae.encode(train.images), vqvae.encode(slices.images)
    bits = bits_per_code(prior.log_prob(codes, slices.slices), codes[0].size)
    baselines = baseline_bits(train_codes, train.slices, codes, slices.slices, vqvae.num_embeddings)
    table = {
        "bits_per_code": subject_interval(bits, slices.subjects).rounded(),
        "baselines": {name: round(value, 4) for name, value in baselines.items()},
    }
    if prior.takes_below:
        table["given_below"] = _bits_given_below(prior, train, train_codes, slices, codes)
    return table


def _bits_given_below(prior, train: SliceSet, train_codes, slices: SliceSet, codes) -> dict:
    """Bits per code of slices that have a lower neighbour, given it.

    "bits_per_code" is [mean, low, high]; "by_index" the mean at each slice index from 1;
    "baseline" counts codes for each code below.
    """
    chosen, paired = slices.below() >= 0, train.below() >= 0
    codes, below, indices = codes[chosen], slices.codes_below(codes)[chosen], slices.slices[chosen]
    bits = bits_per_code(prior.log_prob(codes, indices, below), codes[0].size)
    counts = np.zeros((prior.num_embeddings, prior.num_embeddings))
    np.add.at(counts, (train.codes_below(train_codes)[paired], train_codes[paired]), 1)
    probability = _smoothed(counts, _smoothed(counts.sum(0), np.full(len(counts), 1 / len(counts))))
    return {
        "bits_per_code": subject_interval(bits, slices.subjects[chosen]).rounded(),
        "by_index": [round(float(bits[indices == k].mean()), 3) for k in np.unique(indices)],
        "baseline": round(float(-np.log2(probability[below, codes]).mean()), 4),
    }
