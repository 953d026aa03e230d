"""How each set of weights is made: the frame, both networks, and how long they are trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one stage is trained; steps are counted in batches.

    Attributes:
        steps: rounded to whole epochs.
        batch: slices or code maps in a step.
        rate: the peak of the learning rate after a warm-up; a cosine takes it down from there.
    """

    steps: int
    batch: int
    rate: float


@dataclass(frozen=True)
class Recipe:
    """How one set of weights is made.

    Attributes:
        data: "cohort" or "oasis1".
        size, crop: the frame, as for `load_slices`.
        vqvae: arguments of `improved_vqvae`, or {"reference": True} for the plain recipe.
        fitting: the schedule of the first stage; None where its weights come from `sharpens`.
        sharpens: the weights whose encoder and codebook are taken over and whose decoder learns
            on against a critic, as scheduled in `sharpening`.
        prior: arguments of `GatedPixelCNN`, or {"reference": True} for the plain one.
        drawing: the schedule of the prior; None for weights without one.
        variants: versions of every training slice whose codes the prior learns: 1, as it is; 2,
            mirrored, too; more, shifted ones besides.
        seed: of everything random.
    """

    data: str
    size: int = 80
    crop: str | None = None
    vqvae: dict = field(default_factory=dict)
    fitting: Schedule | None = Schedule(5000, 32, 4e-3)
    sharpens: str | None = None
    sharpening: Schedule | None = None
    prior: dict = field(default_factory=dict)
    drawing: Schedule | None = None
    variants: int = 1
    seed: int = 0


# At 80 x 80 the brains of OASIS's atlas frame lie in rows 12-66 and columns 18-61; the code grid
# covers that part with a margin, in cells of 6 x 5 pixels, or of 3 x 3.
WHOLE_FRAME = {"field": (10, 15, 60, 50), "patch": (3, 5), "merge": (2, 1)}
FINE_GRID = {"field": (10, 10, 60, 60), "patch": (3, 3), "merge": (1, 1), "widths": (64, 96)}
# Cropped to the brains' square they lie in rows 2-77 and columns 9-70: 13 x 11 cells of 6 x 6.
CROPPED = {"field": (1, 7, 78, 66), "patch": (3, 3), "merge": (2, 2)}


_PLAIN = {"reference": True}
_FAITHFUL = Recipe("oasis1", 80, "brain", CROPPED, Schedule(4600, 32, 4e-3))
_SHARP = replace(
    _FAITHFUL,
    fitting=None,
    sharpens="oasis1-faithful",
    sharpening=Schedule(1152, 32, 1e-3),
    prior={"filters": 64, "dropout": 0.15, "untold": 0.1},
    drawing=Schedule(2000, 64, 2e-3),
    variants=6,
)


RECIPES = {
    "oasis1-faithful": _FAITHFUL,
    "oasis1": replace(
        _SHARP, sharpening=Schedule(2304, 32, 1e-3), drawing=Schedule(3400, 64, 2e-3), seed=1
    ),
    "oasis1-10x10": replace(
        _SHARP,
        crop=None,
        vqvae=WHOLE_FRAME,
        fitting=Schedule(5000, 32, 4e-3),
        sharpens=None,
        sharpening=None,
    ),
    "oasis1-20x20": Recipe(
        "oasis1", vqvae=FINE_GRID | {"num_embeddings": 256}, fitting=Schedule(2000, 32, 4e-3)
    ),
    "oasis1-reference": Recipe(  # in the frame of "oasis1", so that their slices compare
        "oasis1",
        crop="brain",
        vqvae=_PLAIN,
        fitting=Schedule(720, 128, 1e-3),
        prior=_PLAIN,
        drawing=Schedule(1500, 64, 3e-4),
    ),
    "cohort-faithful": replace(_FAITHFUL, data="cohort", fitting=Schedule(2000, 32, 4e-3)),
    "cohort": replace(
        _SHARP,
        data="cohort",
        sharpens="cohort-faithful",
        sharpening=Schedule(960, 32, 1e-3),
        drawing=Schedule(1300, 64, 2e-3),
    ),
}
