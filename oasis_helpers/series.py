"""What the notebooks and the commands share: data in force, profiles, training, weights.

Weights live in `data/weights/<name>/`: `vqvae.keras`, `prior.keras`, `history.json` with the
training curves, `scores.json` with what was measured, `MODEL_CARD.md`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sqlite3
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import keras
import numpy as np

from oasis_helpers import metrics, realism
from oasis_helpers.cohort import make_cohort
from oasis_helpers.data import (
    REPOSITORY,
    SLICES_PER_SUBJECT,
    SPLITS,
    SliceSet,
    load_slices,
    shifted_and_mirrored,
    with_mirrored,
    written_beside,
)
from oasis_helpers.pixelcnn import GatedPixelCNN, MaskedPixelCNN, Prior
from oasis_helpers.sampling import sample_codes
from oasis_helpers.sharpening import Sharpener, patch_critic
from oasis_helpers.vqvae import VQVAE, improved_vqvae, reference_vqvae

WEIGHTS = REPOSITORY / "data" / "weights"
FEATURES = REPOSITORY / "data" / "features"  # networks that judge drawn slices
COHORT = REPOSITORY / "data" / "cohort"
WORK = REPOSITORY / "build" / "train"  # checkpoints of unfinished trainings
FINISHED = "finished.keras"
DRAWN_FOR_SCORES = 20  # slices at each of the 32 levels
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
    root = Path(os.path.realpath(os.path.expanduser(named)))
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
        variants: copies of the training slices, mirrored and shifted, whose codes the prior
            learns, too; 1 for the slices alone.
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


def learning_rate(peak: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """A short linear warm-up to `peak`, then a cosine down to a fiftieth of it."""
    warm_up = min(100, steps // 10)
    return keras.optimizers.schedules.CosineDecay(
        peak / 10, steps - warm_up, alpha=0.02, warmup_target=peak, warmup_steps=warm_up
    )


# ------------------------------------------------------------------------------------ training


class Batches(keras.utils.PyDataset):
    """Batches whose order the seed and the epoch's number decide, and nothing else.

    `fit` shuffles arrays with a generator whose state can't be kept, so that a training that
    goes on after an interruption would see other batches than one that was never interrupted.

    Args:
        inputs, targets: arrays, or tuples of arrays, of one length.
        size: slices or code maps in a batch; the last one of an epoch may be smaller.
        seed: of the order.
    """

    def __init__(self, inputs, targets, size: int, seed: int):
        super().__init__()
        self.inputs, self.targets, self.size, self.seed = inputs, targets, size, seed
        self.shuffle(0)

    def shuffle(self, epoch: int) -> None:
        """Takes up the order of that epoch."""
        random = np.random.default_rng([self.seed, epoch])
        self.order = random.permutation(len(keras.tree.flatten(self.targets)[0]))

    @property
    def num_batches(self) -> int:
        return -(-len(self.order) // self.size)

    def __getitem__(self, number: int):
        chosen = self.order[number * self.size : (number + 1) * self.size]
        return keras.tree.map_structure(lambda part: part[chosen], (self.inputs, self.targets))


class Checkpoint(keras.callbacks.Callback):
    """Keeps the whole state of a training at the start of every epoch, to go on from there.

    Weights, optimizer with its running averages, the state of every random generator, the
    curves, and the weights of the best epoch so far are one file, so that they always belong
    together; it is written beside its place and renamed. The one before it is kept as well, in
    case this one is damaged. It must be the last callback, after those that exchange weights.

    Args:
        folder: of the two files.
        monitor: the epoch with the lowest value of it is the best; None keeps no best one.
    """

    def __init__(self, folder: Path, monitor: str | None = "val_loss"):
        super().__init__()
        self.latest, self.earlier = folder / "latest.npz", folder / "earlier.npz"
        self.monitor, self.history, self.best = monitor, {}, []

    def restore(self, model: keras.Model) -> int:
        """Brings a compiled model to the last state that was kept; returns the epoch to train.

        Warns of a file that can't be read and takes the one before it.

        Raises:
            ValueError: when what was kept is of another model.
        """
        model.optimizer.build(model.trainable_variables)
        for left in self.latest.parent.glob(f".*-{self.latest.name}"):
            left.unlink()  # half written when a training was killed
        for file in (self.latest, self.earlier):
            try:
                with np.load(file, allow_pickle=False) as kept:
                    parts = {name: kept[name] for name in kept.files}
                facts = json.loads(str(parts.pop("facts")))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                warnings.warn(f"{file} is damaged; going on from before it.", stacklevel=3)
                continue
            variables = self._state(model)
            values = [value for name, value in parts.items() if name.startswith("state")]
            if [value.shape for value in values] != [tuple(part.shape) for part in variables]:
                raise ValueError(
                    f"{file} holds the state of another model; remove {file.parent} to train anew."
                )
            for variable, value in zip(variables, values):
                variable.assign(value)
            self.history = facts["history"]
            self.best = [parts[f"best {number}"] for number in range(facts["best"])]
            return facts["epoch"]
        return 0

    @staticmethod
    def _state(model: keras.Model) -> list[keras.Variable]:
        return [*model.variables, *model.optimizer.variables]

    def on_epoch_begin(self, epoch, logs=None):
        facts = {"epoch": epoch, "history": self.history, "best": len(self.best)}
        state = [variable.numpy() for variable in self._state(self.model)]
        parts = {f"state {number}": value for number, value in enumerate(state)}
        parts |= {f"best {number}": value for number, value in enumerate(self.best)}
        self.latest.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(self.latest) as beside:
            with open(beside, "wb") as file:
                np.savez(file, allow_pickle=False, facts=json.dumps(facts), **parts)
            if self.latest.is_file():
                os.replace(self.latest, self.earlier)

    def on_epoch_end(self, epoch, logs=None):
        # Held against the curves, so that a resumed training decides as one never interrupted.
        best = min(self.history.get(self.monitor, []), default=np.inf)
        for name, value in {"epoch": epoch, **logs}.items():
            self.history.setdefault(name, []).append(float(f"{float(value):.5g}"))
        if self.monitor and float(logs[self.monitor]) < best:
            self.best = self.model.get_weights()

    def take_best(self) -> None:
        """Gives the model the weights of its best epoch.

        Raises:
            ValueError: when no epoch had a number to compare.
        """
        if not self.monitor:
            return
        if not self.best:
            raise ValueError(
                f"{self.monitor} was never a number in {self.latest.parent}, so no epoch is worth "
                "keeping; remove that folder and train with a lower rate."
            )
        self.model.set_weights(self.best)


def _fit(
    model: keras.Model,
    data: tuple,
    validation_data: tuple,
    schedule: Schedule,
    seed: int,
    callbacks: list[keras.callbacks.Callback],
    checkpoint: Checkpoint | None,
    verbose,
) -> dict[str, list[float]]:
    """`fit`, from where the checkpoint stands to the end of the schedule; returns the curves."""
    batches = Batches(*data, schedule.batch, seed)
    shuffling = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: batches.shuffle(epoch)
    )
    epochs = epochs_for(schedule.steps, len(batches.order), schedule.batch)
    try:
        history = model.fit(
            batches,
            initial_epoch=checkpoint.restore(model) if checkpoint else 0,
            epochs=epochs,
            shuffle=False,  # that is done by `Batches`
            validation_data=validation_data,
            validation_batch_size=schedule.batch,
            callbacks=[shuffling, *callbacks, *([checkpoint] if checkpoint else [])],
            verbose=verbose,
        )
    except KeyboardInterrupt:
        if not checkpoint:
            raise
        raise KeyboardInterrupt(
            f"Interrupted; {checkpoint.latest.parent} holds the state before the unfinished epoch, "
            "and the same call or command goes on from there."
        ) from None
    return checkpoint.history if checkpoint else history.history


def train_vqvae(
    recipe: Recipe,
    train: SliceSet,
    validate: SliceSet,
    callbacks=(),
    checkpoint: Checkpoint | None = None,
    verbose=0,
) -> tuple[VQVAE, dict]:
    """Trains the first stage on `train`, watched on `validate`; returns it with its history.

    The reference recipe is trained as it is taught, at a fixed rate on the slices as they are;
    ours sees every slice mirrored as well. With a `Checkpoint`, training goes on where it stands.
    """
    keras.utils.set_random_seed(recipe.seed)
    schedule, variance = recipe.fitting, float(train.images.var())
    if recipe.vqvae.get("reference"):
        model, images, rate = reference_vqvae(variance, recipe.size), train.images, schedule.rate
    else:
        model = improved_vqvae(variance, recipe.size, seed=recipe.seed, **recipe.vqvae)
        images = with_mirrored(train.images)
        rate = learning_rate(schedule.rate, schedule.steps)
    model.compile(keras.optimizers.Adam(rate))
    data, unseen = (images, images), (validate.images, validate.images)
    how = (schedule, recipe.seed, [*callbacks], checkpoint, verbose)
    return model, _fit(model, data, unseen, *how)


def sharpen(
    recipe: Recipe,
    vqvae: VQVAE,
    train: SliceSet,
    validate: SliceSet,
    callbacks=(),
    checkpoint: Checkpoint | None = None,
    verbose=0,
) -> tuple[Sharpener, dict]:
    """Trains the decoder of `vqvae` on, in place, against a critic; codes stay what they are.

    Returns:
        The trainer, which holds decoder and critic, and its history.
    """
    keras.utils.set_random_seed(recipe.seed)
    schedule, images = recipe.sharpening, with_mirrored(train.images)
    model = Sharpener(vqvae, patch_critic(recipe.size, vqvae.field))
    rate = learning_rate(schedule.rate, schedule.steps)
    model.compile(keras.optimizers.Adam(rate, beta_1=0.5))  # Radford et al. 2015, for critics
    data, unseen = ((vqvae.encode(part), part) for part in (images, validate.images))
    how = (schedule, recipe.seed, [*callbacks], checkpoint, verbose)
    return model, _fit(model, data, unseen, *how)


WEIGHT_AVERAGING = 0.99  # of the prior's weights: over some 100 steps
WEIGHT_DECAY = 0.02


def train_prior(
    recipe: Recipe,
    vqvae: VQVAE,
    train: SliceSet,
    validate: SliceSet,
    callbacks=(),
    checkpoint: Checkpoint | None = None,
    verbose=0,
) -> tuple[Prior, dict]:
    """Trains the second stage on the codes of `train`; returns it with its history.

    Ours also learns the codes of mirrored and shifted slices, and what is validated and kept is
    the running average of its weights (Polyak and Juditsky 1992); the reference is trained as it
    is taught.
    """
    keras.utils.set_random_seed(recipe.seed)
    schedule, unseen = recipe.drawing, vqvae.encode(validate.images)
    copies = [shifted_and_mirrored(train.images, seed) for seed in range(1, recipe.variants)]
    codes = np.concatenate([vqvae.encode(images) for images in (train.images, *copies)])
    slices = np.tile(train.slices, recipe.variants)
    if recipe.prior.get("reference"):
        model = MaskedPixelCNN(vqvae.num_embeddings, codes.shape[1:])
        optimizer, averaging = keras.optimizers.Adam(schedule.rate), []
    else:
        model = GatedPixelCNN(vqvae.num_embeddings, codes.shape[1:], **recipe.prior)
        optimizer = keras.optimizers.AdamW(
            learning_rate(schedule.rate, schedule.steps),
            WEIGHT_DECAY,
            clipnorm=1.0,
            use_ema=True,
            ema_momentum=WEIGHT_AVERAGING,
        )
        averaging = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=True,  # halves the time of a step here; stage 1 would take twice as long
    )
    data, watched = ((codes, slices), codes), ((unseen, validate.slices), unseen)
    how = (schedule, recipe.seed, [*averaging, *callbacks], checkpoint, verbose)
    return model, _fit(model, data, watched, *how)


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

    Whoever loads again and again in one process also calls `keras.utils.clear_session()` after
    each: TensorFlow keeps a compiled kernel, 35 kB, for every variable that there ever was.

    Raises:
        FileNotFoundError: when there are no weights of that name; the message lists those there.
        ValueError: when a file is damaged or belongs to other weights.
    """
    folder = WEIGHTS / name
    if not (folder / "vqvae.keras").is_file():
        known = sorted(path.parent.name for path in WEIGHTS.glob("*/vqvae.keras"))
        raise FileNotFoundError(
            f"There are no weights named {name!r} in {WEIGHTS}; there are: "
            f"{', '.join(known) or 'none yet'}. `make train NAME={name}` makes them."
        )
    scores, history = read_json(folder / "scores.json"), read_json(folder / "history.json")
    vqvae, prior = load_stages(folder)
    _refuse_other_scores(folder, vqvae, scores, history)
    return Pretrained(vqvae, prior, scores, history)


def load_stages(folder: Path) -> tuple[VQVAE, Prior | None]:
    """The VQ-VAE in a folder of weights, and its prior where it has one.

    Raises:
        ValueError: for a damaged file, or two stages that don't fit each other.
    """
    vqvae, prior = load_network(folder / "vqvae.keras", VQVAE), None
    if (folder / "prior.keras").is_file():
        prior = load_network(folder / "prior.keras", Prior)
        draws = (prior.num_embeddings, *prior.grid)
        decodes = (vqvae.num_embeddings, *vqvae.code_shapes[0])
        if draws != decodes:
            raise ValueError(
                "{}: prior.keras draws maps of {} codes on {} x {} cells, vqvae.keras decodes {} "
                "codes on {} x {}; put two stages there that were trained together.".format(
                    folder, *draws, *decodes
                )
            )
    return vqvae, prior


def load_network(file: Path, kind: type[keras.Model] = keras.Model) -> keras.Model:
    """A model from a `.keras` file, which can't bring code of its own along (Keras's safe mode).

    Args:
        file: what `save_for_use` wrote.
        kind: the class that it must be of.

    Raises:
        ValueError: when it is damaged, of another version, of another class, or carries code.
    """
    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
        fault = "" if isinstance(model, kind) else f"it holds a {type(model).__name__}"
    except Exception as error:  # a damaged file makes Keras raise almost anything
        fault = " ".join(f"{type(error).__name__}: {error}".split())
        fault = fault if len(fault) < 240 else f"{fault[:240]} ..."
    if fault:
        raise ValueError(
            f"{file} can't be used ({fault}); expected a {kind.__name__} that this version of the "
            "course saved, without code of its own: get it back with git, or train it anew."
        )
    return model


def _refuse_other_scores(folder: Path, vqvae: VQVAE, scores: dict, history: dict) -> None:
    """Scores beside weights that they were not measured with would be a lie."""
    try:
        bits, size = scores["test"]["bits_per_slice"], scores["frame"]["size"]
        same = size == vqvae.size and bits == round(vqvae.bits_per_slice, 1)
        same &= scores["recipe"] == history["recipe"] and "crop" in scores["frame"]
        same &= scores["weights"] == stages_digest(folder)
    except (KeyError, TypeError):
        same = False
    if not same:
        raise ValueError(
            f"{folder}: scores.json or history.json belongs to other weights than those beside "
            f"it; `python -m oasis_helpers score {folder.name}` measures them anew."
        )


def stages_digest(folder: Path) -> dict[str, str]:
    """{"vqvae": ..., "prior": ...}: hashes of the files of weights in a folder."""
    return {
        file.stem: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob("*.keras"))
    }


@contextmanager
def only_one(work: Path, what: str) -> Iterator[None]:
    """Lets one process at a time into a folder; the second one is told so.

    The lock is an SQLite transaction: the operating system ends it with the process, however
    that dies, on every system alike.

    Raises:
        BlockingIOError: when another process is at it.
    """
    work.mkdir(parents=True, exist_ok=True)
    lock = sqlite3.connect(work / "in-use.lock", timeout=0, isolation_level=None)
    try:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise OSError(
                    f"{work} can't be written ({error}); allow it, or free space."
                ) from None
            raise BlockingIOError(
                f"Another process is {what} in {work}; wait until it has ended, or stop it."
            ) from None
        yield
    finally:
        lock.close()


def train_weights(name: str) -> dict:
    """Trains the recipe of that name to the end, measures it, keeps it; returns the scores.

    Works in `WORK/<name>/`, resumes there after its last finished epoch, and puts the finished
    files into `data/weights/<name>/` at the end.

    Raises:
        ValueError: when there is no recipe of that name, or the data in force are not the ones
            that it is for, or the folder holds checkpoints of another training.
        BlockingIOError: when another process trains the same weights.
    """
    recipe, splits, work = _recipe(name), _splits_for(name), WORK / name
    with only_one(work, f"training {name!r}"):
        stages = _train_stages(recipe, splits["train"], splits["validate"], work)
        history = {stage: read_json(work / stage / "history.json") for stage in stages}
        history["recipe"] = asdict(recipe)
        folder = WEIGHTS / name
        folder.mkdir(parents=True, exist_ok=True)
        for stage in stages:
            write_bytes(folder / f"{stage}.keras", (work / stage / FINISHED).read_bytes())
        write_json(folder / "history.json", history)
        return score_weights(name)


def _train_stages(recipe: Recipe, train: SliceSet, validate: SliceSet, work: Path) -> list[str]:
    """Trains what isn't finished in `work`; returns the names of the stages there."""
    faithful = load_pretrained(recipe.sharpens).vqvae if recipe.sharpens else None
    claim(work, recipe, train, validate, faithful)
    if faithful:
        vqvae = _stage(
            work / "vqvae",
            lambda *how: sharpen(recipe, faithful, train, validate, *how)[0],
            EpochLines(("faithful", "features", "critic", "told_apart")),
            monitor=None,
            kept=lambda _: faithful,
        )
    else:
        vqvae = _stage(
            work / "vqvae",
            lambda *how: train_vqvae(recipe, train, validate, *how)[0],
            EpochLines(("loss", "val_loss", "val_ssim", "perplexity", "dead_codes", "restarts")),
            monitor="val_mse",  # the loss also holds the codebook's terms, which may grow with use
        )
    if not recipe.drawing:
        return ["vqvae"]
    _stage(
        work / "prior",
        lambda *how: train_prior(recipe, vqvae, train, validate, *how)[0],
        EpochLines(("loss", "val_loss", "accuracy", "val_accuracy")),
    )
    return ["vqvae", "prior"]


def score_weights(name: str) -> dict:
    """Measures the weights of that name on validation and test subjects; returns the scores.

    Writes `scores.json` and `MODEL_CARD.md` beside the weights. Raises as `train_weights` does.
    """
    recipe, splits, folder = _recipe(name), _splits_for(name), WEIGHTS / name
    digest = stages_digest(folder)
    vqvae, prior = load_stages(folder)
    history = read_json(folder / "history.json")
    stages = [stage for stage in ("vqvae", "prior") if stage in history]
    train, test = splits["train"], splits["test"]
    codes = vqvae.encode(train.images)
    scores = {
        "data": recipe.data,
        "frame": {"size": recipe.size, "crop": train.crop},
        "recipe": history["recipe"],
        "weights": digest,
        "train": {
            "slices": len(train),
            "subjects": len(np.unique(train.subjects)),
            "dead_codes": int((metrics.code_counts(codes, vqvae.num_embeddings) == 0).sum()),
        },
        "validate": metrics.reconstruction_table(vqvae, splits["validate"]),
        "test": metrics.reconstruction_table(vqvae, test),
        "test_fingerprint": fingerprint(test),
        "epochs": {stage: len(history[stage]["epoch"]) for stage in stages},
        "minutes": {stage: round(sum(history[stage]["seconds"]) / 60, 1) for stage in stages},
        "made_with": {"keras": keras.__version__, "python": platform.python_version()},
    }
    if prior:
        scores["prior_validate"] = metrics.prior_table(vqvae, prior, train, splits["validate"])
        scores["prior_test"] = metrics.prior_table(vqvae, prior, train, test)
        scores |= _judged(name, vqvae, prior, splits)
    write_json(folder / "scores.json", scores, indent=2)
    write_bytes(folder / "MODEL_CARD.md", model_card(name, scores).encode())
    return scores


def _judged(name: str, vqvae: VQVAE, prior: Prior, splits: dict[str, SliceSet]) -> dict:
    """Scores of drawn slices: "drawn", and in the frame of the feature network "realism".

    Drawing number j, one slice at each level, stands for one person. As many drawings as there
    are test subjects are judged as a set, so that every row of the table is of one size.
    """
    train, validate, test = (splits[split] for split in ("train", "validate", "test"))
    levels = np.repeat(np.arange(SLICES_PER_SUBJECT), DRAWN_FOR_SCORES)
    drawing = np.tile(np.arange(DRAWN_FOR_SCORES), SLICES_PER_SUBJECT)
    codes = sample_codes(prior, len(levels), levels, seed=RECIPES[name].seed)
    pictures = vqvae.decode(codes)
    scores = {"drawn": realism.drawn_table(pictures, levels, train, test)}
    if not train.crop:
        return scores
    networks = load_features(RECIPES[name].data, train)
    judged = drawing < len(np.unique(test.subjects))
    rebuilt = vqvae.decode(vqvae.encode(validate.images))
    table = {
        kind: realism.set_table(networks, test, *row)
        for kind, row in {
            "real": (validate.images, validate.slices, validate.subjects),
            "reconstructed": (rebuilt, validate.slices, validate.subjects),
            "drawn": (pictures[judged], levels[judged], drawing[judged]),
        }.items()
    }
    return scores | {"realism": table, "too_near": _memorised(vqvae, codes, pictures, train, test)}


def _memorised(vqvae: VQVAE, codes, pictures, train: SliceSet, test: SliceSet) -> dict[str, list]:
    """Shares of drawn slices nearer to a training slice than 99 % of unseen people's slices are.

    In pixels, unseen slices are taken as the same decoder draws them, so that its softness
    doesn't count as nearness.
    """
    known, unseen = vqvae.encode(with_mirrored(train.images)), vqvae.encode(test.images)
    distances = {
        "pixels": [realism.nearest_pixels(x, train)[0] for x in (pictures, vqvae.decode(unseen))],
        "codes": [realism.nearest_codes(x, known)[0] for x in (codes, unseen)],
    }
    shares = {k: realism.share_too_near(*pair, test.subjects) for k, pair in distances.items()}
    return {k: [round(x, 4) for x in (v.mean, v.low, v.high)] for k, v in shares.items()}


def train_features() -> dict:
    """Trains the feature network of the data in force and keeps it; returns what it can see.

    The figures, on validation subjects, are written beside the network.
    """
    splits, name = _splits_for(data_name()), data_name()
    train, validate = splits["train"], splits["validate"]
    FEATURES.mkdir(parents=True, exist_ok=True)
    save_for_use(realism.feature_network(train), FEATURES / f"{name}.keras")
    networks = load_features(name, train)
    facts = {
        "train_subjects": len(np.unique(train.subjects)),
        "validate_subjects": len(np.unique(validate.subjects)),
        "level_of_neighbours": {
            kind: round(realism.level_of_neighbours(network, validate), 4)
            for kind, network in networks.items()
        },
        "sensitivity": {
            kind: realism.sensitivity(network, train, validate)
            for kind, network in networks.items()
        },
    }
    write_json(FEATURES / f"{name}.json", facts, indent=1)
    return facts


def load_features(data: str, train: SliceSet) -> dict[str, keras.Model]:
    """{"learnt": the shipped feature network of "oasis1" or "cohort", "random": its control}.

    Raises:
        FileNotFoundError: when there is none for these data.
    """
    file = FEATURES / f"{data}.keras"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing; `python -m oasis_helpers features` makes it from the training "
            "slices in force."
        )
    control = realism.feature_network(train, epochs=0)
    return {"learnt": load_network(file), "random": control}


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name!r}; there are: {', '.join(sorted(RECIPES))}.")
    return RECIPES[name]


def _splits_for(name: str) -> dict[str, SliceSet]:
    """The three splits in the frame of a recipe, from the data that it is for."""
    recipe = _recipe(name)
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


def claim(
    work: Path,
    recipe: Recipe,
    train: SliceSet,
    validate: SliceSet,
    start: keras.Model | None = None,
) -> Path:
    """Notes in a folder what a training's checkpoints there are made of; returns the folder.

    Args:
        work: the folder, made if it isn't there.
        recipe, train, validate: of the training.
        start: the finished model that it starts from, or whose codes it learns.

    Raises:
        ValueError: when the folder holds the checkpoints of another training, which must not be
            gone on with by mistake.
    """
    weights = b"".join(value.tobytes() for value in start.get_weights()) if start else b""
    made_of = {
        "recipe": asdict(recipe),
        "train": fingerprint(train),
        "validate": fingerprint(validate),
        "start": hashlib.sha256(weights).hexdigest(),
    }
    note, made_of = work / "made_of.json", json.loads(json.dumps(made_of))
    if not note.is_file():
        work.mkdir(parents=True, exist_ok=True)
        write_json(note, made_of, indent=2)
    elif read_json(note) != made_of:
        raise ValueError(
            f"{work} holds a training with another recipe or other slices; remove that folder to "
            "train anew, or go back to what it was made of to resume."
        )
    return work


def _stage(
    folder: Path,
    train: Callable[[list, Checkpoint], keras.Model],
    lines: EpochLines,
    monitor: str | None = "val_loss",
    kept: Callable[[keras.Model], keras.Model] = lambda model: model,
) -> keras.Model:
    """Trains one stage, resuming after its last finished epoch; loads it if it is finished.

    Args:
        folder: of this stage's checkpoints.
        train: gets callbacks and where to go on from; returns the model that it fitted.
        lines: prints the progress.
        monitor: the epoch with the lowest value of it is kept; None keeps the last one.
        kept: the model to keep of the fitted one.
    """
    if not (folder / FINISHED).is_file():
        checkpoint = Checkpoint(folder, monitor)
        model = train([lines], checkpoint)
        checkpoint.take_best()
        write_json(folder / "history.json", checkpoint.history)
        save_for_use(kept(model), folder / FINISHED)
    return load_network(folder / FINISHED)


def save_for_use(model: keras.Model, path: Path) -> None:
    """Saves a model without its optimizer, a third of the size, beside and renamed."""
    bare = type(model).from_config(model.get_config())
    bare.set_weights(model.get_weights())
    with written_beside(path) as beside:
        bare.save(beside)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file beside its place and renames it, so that it is never seen half written."""
    with written_beside(path) as beside:
        beside.write_bytes(content)


def write_json(path: Path, content: dict, indent: int | None = None) -> None:
    """Writes a JSON file as `write_bytes` does."""
    write_bytes(path, f"{json.dumps(content, indent=indent)}\n".encode())


def read_json(path: Path) -> dict:
    """What a JSON file of ours holds.

    Raises:
        ValueError: for a missing or damaged file, and one that holds something else than a dict.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        content = error
    if not isinstance(content, dict):
        found = f"can't be read ({content})" if isinstance(content, Exception) else "holds no names"
        raise ValueError(
            f"{path}: {found}; expected a JSON file of ours: get it back with git, or remove it "
            "and make it anew."
        )
    return content


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


_LOSSES = {
    True: "The loss is the mean squared error.",
    False: "The mean squared error and 1 - SSIM are both in the loss.",
}


def model_card(name: str, scores: dict) -> str:
    """The text of MODEL_CARD.md, all its figures from `scores`."""
    test, prior, train = scores["test"], scores.get("prior_test"), scores["train"]
    validate, minutes, epochs = scores["validate"], scores["minutes"], scores["epochs"]
    size, crop = scores["frame"]["size"], scores["frame"]["crop"]
    frame = f"cropped to (top, left, side) {tuple(crop)}" if crop else "the whole frame"
    source = scores["recipe"].get("sharpens")
    first = f"decoder of `{source}`, sharpened against a critic" if source else "VQ-VAE"
    stages = {"vqvae": first, "prior": "prior"}

    def estimate(values):
        return f"{values[0]:.3f} (95 % interval {values[1]:.3f} to {values[2]:.3f})"

    trained = "; ".join(
        f"{stages[stage]}, {epochs[stage]} epochs, {minutes[stage]} minutes" for stage in epochs
    )
    drawn = ""
    if prior:
        baselines = ", ".join(f"{key} {value:.2f}" for key, value in prior["baselines"].items())
        drawn = f"\n- prior: {estimate(prior['bits_per_code'])} bits per code; counted: {baselines}"
    today = json.loads(json.dumps(asdict(RECIPES[name])))
    earlier = ""
    if scores["recipe"] != today:
        earlier = (
            "\nMade by an earlier recipe, which `scores.json` holds; that command follows today's."
        )
    invented = "\nThe folds that the sharpened decoder draws are plausible, not the patient's own."
    return f"""# Weights `{name}`

**Data.** {train["slices"]} training slices of {train["subjects"]} subjects of
{_CITATIONS[scores["data"]]}
Validated on {validate["subjects"]} other subjects, tested once on {test["subjects"]} more
({test["slices"]} slices). No subject is in two splits.

**Frame.** {size} x {size} pixels, {frame}.

**Training.** `make train NAME={name}`, Keras {scores["made_with"]["keras"]}, two processor cores:
{trained}. {_LOSSES["reference" in scores["recipe"]["vqvae"]]}{earlier}

**Scores on test subjects** (definitions in `oasis_helpers/metrics.py`)

- SSIM {estimate(test["ssim"])}, brain SSIM {estimate(test["brain_ssim"])},
  PSNR {test["psnr_db"][0]:.1f} dB, at {test["bits_per_slice"]:.0f} bits a slice
- power above half the Nyquist frequency inside the brain: {test["sharpness"]["fine_power"]:.2f} of
  the originals'
- perplexity {test["perplexity"]} over all cells, {test["perplexity_brain_cells"]} over cells that
  hold brain; {test["codes_used"]} codes used{drawn}

**Limits.** Teaching material. Reconstructions lose fine folds, generated slices show nobody, and
neither is fit for diagnosis or any clinical use.{invented if source else ""}
Scores hold for these test subjects; slices of subjects that were trained on would score higher.
"""
