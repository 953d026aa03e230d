"""What the notebooks and the commands share: data in force, profiles, training, weights.

Weights live in `data/weights/<name>/`: `vqvae.keras`, `prior.keras`, `history.json` with the
training curves, `scores.json` with what was measured, `MODEL_CARD.md`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import keras
import numpy as np

from oasis_helpers import metrics
from oasis_helpers.cohort import make_cohort
from oasis_helpers.data import REPOSITORY, SPLITS, SliceSet, load_slices
from oasis_helpers.pixelcnn import GatedPixelCNN, Prior
from oasis_helpers.vqvae import VQVAE, improved_vqvae

WEIGHTS = REPOSITORY / "data" / "weights"
COHORT = REPOSITORY / "data" / "cohort"
WORK = REPOSITORY / "build" / "train"  # checkpoints of unfinished trainings
FINISHED = "finished.keras"
OTHER_SLICES = (
    "These are not the test slices that the shipped weights were scored on. Subjects among them "
    "may have been trained on, so don't call scores on them results on unseen subjects."
)


# --------------------------------------------------------------------------- what is in force


def data_root() -> Path:
    """The folder with the slices in force: `OASIS_DATA_DIR`, or the synthetic cohort.

    The cohort is made on first use, in a minute or two.

    Raises:
        FileNotFoundError: when `OASIS_DATA_DIR` names no folder.
    """
    named = os.environ.get("OASIS_DATA_DIR")
    if not named:
        return make_cohort(COHORT)
    root = Path(named).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(
            f"OASIS_DATA_DIR is {named!r}, but {root} is no folder; set it to the folder that "
            "holds keras_png_slices_data/, or unset it to use the synthetic cohort."
        )
    return root


def data_name() -> str:
    """The weights for the data in force: "oasis1" with `OASIS_DATA_DIR`, else "cohort"."""
    return "oasis1" if os.environ.get("OASIS_DATA_DIR") else "cohort"


def profile() -> str:
    """`OASIS_PROFILE`: "tour" (the default, minutes) or "full" (trains to the end).

    Raises:
        ValueError: for another value.
    """
    named = os.environ.get("OASIS_PROFILE") or "tour"
    if named not in ("tour", "full"):
        raise ValueError(f'OASIS_PROFILE is {named!r}; expected "tour" or "full".')
    return named


# ------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Recipe:
    """How one set of weights is trained; steps are counted in batches."""

    data: str  # "cohort" or "oasis1"
    size: int = 80
    crop: str | None = None  # as for load_slices
    vqvae: dict = field(default_factory=dict)  # arguments of improved_vqvae
    vqvae_steps: int = 5000
    vqvae_batch: int = 32
    vqvae_rate: float = 4e-3
    prior: dict = field(default_factory=lambda: {"filters": 64})  # arguments of GatedPixelCNN
    prior_steps: int = 1500
    prior_batch: int = 64
    prior_rate: float = 2e-3
    seed: int = 0


# At 80 x 80 the brains of OASIS's atlas frame lie in rows 12-66 and columns 18-61; the code grid
# covers that part with a margin, in cells of 6 x 5 pixels.
WHOLE_FRAME = {"field": (10, 15, 60, 50), "patch": (3, 5), "merge": (2, 1)}

RECIPES = {
    "cohort": Recipe("cohort", vqvae=WHOLE_FRAME, vqvae_steps=1600, prior_steps=700),
    "oasis1-10x10": Recipe("oasis1", vqvae=WHOLE_FRAME),
    "oasis1": Recipe("oasis1", vqvae=WHOLE_FRAME),
}


def learning_rate(peak: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """A short linear warm-up to `peak`, then a cosine down to a fiftieth of it."""
    warm_up = min(100, steps // 10)
    return keras.optimizers.schedules.CosineDecay(
        peak / 10, steps - warm_up, alpha=0.02, warmup_target=peak, warmup_steps=warm_up
    )


# ------------------------------------------------------------------------------------ training


def train_vqvae(
    recipe: Recipe, train: SliceSet, validate: SliceSet, callbacks=(), verbose=0
) -> tuple[VQVAE, dict]:
    """Trains the first stage on `train`, watched on `validate`; returns it with its history."""
    keras.utils.set_random_seed(recipe.seed)
    model = improved_vqvae(float(train.images.var()), recipe.size, seed=recipe.seed, **recipe.vqvae)
    model.compile(keras.optimizers.Adam(learning_rate(recipe.vqvae_rate, recipe.vqvae_steps)))
    history = model.fit(
        train.images,
        train.images,
        batch_size=recipe.vqvae_batch,
        epochs=epochs_for(recipe.vqvae_steps, len(train), recipe.vqvae_batch),
        validation_data=(validate.images, validate.images),
        callbacks=list(callbacks),
        verbose=verbose,
    )
    return model, history.history


def train_prior(
    recipe: Recipe, vqvae: VQVAE, train: SliceSet, validate: SliceSet, callbacks=(), verbose=0
) -> tuple[Prior, dict]:
    """Trains the second stage on the codes of `train`; returns it with its history."""
    keras.utils.set_random_seed(recipe.seed)
    codes, unseen = vqvae.encode(train.images), vqvae.encode(validate.images)
    model = GatedPixelCNN(vqvae.num_embeddings, codes.shape[1:], **recipe.prior)
    model.compile(
        keras.optimizers.Adam(learning_rate(recipe.prior_rate, recipe.prior_steps), clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        (codes, train.slices),
        codes,
        batch_size=recipe.prior_batch,
        epochs=epochs_for(recipe.prior_steps, len(train), recipe.prior_batch),
        validation_data=((unseen, validate.slices), unseen),
        callbacks=list(callbacks),
        verbose=verbose,
    )
    return model, history.history


def epochs_for(steps: int, count: int, batch: int) -> int:
    """The number of whole epochs nearest to a number of steps, at least one."""
    return max(1, round(steps / -(-count // batch)))


class EpochLines(keras.callbacks.Callback):
    """Prints one line an epoch: its number, seconds, and the figures named.

    Args:
        figures: names in the logs, e.g. ("loss", "val_ssim").
        every: prints every so many epochs, and the last one.
    """

    def __init__(self, figures: tuple[str, ...], every: int = 1):
        super().__init__()
        self.figures, self.every = figures, every

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        total, seconds = self.params["epochs"], time.perf_counter() - self.started
        logs["seconds"] = seconds  # for the callbacks after this one
        if (epoch + 1) % self.every and epoch + 1 < total:
            return
        shown = "  ".join(f"{name} {logs[name]:.3f}" for name in self.figures if name in logs)
        print(f"epoch {epoch + 1:3d}/{total}  {shown}  ({seconds:.0f} s)", flush=True)


# ----------------------------------------------------------------------------- shipped weights


@dataclass(frozen=True)
class Pretrained:
    """Finished weights and what was measured with them.

    Attributes:
        vqvae: the first stage.
        prior: the second stage, or None where there is none.
        scores: what `scores.json` holds.
        history: the recipe and the training curves, {"recipe": {...}, "vqvae": {...},
            "prior": {...}}, in the latter two a list for each figure with a value an epoch.
    """

    vqvae: VQVAE
    prior: Prior | None
    scores: dict
    history: dict

    def load_slices(self, root: str | Path, split: str) -> SliceSet:
        """The slices of a split in the frame (size and crop) that these weights expect."""
        frame = self.scores["frame"]
        crop = tuple(frame["crop"]) if frame["crop"] else None
        slices = load_slices(root, split, frame["size"], crop)
        if split == "test" and not self.scored_on(slices):
            warnings.warn(OTHER_SLICES, stacklevel=2)
        return slices

    def scored_on(self, slices: SliceSet) -> bool:
        """Whether `scores` hold for these test slices.

        The cohort's are the same everywhere but for a rounded grey level, so only real slices
        are compared.
        """
        return self.scores["data"] == "cohort" or (
            fingerprint(slices) == self.scores["test_fingerprint"]
        )


def load_pretrained(name: str) -> Pretrained:
    """The weights in `data/weights/<name>/`.

    Raises:
        FileNotFoundError: when there are no weights of that name; the message lists those there.
    """
    folder = WEIGHTS / name
    if not (folder / "vqvae.keras").is_file():
        known = sorted(path.parent.name for path in WEIGHTS.glob("*/vqvae.keras"))
        raise FileNotFoundError(
            f"There are no weights named {name!r} in {WEIGHTS}; there are: "
            f"{', '.join(known) or 'none yet'}. `make train NAME={name}` makes them."
        )
    prior = folder / "prior.keras"
    return Pretrained(
        vqvae=keras.saving.load_model(folder / "vqvae.keras", compile=False),
        prior=keras.saving.load_model(prior, compile=False) if prior.is_file() else None,
        scores=json.loads((folder / "scores.json").read_text()),
        history=json.loads((folder / "history.json").read_text()),
    )


def train_weights(name: str) -> dict:
    """Trains the recipe of that name to the end, measures it, keeps it; returns the scores.

    Works in `WORK/<name>/`, resumes there after its last finished epoch, and puts the finished
    files into `data/weights/<name>/` at the end.

    Raises:
        KeyError: when there is no recipe of that name.
        ValueError: when the data in force are not the ones that the recipe is for.
    """
    recipe, splits = RECIPES[name], _splits_for(name)
    train, validate, work = splits["train"], splits["validate"], WORK / name
    _refuse_other_training(work, {"recipe": asdict(recipe), "train": fingerprint(train)})
    vqvae = _stage(
        work / "vqvae",
        lambda callbacks: train_vqvae(recipe, train, validate, callbacks)[0],
        EpochLines(("loss", "ssim", "val_ssim", "perplexity")),
    )
    _stage(
        work / "prior",
        lambda callbacks: train_prior(recipe, vqvae, train, validate, callbacks)[0],
        EpochLines(("loss", "val_loss", "accuracy", "val_accuracy")),
    )
    history = {stage: read_history(work / stage / "history.csv") for stage in ("vqvae", "prior")}
    history["recipe"] = asdict(recipe)
    folder = WEIGHTS / name
    folder.mkdir(parents=True, exist_ok=True)
    for stage in ("vqvae", "prior"):
        write_bytes(folder / f"{stage}.keras", (work / stage / FINISHED).read_bytes())
    write_bytes(folder / "history.json", f"{json.dumps(history)}\n".encode())
    return score_weights(name)


def score_weights(name: str) -> dict:
    """Measures the weights of that name on validation and test subjects; returns the scores.

    Writes `scores.json` and `MODEL_CARD.md` beside the weights. Raises as `train_weights` does.
    """
    recipe, splits, folder = RECIPES[name], _splits_for(name), WEIGHTS / name
    vqvae, prior = (
        keras.saving.load_model(folder / f"{stage}.keras", compile=False)
        for stage in ("vqvae", "prior")
    )
    history = json.loads((folder / "history.json").read_text())
    train, test = splits["train"], splits["test"]
    scores = {
        "data": recipe.data,
        "frame": {"size": recipe.size, "crop": train.crop},
        "recipe": history["recipe"],
        "train": {"slices": len(train), "subjects": len(np.unique(train.subjects))},
        "validate": metrics.reconstruction_table(vqvae, splits["validate"]),
        "test": metrics.reconstruction_table(vqvae, test),
        "test_fingerprint": fingerprint(test),
        "prior_validate": metrics.prior_table(vqvae, prior, train, splits["validate"]),
        "prior_test": metrics.prior_table(vqvae, prior, train, test),
        "epochs": {stage: len(history[stage]["epoch"]) for stage in ("vqvae", "prior")},
        "minutes": {
            stage: round(sum(history[stage]["seconds"]) / 60, 1) for stage in ("vqvae", "prior")
        },
        "made_with": {"keras": keras.__version__, "python": platform.python_version()},
    }
    write_bytes(folder / "scores.json", f"{json.dumps(scores, indent=2)}\n".encode())
    write_bytes(folder / "MODEL_CARD.md", model_card(name, scores).encode())
    return scores


def _splits_for(name: str) -> dict[str, SliceSet]:
    """The three splits in the frame of a recipe, from the data that it is for."""
    recipe = RECIPES[name]
    if recipe.data != data_name():
        needed = "set OASIS_DATA_DIR to" if recipe.data == "oasis1" else "unset OASIS_DATA_DIR for"
        raise ValueError(
            f"The weights {name!r} need other data: {needed} the {recipe.data} slices."
        )
    root = data_root()
    return {split: load_slices(root, split, recipe.size, recipe.crop) for split in SPLITS}


def fingerprint(slices: SliceSet) -> str:
    """A hash of which slices these are: tells test subjects that scores hold for from others."""
    levels = np.rint(slices.images * 255).astype("uint8")
    keys = np.stack([slices.subjects, slices.slices])
    return hashlib.sha256(keys.tobytes() + levels.tobytes()).hexdigest()


def _refuse_other_training(work: Path, made_of: dict) -> None:
    """Checkpoints of another recipe or of other slices must not be resumed by mistake."""
    note = work / "made_of.json"
    made_of = json.loads(json.dumps(made_of))
    if not note.is_file():
        note.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(note, json.dumps(made_of, indent=2).encode())
    elif json.loads(note.read_text()) != made_of:
        raise ValueError(
            f"{work} holds a training with another recipe or other slices; remove that folder to "
            "train anew, or go back to what it was made of to resume."
        )


def _stage(folder: Path, train, lines: EpochLines) -> keras.Model:
    """Trains one stage, resuming after its last finished epoch; loads it if it is finished."""
    if (folder / FINISHED).is_file():
        return keras.saving.load_model(folder / FINISHED, compile=False)
    folder.mkdir(parents=True, exist_ok=True)
    best, curves = folder / "best.weights.h5", folder / "history.csv"
    past = read_history(curves).get("val_loss", []) if curves.is_file() else []
    model = train(
        [
            lines,
            keras.callbacks.CSVLogger(curves, append=True),
            keras.callbacks.ModelCheckpoint(
                best,
                monitor="val_loss",
                mode="min",
                save_best_only=True,
                save_weights_only=True,
                initial_value_threshold=min(past, default=None),
            ),
            keras.callbacks.BackupAndRestore(folder / "backup"),
        ]
    )
    model.load_weights(best)
    save_for_use(model, folder / FINISHED)
    return model


def save_for_use(model: keras.Model, path: Path) -> None:
    """Saves a model without its optimizer, a third of the size, beside and renamed."""
    bare = type(model).from_config(model.get_config())
    bare.set_weights(model.get_weights())
    beside = path.with_name(f"{os.getpid()}-{path.name}")
    bare.save(beside)
    os.replace(beside, path)


def read_history(path: Path) -> dict[str, list[float]]:
    """The curves that `CSVLogger` wrote: {figure: [one value an epoch]}, to 5 digits."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    names = rows[0] if rows else []
    return {name: [float(f"{float(row[name]):.5g}") for row in rows] for name in names}


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file beside its place and renames it, so that it is never seen half written."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_bytes(content)
    os.replace(beside, path)


_CITATIONS = {
    "oasis1": (
        "OASIS-1, under the OASIS data use agreement (Marcus et al., Open Access Series of Imaging "
        "Studies (OASIS): Cross-Sectional MRI Data in Young, Middle Aged, Nondemented, and "
        "Demented Older Adults, J. Cogn. Neurosci. 19:1498-1507, 2007). No image of it is in this "
        "repository."
    ),
    "cohort": (
        "the synthetic cohort of `oasis_helpers.cohort`, random deformations of the MNI152 "
        "template (Fonov et al., NeuroImage 54:313-327, 2011); no person was scanned for it."
    ),
}


def model_card(name: str, scores: dict) -> str:
    """The text of MODEL_CARD.md, all its figures from `scores`."""
    test, prior, train = scores["test"], scores["prior_test"], scores["train"]
    validate, minutes = scores["validate"], scores["minutes"]
    size, crop = scores["frame"]["size"], scores["frame"]["crop"] or "the whole frame"

    def estimate(values):
        return f"{values[0]:.3f} (95 % interval {values[1]:.3f} to {values[2]:.3f})"

    return f"""# Weights `{name}`

**Data.** {train["slices"]} training slices of {train["subjects"]} subjects of
{_CITATIONS[scores["data"]]}
Validated on {validate["subjects"]} other subjects, tested once on {test["subjects"]} more
({test["slices"]} slices). No subject is in two splits.

**Frame.** {size} x {size} pixels, {crop}.

**Training.** `make train NAME={name}`, Keras {scores["made_with"]["keras"]}: VQ-VAE
{scores["epochs"]["vqvae"]} epochs, {minutes["vqvae"]} minutes; prior {scores["epochs"]["prior"]}
epochs, {minutes["prior"]} minutes, on two processor cores. 1 - SSIM is part of the VQ-VAE's loss.

**Scores on test subjects** (definitions in `oasis_helpers/metrics.py`)

- SSIM {estimate(test["ssim"])}, brain SSIM {estimate(test["brain_ssim"])},
  PSNR {test["psnr_db"][0]:.1f} dB, at {test["bits_per_slice"]:.0f} bits a slice
- perplexity {test["perplexity"]} over all cells, {test["perplexity_brain_cells"]} over cells that
  hold brain; {test["codes_used"]} codes used
- prior: {estimate(prior["bits_per_code"])} bits per code; baselines:
  {", ".join(f"{key} {value:.2f}" for key, value in prior["baselines"].items())}

**Limits.** Teaching material. Reconstructions lose fine folds, generated slices show nobody, and
neither is fit for diagnosis or any clinical use. Scores hold for these test subjects; slices of
subjects that were trained on would score higher.
"""
