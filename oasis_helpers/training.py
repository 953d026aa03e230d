"""Training both stages so that an interruption costs an epoch at most and changes nothing.

`train_vqvae`, `sharpen` and `train_prior` choose data, optimizer and callbacks as a recipe says and
hand them to `fit`, which is Keras's own with an order of batches and a `Checkpoint` to go on from.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np

from oasis_helpers.data import SliceSet, fingerprint, shifted_and_mirrored, with_mirrored
from oasis_helpers.files import read_json, write_json, written_beside
from oasis_helpers.pixelcnn import GatedPixelCNN, MaskedPixelCNN, Prior
from oasis_helpers.recipes import Recipe
from oasis_helpers.sharpening import Sharpener, patch_critic
from oasis_helpers.vqvae import VQVAE, improved_vqvae, reference_vqvae

WEIGHT_AVERAGING = 0.99  # of the prior's weights: over some 100 steps
WEIGHT_DECAY = 0.02
SETTLING = 0.25  # of a prior's epochs, rounded up: the last ones, which see no shifted slice


# ------------------------------------------------------------------------------ what fit is given


def learning_rate(peak: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """A short linear warm-up to `peak`, then a cosine down to a fiftieth of it."""
    warm_up = min(100, steps // 10)
    return keras.optimizers.schedules.CosineDecay(
        peak / 10, steps - warm_up, alpha=0.02, warmup_target=peak, warmup_steps=warm_up
    )


def epochs_for(steps: int, count: int, batch: int) -> int:
    """The number of whole epochs nearest to a number of steps, at least one."""
    return max(1, round(steps / (count // batch)))


class Batches(keras.utils.PyDataset):
    """Batches whose order the seed and the epoch's number decide, and nothing else.

    `fit` shuffles arrays with a generator whose state can't be kept, so that a training that
    goes on after an interruption would see other batches than one that was never interrupted.
    What doesn't fill a batch is left out until the next epoch.

    Args:
        read: from numbers, int (n,), to what `fit` needs, (x, y).
        count: of the things that can be read.
        size: of them in a batch, over all workers.
        seed: of the order.
        part: (rank, workers): reads only this worker's share of each batch; all shares together
            are what one worker would read.
        settling: (epoch, first): from that epoch on only the `first` things are read, over and
            over until the epoch is as long as the others; None for all of them always.
        threads: `workers` and so on, as for `keras.utils.PyDataset`.

    Raises:
        ValueError: for a batch that is never full, or that the workers can't share evenly, or for
            `first` outside 1 ... count.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], tuple],
        count: int,
        size: int,
        seed: int = 0,
        part: tuple[int, int] = (0, 1),
        settling: tuple[int, int] | None = None,
        **threads,
    ):
        super().__init__(**threads)
        self.rank, self.sharing = part
        if size % self.sharing or not 0 < size <= count:
            raise ValueError(
                f"A batch of {size} out of {count} for {self.sharing} worker(s): choose a "
                f"multiple of {self.sharing} up to {count}."
            )
        if settling and not 0 < settling[1] <= count:
            raise ValueError(
                f"settling on the first {settling[1]}: there are {count}, use 1 or more."
            )
        self.read, self.count, self.size, self.seed = read, count, size, seed
        self.settling = settling
        self.shuffle(0)

    @classmethod
    def of(cls, inputs, targets, size: int, seed: int = 0, **options) -> Batches:
        """Batches of arrays, or of tuples of arrays, of one length; `options` as for `Batches`."""

        def rows(chosen):
            return keras.tree.map_structure(lambda array: array[chosen], (inputs, targets))

        return cls(rows, len(targets), size, seed, **options)

    def shuffle(self, epoch: int) -> None:
        """Takes up the order of that epoch."""
        things = np.arange(self.count)
        if self.settling and epoch >= self.settling[0]:
            things %= self.settling[1]
        self.order = np.random.default_rng((self.seed, epoch)).permutation(things)

    def __len__(self) -> int:
        return self.count // self.size

    def __getitem__(self, number: int) -> tuple:
        whole = self.order[number * self.size : (number + 1) * self.size]
        return self.read(np.array_split(whole, self.sharing)[self.rank])


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


# ------------------------------------------------------------------------ training that survives


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
            left.unlink(missing_ok=True)  # half written when a training was killed
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
        self.keep(parts | {"facts": np.array(json.dumps(facts))})

    def keep(self, parts: dict[str, np.ndarray]) -> None:
        """Writes the file."""
        self.latest.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(self.latest) as beside:
            with open(beside, "wb") as file:
                np.savez(file, allow_pickle=False, **parts)
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


def fit(
    model: keras.Model,
    batches: Batches,
    steps: int,
    validation_data: tuple | None = None,
    callbacks=(),
    checkpoint: Checkpoint | None = None,
    verbose=0,
) -> dict[str, list[float]]:
    """Keras's `fit` from where the checkpoint stands to the end of a schedule.

    Args:
        model: compiled.
        batches: of the training data; `fit` gets a new order of them every epoch.
        steps: in all, rounded to whole epochs.
        validation_data, callbacks, verbose: as for Keras's `fit`.
        checkpoint: where to go on from, and to keep the state of every epoch; None for neither.

    Returns:
        The curves, {figure: [one value an epoch]}.

    Raises:
        KeyboardInterrupt: when interrupted; with a checkpoint, the message says how to go on.
        ValueError: when the checkpoint is of another model.
    """
    shuffling = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: batches.shuffle(epoch)
    )
    try:
        history = model.fit(
            batches,
            initial_epoch=checkpoint.restore(model) if checkpoint else 0,
            epochs=epochs_for(steps, batches.count, batches.size),
            shuffle=False,  # that is done by `Batches`
            validation_data=validation_data,
            validation_batch_size=batches.size if validation_data else None,
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


# --------------------------------------------------------------------------------- the two stages


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
    batches = Batches.of(images, images, schedule.batch, recipe.seed)
    unseen = validate.images, validate.images
    return model, fit(model, batches, schedule.steps, unseen, callbacks, checkpoint, verbose)


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
    batches = Batches.of(vqvae.encode(images), images, schedule.batch, recipe.seed)
    unseen = vqvae.encode(validate.images), validate.images
    return model, fit(model, batches, schedule.steps, unseen, callbacks, checkpoint, verbose)


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

    Ours also learns the codes of mirrored and shifted slices. Shifted heads keep it from learning
    its few subjects by heart; but all heads were aligned to an atlas, and those to be drawn are not
    shifted, so the last epochs (`SETTLING`) leave them out. What is validated and kept is the
    running average of its weights (Polyak and Juditsky 1992). The reference is trained as it is
    taught.
    """
    keras.utils.set_random_seed(recipe.seed)
    schedule, unseen = recipe.drawing, vqvae.encode(validate.images)
    lying = with_mirrored(train.images) if recipe.variants > 1 else train.images  # two variants
    shifted = [shifted_and_mirrored(train.images, seed) for seed in range(2, recipe.variants)]
    codes = np.concatenate([vqvae.encode(images) for images in (lying, *shifted)])
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
        # XLA halves the time of a step here; stage 1 would take twice as long. PyTorch has none,
        # and its own compiler takes minutes.
        jit_compile=keras.backend.backend() != "torch",
    )
    epochs = epochs_for(schedule.steps, len(codes), schedule.batch)
    settling = epochs - math.ceil(SETTLING * epochs), len(lying)
    batches = Batches.of((codes, slices), codes, schedule.batch, recipe.seed, settling=settling)
    watched, callbacks = ((unseen, validate.slices), unseen), [*averaging, *callbacks]
    return model, fit(model, batches, schedule.steps, watched, callbacks, checkpoint, verbose)
