"""How do our codes compare with image codecs at several rates?

Our design is trained at five rates, each for the same time, and compared with JPEG, JPEG 2000 and
WebP at several qualities. All are scored on *validation* subjects. A codec gets the 32 slices of a
subject as one mosaic: 32 slices share its header, which alone is longer than our code of a slice.
"""

import io
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.ablation import IMPROVED
from experiments.variants import SECONDS, ResultsCache, Variant, plan_steps, train_variant
from oasis_helpers import metrics
from oasis_helpers.data import SliceSet, load_slices
from oasis_helpers.recipes import FINE_GRID, WHOLE_FRAME, improved_vqvae

VARIANTS = [
    replace(
        IMPROVED, name=f"{grid}, K = {k}", build=partial(improved_vqvae, num_embeddings=k, **shape)
    )
    for grid, shape, ks in (
        ("10 x 10", WHOLE_FRAME, (32, 128, 512)),
        ("20 x 20", FINE_GRID, (16, 512)),
    )
    for k in ks
]
CODECS = {  # name: Pillow's name of it, and the options of each point
    "JPEG": ("JPEG", [{"quality": q} for q in (1, 3, 6, 10, 20, 35, 50)]),
    "WebP": ("WEBP", [{"quality": q, "method": 6} for q in (0, 5, 15, 30, 50, 70)]),
    "JPEG 2000": (
        "JPEG2000",
        [
            {"quality_mode": "rates", "quality_layers": [ratio], "irreversible": True}
            for ratio in (110, 80, 50, 30, 20, 14)
        ],
    ),
}


def measure(
    root: str | Path, file: Path, seconds: float = SECONDS, steps: int | None = None
) -> Iterator[dict]:
    """Trains our design at several rates, as `ablation.measure` does, and measures the codecs.

    Yields:
        {"name", "family", "bits" per slice, "ssim", "brain_ssim", "psnr_db"}, and for ours "steps"
        and "seconds".
    """
    train, validate = (load_slices(root, split) for split in ("train", "validate"))
    cache = ResultsCache(file)
    plan = plan_steps(cache, VARIANTS, train, seconds, steps)

    def trained(variant: Variant) -> dict:
        model = train_variant(variant, train, plan[variant.name]["steps"])
        decoded = model.decode(model.encode(validate.images))
        facts = {"name": variant.name, "family": f"improved, {variant.name.split(',')[0]}"}
        return facts | plan[variant.name] | scores(validate, decoded, model.bits_per_slice)

    def coded(name: str, family: str, kind: str, options: dict) -> dict:
        decoded, bits = through_codec(validate, kind, **options)
        return {"name": name, "family": family} | scores(validate, decoded, bits)

    for variant in VARIANTS:
        yield cache.get_or_compute("rates", variant.name, trained, variant)
    for family, (kind, points) in CODECS.items():
        for options in points:
            name = f"{family} {options}"
            yield cache.get_or_compute("rates", name, coded, name, family, kind, options)


def scores(slices: SliceSet, decoded: np.ndarray, bits: float) -> dict:
    """The rate, and the mean scores of decoded slices, float32 (N, size, size, 1) in [0, 1]."""
    whole, brain = metrics.ssim_scores(slices.images, decoded)
    return {
        "bits": round(bits, 1),
        "ssim": round(float(whole.mean()), 4),
        "brain_ssim": round(float(np.nanmean(brain)), 4),
        "psnr_db": round(float(metrics.psnr(slices.images, decoded).mean()), 2),
    }


def through_codec(slices: SliceSet, kind: str, **options) -> tuple[np.ndarray, float]:
    """Slices decoded by one of Pillow's codecs, as `slices.images`, and the bits per slice."""
    decoded, total = np.empty_like(slices.images), 0
    size = slices.images.shape[1]
    for subject in np.unique(slices.subjects):
        rows = np.flatnonzero(slices.subjects == subject)
        mosaic = np.concatenate(slices.images[rows, :, :, 0])  # one slice below the other
        file = io.BytesIO()
        Image.fromarray(np.rint(mosaic * 255).astype("uint8")).save(file, kind, **options)
        total += 8 * file.getbuffer().nbytes
        image = np.asarray(Image.open(file).convert("L"), "float32") / 255
        decoded[rows, :, :, 0] = image.reshape(len(rows), size, size)
    return decoded, total / len(slices)
