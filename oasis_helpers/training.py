"""Training both stages so that an interruption costs an epoch at most and changes nothing.

`train_vqvae`, `finetune_decoder` and `train_prior` choose data, optimizer and callbacks as a recipe
says. They call `fit`, which is Keras's own `fit` with a fixed order of batches and a `Checkpoint`
to resume from. Initial weights come from Keras's global generator: for a repeatable training, call
`keras.utils.set_random_seed` first.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import filelock
import keras
import numpy as np

from oasis_helpers.adversarial import AdversarialDecoder, head_decoder, patch_discriminator
from oasis_helpers.data import (
    SliceSet,
    atomic_write,
    fingerprint,
    read_json,
    shifted_and_mirrored,
    with_mirrored,
    write_json,
)
from oasis_helpers.pixelcnn import HEAD_CONDITIONS, UNKNOWN, GatedPixelCNN, MaskedPixelCNN, Prior
from oasis_helpers.recipes import Recipe, improved_vqvae, reference_vqvae
from oasis_helpers.set_metrics import head_measures, quantile_bins
from oasis_helpers.vqvae import VQVAE, with_neighbours

WEIGHT_AVERAGING = 0.99  # of the prior's weights: over some 100 steps
WEIGHT_DECAY = 0.02
UNAUGMENTED = 0.25  # final fraction of a prior's epochs, rounded up, without shifted slices


def train_vqvae(
    recipe: Recipe, train: SliceSet, validate: SliceSet, **options
) -> tuple[VQVAE, dict]:
    """Trains the first stage on `train`, validated on `validate`; returns it with its history.

    The reference is trained as courses teach it, at a fixed learning rate on the slices as they
    are. Ours also sees every slice mirrored. `options` are callbacks, checkpoint and verbose, as
    for `fit`.
    """
    schedule, variance = recipe.vqvae_schedule, float(train.images.var())
    if recipe.vqvae.get("reference"):
        model, images = reference_vqvae(variance, recipe.size), train.images
        rate = schedule.learning_rate
    else:
        model = improved_vqvae(variance, recipe.size, seed=recipe.seed, **recipe.vqvae)
        images = with_mirrored(train.images)
        rate = learning_rate(schedule.learning_rate, schedule.steps)
    model.compile(keras.optimizers.Adam(rate))
    batches = Batches.of(images, images, schedule.batch_size, recipe.seed)
    unseen = validate.images, validate.images
    return model, fit(model, batches, schedule.steps, unseen, **options)


def finetune_decoder(
    recipe: Recipe,
    vqvae: VQVAE,
    train: SliceSet,
    validate: SliceSet,
    heads: bool = False,
    **options,
) -> tuple[AdversarialDecoder, dict]:
    """Fine-tunes the decoder of `vqvae`, in place, against a discriminator; codes do not change.

    With `heads`, a `head_decoder` is trained instead. Returns the trainer, which holds decoder and
    discriminator, and its history. `options` are as for `train_vqvae`.
    """

    def encode(images):
        codes = vqvae.encode(images)
        return with_neighbours(codes) if heads else codes

    schedule, images = recipe.decoder_schedule, with_mirrored(train.images)
    discriminator = patch_discriminator(recipe.size, vqvae.region)
    decoder = head_decoder(vqvae.decoder) if heads else None
    model = AdversarialDecoder(vqvae, discriminator, decoder)
    rate = learning_rate(schedule.learning_rate, schedule.steps)
    model.compile(keras.optimizers.Adam(rate, beta_1=0.5))  # Radford et al. 2015 (DCGAN)
    batches = Batches.of(encode(images), images, schedule.batch_size, recipe.seed)
    unseen = encode(validate.images), validate.images
    return model, fit(model, batches, schedule.steps, unseen, **options)


def train_prior(
    recipe: Recipe, vqvae: VQVAE, train: SliceSet, validate: SliceSet, **options
) -> tuple[Prior, dict]:
    """Trains the second stage on the codes of `train`; returns it with its history.

    Ours also learns the codes of mirrored and shifted slices. Shifted heads keep it from
    memorising its few subjects. But all heads are aligned to an atlas, and generated heads should
    be too, so the final epochs (`UNAUGMENTED`) leave shifted slices out. The moving average of its
    weights is validated and saved (Polyak and Juditsky 1992). `options` are as for `train_vqvae`.
    """

    def views(images):
        mirrored = [with_mirrored(images) if recipe.views > 1 else images]
        seeds = ((recipe.seed, view) for view in range(2, recipe.views))
        shifted = (shifted_and_mirrored(images, seed) for seed in seeds)
        return np.concatenate([vqvae.encode(view) for view in (*mirrored, *shifted)])

    inputs = views(train.images), np.tile(train.slices, recipe.views)
    unseen = vqvae.encode(validate.images)
    unseen_inputs = unseen, validate.slices
    if "below_dropout" in recipe.prior:
        below, number = train.below(), np.unique(train.subjects, return_inverse=True)[1]
        # A view depends on the position in the array, so both neighbours move alike.
        hidden = np.tile(below < 0, recipe.views)[:, None, None]
        measures = head_measures(train.images, train.subjects)
        bins = quantile_bins(measures, recipe.prior.get("head_bins", 1))[number]
        neighbours = np.where(hidden, UNKNOWN, views(train.images[below]))
        inputs += neighbours, np.tile(bins, (recipe.views, 1))
        unknown = np.full((len(unseen), HEAD_CONDITIONS), UNKNOWN)
        unseen_inputs += validate.codes_below(unseen), unknown
    data = (*inputs, min(recipe.views, 2) * len(train)), (unseen_inputs, unseen)
    return fit_prior(recipe, vqvae.num_embeddings, *data, **options)


def fit_prior(
    recipe: Recipe,
    num_embeddings: int,
    training: tuple,
    validation: tuple,
    callbacks=(),
    shard: tuple[int, int] = (0, 1),
    **options,
) -> tuple[Prior, dict]:
    """`train_prior` on code maps; returns the prior with its history.

    Args:
        training: the inputs of all views as `Prior.inputs_for` has them, and how many maps, the
            first ones, are not shifted.
        validation: (inputs, codes).
        shard: as for `Batches`.
        options: checkpoint and verbose, as for `fit`.
    """
    *inputs, unshifted = training
    codes, schedule = inputs[0], recipe.prior_schedule
    epochs = epochs_for(schedule.steps, len(codes), schedule.batch_size)
    # A training of one epoch shows the shifted slices, too.
    unaugmented = max(1, epochs - math.ceil(UNAUGMENTED * epochs)), unshifted
    order = {"seed": recipe.seed, "shard": shard, "unaugmented": unaugmented}
    batches = Batches.of(tuple(inputs), codes, schedule.batch_size, **order)
    model, averaging = _compiled_prior(recipe, num_embeddings, codes.shape[1:])
    if model.head_bins:
        counts = np.zeros(model.head_counts.shape)
        np.add.at(counts, tuple(inputs[3].T), 1)
        model.head_counts.assign(counts)
    callbacks = [*averaging, *callbacks]
    return model, fit(model, batches, schedule.steps, validation, callbacks, **options)


def _compiled_prior(recipe: Recipe, num_embeddings: int, grid: tuple[int, int]) -> tuple:
    """The compiled prior of a recipe, and the callbacks that its weight averaging needs."""
    schedule, averaging = recipe.prior_schedule, []
    if recipe.prior.get("reference"):
        model = MaskedPixelCNN(num_embeddings, grid)
        optimizer = keras.optimizers.Adam(schedule.learning_rate)
    else:
        model = GatedPixelCNN(num_embeddings, grid, **recipe.prior)
        optimizer = keras.optimizers.AdamW(
            learning_rate(schedule.learning_rate, schedule.steps),
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
    )
    return model, averaging


def fit(
    model: keras.Model,
    batches: Batches,
    steps: int,
    validation_data: tuple | None = None,
    callbacks=(),
    checkpoint: Checkpoint | None = None,
    verbose=0,
) -> dict[str, list[float]]:
    """Keras's `fit`, from the state of the checkpoint to the end of a schedule.

    Args:
        model: compiled.
        batches: of the training data; `fit` gets a new order of them every epoch.
        steps: in all, rounded to whole epochs.
        checkpoint: where to resume from, and to store the state of every epoch; None for neither.

    Returns:
        The curves, {name: [one value an epoch]}.

    Raises:
        KeyboardInterrupt: when interrupted; with a checkpoint, the message says how to resume.
        ValueError: when the checkpoint belongs to another model, or the loss is no number any more.
    """

    def refuse_divergence(epoch, logs):
        if np.isfinite(logs["loss"]):
            return
        rate = float(model.optimizer.learning_rate)
        remove = f"remove {checkpoint.latest.parent} and " if checkpoint else ""
        raise ValueError(
            f"The loss became {logs['loss']} in epoch {epoch + 1} at a learning rate of "
            f"{rate:.3g}; {remove}train with a lower one."
        )

    each_epoch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: batches.shuffle(epoch), on_epoch_end=refuse_divergence
    )
    try:
        history = model.fit(
            batches,
            initial_epoch=checkpoint.restore(model) if checkpoint else 0,
            epochs=epochs_for(steps, batches.count, batches.size),
            shuffle=False,  # `Batches` does that
            validation_data=validation_data,
            validation_batch_size=batches.size if validation_data else None,
            callbacks=[each_epoch, *callbacks, *([checkpoint] if checkpoint else [])],
            verbose=verbose,
        )
    except KeyboardInterrupt:
        if not checkpoint:
            raise
        raise KeyboardInterrupt(
            f"Interrupted; {checkpoint.latest.parent} holds the state before the unfinished epoch, "
            "and the same call or command resumes from there."
        ) from None
    return checkpoint.history if checkpoint else history.history


def learning_rate(peak: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """A short linear warm-up to `peak`, then a cosine decay to a fiftieth of it."""
    warm_up = min(100, steps // 10)
    return keras.optimizers.schedules.CosineDecay(
        peak / 10, steps - warm_up, alpha=0.02, warmup_target=peak, warmup_steps=warm_up
    )


def epochs_for(steps: int, count: int, batch_size: int) -> int:
    """The number of whole epochs nearest to a number of steps, at least one."""
    refuse_batch(batch_size, count)
    return max(1, round(steps / (count // batch_size)))


def refuse_batch(size: int, count: int, workers: int = 1) -> None:
    """Raises ValueError for a batch that is never full, or that workers cannot share evenly."""
    if size % workers or not 0 < size <= count:
        raise ValueError(
            f"A batch of {size} out of {count} for {workers} worker(s): choose a multiple of "
            f"{workers} up to {count}."
        )


class Batches(keras.utils.PyDataset):
    """Batches whose order depends only on the seed and the epoch.

    Keras shuffles with a generator whose state cannot be stored, so a resumed training would see
    other batches. Examples that do not fill a batch are left out until the next epoch.

    Args:
        read: from indices, int (n,), to what `fit` needs, (x, y).
        count: number of examples.
        size: examples in a batch, over all workers.
        seed: of the order.
        shard: (rank, workers): reads only this worker's part of each batch; all parts together
            are what one worker would read.
        unaugmented: (epoch, first): from that epoch on, only the `first` examples are read, over
            and over until the epoch is as long as the others; None for all of them always.
        threads: `workers` and so on, as for `keras.utils.PyDataset`.

    Raises:
        ValueError: as `refuse_batch` does.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], tuple],
        count: int,
        size: int,
        seed: int = 0,
        shard: tuple[int, int] = (0, 1),
        unaugmented: tuple[int, int] | None = None,
        **threads,
    ):
        super().__init__(**threads)
        self.rank, self.shards = shard
        refuse_batch(size, count, self.shards)
        self.read, self.count, self.size, self.seed = read, count, size, seed
        self.unaugmented = unaugmented
        self.shuffle(0)

    @classmethod
    def of(cls, inputs, targets, size: int, seed: int = 0, **options) -> Batches:
        """Batches of arrays, or of tuples of arrays, of one length; `options` as for `Batches`."""

        def rows(chosen):
            return keras.tree.map_structure(lambda array: array[chosen], (inputs, targets))

        return cls(rows, len(targets), size, seed, **options)

    def shuffle(self, epoch: int) -> None:
        """Takes the order of that epoch."""
        examples = np.arange(self.count)
        if self.unaugmented and epoch >= self.unaugmented[0]:
            examples %= self.unaugmented[1]
        self.order = np.random.default_rng((self.seed, epoch)).permutation(examples)

    def __len__(self) -> int:
        return self.count // self.size

    def __getitem__(self, number: int) -> tuple:
        whole = self.order[number * self.size : (number + 1) * self.size]
        return self.read(np.array_split(whole, self.shards)[self.rank])


class EpochLines(keras.callbacks.Callback):
    """Prints one line an epoch: its number, the values of the logs of these names, seconds."""

    def __init__(self, names: tuple[str, ...]):
        super().__init__()
        self.names = names

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        total, seconds = self.params["epochs"], time.perf_counter() - self.started
        logs["seconds"] = seconds  # for the callbacks after this one
        values = "  ".join(f"{name} {logs[name]:.3f}" for name in self.names if name in logs)
        print(f"epoch {epoch + 1:3d}/{total}  {values}  ({seconds:.0f} s)", flush=True)


class Checkpoint(keras.callbacks.Callback):
    """Stores the whole state of a training at the start of every epoch, to resume from there.

    Weights, optimizer, random generators, curves, and the weights of the best epoch so far are one
    file, so that they belong together. Keras's `BackupAndRestore` does not restore all of this:
    after four interruptions, weights differed by 0.017. This must be the last callback, after those
    that exchange weights.

    Args:
        folder: of the file.
        monitor: the epoch with the lowest value of it is the best; None keeps no best one.
    """

    def __init__(self, folder: Path, monitor: str | None = "val_loss"):
        super().__init__()
        self.latest = folder / "latest.npz"
        self.monitor, self.history, self.best = monitor, {}, []

    def restore(self, model: keras.Model) -> int:
        """Brings a compiled model to the last stored state; returns the epoch to train.

        Raises ValueError when the stored state is damaged or of another model.
        """
        model.optimizer.build(model.trainable_variables)
        for temporary in self.latest.parent.glob(f".*-{self.latest.name}"):
            temporary.unlink(missing_ok=True)  # half written when a training was killed
        if not self.latest.exists():
            return 0
        advice = f"remove {self.latest.parent} to train again"
        try:
            with np.load(self.latest, allow_pickle=False) as content:
                parts = dict(content)
            facts = json.loads(str(parts.pop("facts")))
        except Exception as error:  # a damaged file makes NumPy raise almost anything
            raise ValueError(f"{self.latest} cannot be read ({error}); {advice}.") from None
        variables = [*model.variables, *model.optimizer.variables]
        values = [value for name, value in parts.items() if name.startswith("state")]
        if [value.shape for value in values] != [tuple(part.shape) for part in variables]:
            raise ValueError(f"{self.latest} holds the state of another model; {advice}.")
        for variable, value in zip(variables, values):
            variable.assign(value)
        self.history = facts["history"]
        self.best = [parts[f"best {number}"] for number in range(facts["best"])]
        return facts["epoch"]

    def on_epoch_begin(self, epoch, logs=None):
        state = [*self.model.variables, *self.model.optimizer.variables]
        parts = {f"state {number}": value.numpy() for number, value in enumerate(state)}
        parts |= {f"best {number}": value for number, value in enumerate(self.best)}
        facts = {"epoch": epoch, "history": self.history, "best": len(self.best)}
        parts["facts"] = np.array(json.dumps(facts))
        self.latest.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.latest) as temporary:
            with open(temporary, "wb") as file:
                np.savez(file, allow_pickle=False, **parts)

    def on_epoch_end(self, epoch, logs=None):
        # Compared with the curves, so that a resumed training decides as an uninterrupted one.
        best = min(filter(np.isfinite, self.history.get(self.monitor, [])), default=np.inf)
        for name, value in {"epoch": epoch, **logs}.items():
            self.history.setdefault(name, []).append(float(f"{float(value):.5g}"))
        if self.monitor and -np.inf < float(logs[self.monitor]) < best:
            self.best = self.model.get_weights()

    def take_best(self) -> None:
        """Gives the model the weights of its best epoch; ValueError where there is none."""
        if not self.monitor:
            return
        if not self.best:
            raise ValueError(
                f"{self.monitor} was never a number in {self.latest.parent}, so there is no best "
                "epoch; remove that folder and train with a lower learning rate."
            )
        self.model.set_weights(self.best)


def verify_run_signature(
    work: Path,
    recipe: Recipe,
    train: SliceSet | str,
    validate: SliceSet | str,
    start: keras.Model | None = None,
) -> Path:
    """Writes into a folder what its checkpoints depend on, or compares; returns the folder.

    Args:
        work: the folder, made if it is missing.
        recipe, train, validate: of the training; slices, or a fingerprint of theirs.
        start: the finished model that it starts from, or whose codes it learns.

    Raises:
        ValueError: when the folder holds the checkpoints of another training.
    """
    weights = b"".join(value.tobytes() for value in start.get_weights()) if start else b""
    signature = {
        "recipe": asdict(recipe),
        "train": train if isinstance(train, str) else fingerprint(train),
        "validate": validate if isinstance(validate, str) else fingerprint(validate),
        "start": hashlib.sha256(weights).hexdigest(),
    }
    file, signature = work / "run_signature.json", json.loads(json.dumps(signature))
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        write_json(file, signature, indent=2)
    elif read_json(file) != signature:
        raise ValueError(
            f"{work} holds a training with another recipe or other slices; remove that folder to "
            "train again, or restore recipe and slices to resume."
        )
    return work


@contextmanager
def file_lock(folder: Path, activity: str) -> Iterator[None]:
    """Lets one process at a time use a folder, for example while "training 'cohort'".

    The operating system releases the lock when the process ends. Another process gets a
    BlockingIOError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / "in-use.lock", timeout=0):
            yield
    except filelock.Timeout:
        raise BlockingIOError(
            f"Another process is {activity} in {folder}; wait until it has ended, or stop it."
        ) from None
