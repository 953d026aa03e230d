"""What is each idea of our first stage worth?

`STEPS` lead from the reference VQ-VAE to ours and change one thing at a time; `ALTERNATIVES`
change one thing of ours. All have the same rate, 100 codes of 7 bits for a slice. Each is trained
for the same time on the training subjects, with three seeds, and scored on the *validation*
subjects, because the comparison is for choosing.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from experiments.quantizers import FiniteScalarQuantizer, ResidualQuantizer, RotationQuantizer
from experiments.variants import SECONDS, ResultsCache, Variant, plan_steps, train_variant
from oasis_helpers import metrics, recipes
from oasis_helpers.data import load_slices
from oasis_helpers.layers import EMAVectorQuantizer, VectorQuantizer
from oasis_helpers.vqvae import VQVAE

Build = Callable[[float], VQVAE]


def strided(quantizer: Callable = VectorQuantizer, ssim_weight: float = 0.0, **options) -> Build:
    """The reference's networks with a bounded output; `options` are the quantiser's."""

    def build(variance: float) -> VQVAE:
        encoder, decoder = recipes.strided_encoder(80), recipes.strided_decoder(80, bounded=True)
        return VQVAE(encoder, quantizer(128, 16, **options), decoder, variance, ssim_weight)

    return build


def patches(
    quantizer: Callable = lambda: EMAVectorQuantizer(128, 16),
    ssim_weight: float = 3.0,
    networks: dict = recipes.WHOLE_FRAME,
) -> Build:
    """Our networks with another quantiser, loss or shape."""

    def build(variance: float) -> VQVAE:
        layer = quantizer()
        encoder, decoder = recipes.patch_networks(80, layer.embedding_dim, **networks)
        return VQVAE(encoder, layer, decoder, variance, ssim_weight, networks.get("region"))

    return build


SEEDS = (0, 1, 2)
EMA, OURS = EMAVectorQuantizer, patches()
STRIDED, PATCHES = strided(EMA, ssim_weight=3.0), patches(networks={})
SCHEDULE = {"decays": True, "batch_size": 32}
FAST = {**SCHEDULE, "learning_rate": 4e-3}
_STEPS = [
    Variant("reference recipe", recipes.reference_vqvae),
    Variant("bounded output", strided()),
    Variant("EMA codebook", strided(EMA, start_from_data=False, restart_below=0)),
    Variant("codebook starts from data", strided(EMA, restart_below=0)),
    Variant("dead codes restart", strided(EMA)),
    Variant("1 - SSIM in the loss", STRIDED),
    Variant("warm-up, decay, small batches", STRIDED, **SCHEDULE),
    Variant("patches, residual blocks, sub-pixel output", PATCHES, **SCHEDULE),
    Variant("grid on the brain", OURS, **SCHEDULE),
    Variant("four times the peak rate", OURS, **FAST),
    Variant("mirrored slices, too", OURS, **FAST, mirrored=True),
]
STEPS = [_STEPS[0], *(replace(v, base=base.name) for base, v in pairwise(_STEPS))]
IMPROVED = STEPS[-1]

# To add a quantiser, or another change of ours, add a line here (a quantiser's layer goes to
# quantizers.py). `python -m experiments ablation` then trains what has no result yet.
ALTERNATIVES = {
    "whole frame instead of the grid": {"build": PATCHES},
    "weight of 1 - SSIM: 0": {"build": patches(ssim_weight=0.0)},
    "weight of 1 - SSIM: 1": {"build": patches(ssim_weight=1.0)},
    "weight of 1 - SSIM: 10": {"build": patches(ssim_weight=10.0)},
    "D = 4": {"build": patches(lambda: EMAVectorQuantizer(128, 4))},
    "rotation trick": {"build": patches(lambda: RotationQuantizer(128, 16))},
    "FSQ, levels 8 x 4 x 4": {"build": patches(lambda: FiniteScalarQuantizer((8, 4, 4)))},
    "residual codes, 16 x 8": {"build": patches(lambda: ResidualQuantizer((16, 8), 16))},
}
VARIANTS = [
    *STEPS,
    *(
        replace(IMPROVED, name=name, base=IMPROVED.name, **change)
        for name, change in ALTERNATIVES.items()
    ),
]


def measure(
    root: str | Path, file: Path, seconds: float = SECONDS, steps: int | None = None
) -> Iterator[dict]:
    """Trains every variant for so many seconds, or `steps`, with every seed, and scores it.

    Yields:
        {"name", "base", "batch_size", "steps", "seconds", "scores": as
        `metrics.reconstruction_table`, of the first seed; "seeds": brain SSIM of each}.
    """
    train, validate = (load_slices(root, split) for split in ("train", "validate"))
    cache = ResultsCache(file)
    plan = plan_steps(cache, VARIANTS, train, seconds, steps)

    def trained(variant: Variant) -> dict:
        scores = []
        for seed in SEEDS:
            model = train_variant(replace(variant, seed=seed), train, plan[variant.name]["steps"])
            scores.append(metrics.reconstruction_table(model, validate))
        facts = {name: getattr(variant, name) for name in ("name", "base", "batch_size")}
        seeds = [row["brain_ssim"][0] for row in scores]
        return {**facts, **plan[variant.name], "scores": scores[0], "seeds": seeds}

    for variant in VARIANTS:
        yield cache.get_or_compute("variants", variant.name, trained, variant)
