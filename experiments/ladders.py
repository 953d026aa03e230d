"""What each idea is worth: measured comparisons with the plain recipes, each one command.

`ablation` climbs from the reference VQ-VAE to ours, one change a rung, every rung trained anew
for the same time on the same slices. `rates` trains our design at several rates and sets it
beside JPEG, JPEG 2000 and WebP. `race` asks how long ours takes to reach what the reference ends
with. `decoders` trains a finished decoder on in three ways. `temperature` draws at several
temperatures and judges each set. All these are scored on *validation* subjects: they are for
choosing. `priors` gives the plain prior the codes and the time that a shipped prior had,
`tokenizers` gives our prior the codes of other tokenizers; both score on test subjects.
`sampling` times the cached sampler, NumPy's and the compiled one, against the usual loop, `sizes`
what larger slices cost, and `bench` both stages against the plain recipes. Those with several
rungs keep every result at once and go on where they were interrupted.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from oasis_helpers import files, metrics, set_metrics, recipes, distributed, pretrained, training
from experiments.compiled_sampler import CompiledSampler
from oasis_helpers.data import (
    REPOSITORY,
    SLICES_PER_SUBJECT,
    SliceSet,
    load_slices,
    with_mirrored,
)
from oasis_helpers.layers import (
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
)
from oasis_helpers.pixelcnn import GatedPixelCNN, MaskedPixelCNN, Prior
from oasis_helpers.sampling import inverse_cdf, sample_codes
from oasis_helpers.adversarial import AdversarialDecoder, patch_discriminator
from oasis_helpers.vqvae import (
    VQVAE,
    improved_vqvae,
    patch_networks,
    reference_vqvae,
    strided_decoder,
    strided_encoder,
)

KEPT = REPOSITORY / "data" / "ladders"
BUDGET = 60.0  # seconds of training for each rung
TIMED_STEPS = 12  # of a throw-away copy, to turn seconds into steps


# ----------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Rung:
    """One way to train the first stage.

    Attributes:
        name: what this rung changes.
        build: makes the model from the variance of the training images.
        after: the rung that it changes one thing of.
        peak, decays, batch: the learning rate (after a warm-up and with a cosine decay, or
            fixed) and the slices in a batch.
        mirrored: whether left-right mirrored slices are trained on, too.
        seed: of weights, batches and everything else random.
    """

    name: str
    build: Callable[[float], VQVAE]
    after: str = ""
    peak: float = 1e-3
    decays: bool = False
    batch: int = 128
    mirrored: bool = False
    seed: int = 0

    def optimizer(self, steps: int) -> keras.optimizers.Optimizer:
        """Adam at the rung's rate; where that decays, over `steps`."""
        rate = training.learning_rate(self.peak, steps) if self.decays else self.peak
        return keras.optimizers.Adam(rate)


class StopAfter(keras.callbacks.Callback):
    """Ends `fit` after so many steps or seconds; `ended` holds the second each step ended at."""

    def __init__(self, steps: float = np.inf, seconds: float = np.inf):
        super().__init__()
        self.steps, self.seconds, self.ended = steps, seconds, []

    def on_train_begin(self, logs=None):
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append(time.perf_counter() - self.started)
        if len(self.ended) >= self.steps or self.ended[-1] >= self.seconds:
            self.model.stop_training = True


def train_rung(rung: Rung, train: SliceSet, steps: int) -> VQVAE:
    """Trains one rung for a number of steps."""
    keras.utils.set_random_seed(rung.seed)
    model = rung.build(float(train.images.var()))
    images = with_mirrored(train.images) if rung.mirrored else train.images
    model.compile(rung.optimizer(steps))
    epochs = -(-steps * rung.batch // len(images))
    model.fit(images, images, rung.batch, epochs, verbose=0, callbacks=[StopAfter(steps)])
    return model


def step_seconds(rung: Rung, train: SliceSet) -> float:
    """Seconds that a step of a rung takes on this machine."""
    model, stop = rung.build(1.0), StopAfter(TIMED_STEPS)
    model.compile(rung.optimizer(TIMED_STEPS))
    images = np.resize(train.images, (TIMED_STEPS * rung.batch, *train.images.shape[1:]))
    model.fit(images, images, rung.batch, verbose=0, callbacks=[stop])
    return float(np.median(np.diff(stop.ended)))  # the first step compiles


class Ledger:
    """Results under their names in a JSON file, each made once and written at once.

    Args:
        file: read where it exists already.
    """

    def __init__(self, file: Path):
        self.file = file
        self.kept = files.read_json(file) if file.is_file() else {"machine": machine_facts()}

    def once(self, part: str, name: str, job: Callable[[], dict]) -> dict:
        """The result of that name in that part of the file; made by `job` if it isn't there."""
        results = self.kept.setdefault(part, {})
        if name not in results:
            results[name] = job()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self.file, self.kept, indent=1)
        return results[name]

    def plan(self, rungs: list[Rung], train: SliceSet, seconds: float, steps: int | None) -> dict:
        """{rung's name: {"steps", "seconds"}}: so many steps as take so many seconds.

        All rungs are timed before the first is trained, on a machine that should have nothing
        else to do; after that only the steps count. `steps` fixes them for every rung.
        """

        def timed(rung: Rung) -> dict:
            pace = step_seconds(rung, train)
            count = steps or max(1, round(seconds / pace))
            return {"steps": count, "seconds": round(count * pace, 1)}

        return {rung.name: self.once("plan", rung.name, lambda r=rung: timed(r)) for rung in rungs}


def machine_facts() -> dict:
    """What the timings were taken on."""
    return {
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
    }


# ----------------------------------------------------------------------------------- ablation


def _plain(bounded=True, ssim_weight=0.0, **quantiser) -> Callable[[float], VQVAE]:
    """The reference's networks with another output, loss or quantiser."""

    def build(variance: float) -> VQVAE:
        kind = EMAVectorQuantizer if quantiser else VectorQuantizer
        decoder = strided_decoder(80, bounded=bounded)
        return VQVAE(
            strided_encoder(80), kind(128, 16, **quantiser), decoder, variance, ssim_weight
        )

    return build


def _ours(quantizer=None, ssim_weight=3.0, **networks) -> Callable[[float], VQVAE]:
    """Our networks with another quantiser, loss or shape."""

    def build(variance: float) -> VQVAE:
        chosen = quantizer() if quantizer else EMAVectorQuantizer(128, 16)
        encoder, decoder = patch_networks(80, chosen.embedding_dim, **networks)
        field = networks.get("field")
        return VQVAE(encoder, chosen, decoder, variance, ssim_weight, field)

    return build


IN_FIELD = recipes.WHOLE_FRAME
OURS = Rung("mirrored slices, too", _ours(**IN_FIELD), "", 4e-3, True, 32, True)


def _ablation_rungs() -> list[Rung]:
    uniform = {"start_from_data": False, "restart_below": 0}
    climb = [
        Rung("reference recipe", reference_vqvae),
        Rung("bounded output", _plain()),
        Rung("EMA codebook", _plain(**uniform)),
        Rung("codebook starts from data", _plain(restart_below=0)),
        Rung("dead codes restart", _plain(restart_below=0.1)),
        Rung("1 - SSIM in the loss", _plain(ssim_weight=3.0, restart_below=0.1)),
        Rung("patches, residual blocks, sub-pixel output", _ours()),
        Rung("warm-up, decay, small batches", _ours(), "", 4e-3, True, 32),
        Rung("cells where the brain is", _ours(**IN_FIELD), "", 4e-3, True, 32),
        OURS,
    ]
    climb = [
        replace(rung, after=below.name if below else "")
        for below, rung in zip([None, *climb], climb)
    ]
    others = {
        "weight of 1 - SSIM: 0": _ours(ssim_weight=0.0, **IN_FIELD),
        "weight of 1 - SSIM: 1": _ours(ssim_weight=1.0, **IN_FIELD),
        "weight of 1 - SSIM: 10": _ours(ssim_weight=10.0, **IN_FIELD),
        "D = 4": _ours(lambda: EMAVectorQuantizer(128, 4), **IN_FIELD),
        "rotation trick": _ours(
            lambda: EMAVectorQuantizer(128, 16, gradient="rotation"), **IN_FIELD
        ),
        "FSQ, levels 8 x 4 x 4": _ours(lambda: FiniteScalarQuantizer((8, 4, 4)), **IN_FIELD),
        "residual codes, 16 x 8": _ours(lambda: ResidualQuantizer((16, 8), 16), **IN_FIELD),
    }
    seeds = [replace(OURS, name=f"seed {seed}", after=OURS.name, seed=seed) for seed in (1, 2)]
    return [
        *climb,
        *(replace(OURS, name=name, build=build, after=OURS.name) for name, build in others.items()),
        *seeds,
    ]


ABLATION = _ablation_rungs()


def ablation(root: str | Path, file: Path, seconds: float = BUDGET, steps: int | None = None):
    """Trains and scores every rung; yields the result of each.

    Args:
        root: of the slices.
        file: the JSON file of results; rungs found there aren't trained again.
        seconds: of training for each rung.
        steps: fixes the number of steps instead.

    Yields:
        {"name", "after", "batch", "steps", "seconds", "scores": as `reconstruction_table`}.
    """
    train, validate = (load_slices(root, split) for split in ("train", "validate"))
    ledger = Ledger(file)
    plan = ledger.plan(ABLATION, train, seconds, steps)

    def scored(rung: Rung) -> dict:
        model = train_rung(rung, train, plan[rung.name]["steps"])
        facts = {"name": rung.name, "after": rung.after, "batch": rung.batch, **plan[rung.name]}
        return {**facts, "scores": metrics.reconstruction_table(model, validate)}

    for rung in ABLATION:
        yield ledger.once("rungs", rung.name, lambda rung=rung: scored(rung))


# -------------------------------------------------------------------------------------- rates


def _rate_rungs() -> list[Rung]:
    grids = {
        "10 x 10": (IN_FIELD, (32, 128, 512)),
        "20 x 20": (recipes.FINE_GRID, (16, 512)),
    }
    return [
        replace(
            OURS,
            name=f"{grid}, K = {k}",
            build=lambda variance, shape=shape, k=k: improved_vqvae(
                variance, num_embeddings=k, **shape
            ),
        )
        for grid, (shape, ks) in grids.items()
        for k in ks
    ]


RATES = _rate_rungs()
CODECS = {
    "JPEG": ("JPEG", [{"quality": q} for q in (1, 3, 6, 10, 20, 35, 50)]),
    "WebP": ("WEBP", [{"quality": q, "method": 6} for q in (0, 5, 15, 30, 50, 70)]),
    "JPEG 2000": (
        "JPEG2000",
        [
            {"quality_mode": "rates", "quality_layers": [r], "irreversible": True}
            for r in (110, 80, 50, 30, 20, 14)
        ],
    ),
}


def rates(root: str | Path, file: Path, seconds: float = BUDGET, steps: int | None = None):
    """Trains our design at several rates and measures three codecs; yields each result.

    A codec gets the 32 slices of a subject as one mosaic, so that its header, longer than all of
    our bits for one slice, is shared by 32. Arguments as for `ablation`.

    Yields:
        {"name", "family", "bits", "ssim", "brain_ssim", "psnr_db"}, and for ours "steps".
    """
    train, validate = (load_slices(root, split) for split in ("train", "validate"))
    ledger = Ledger(file)
    plan = ledger.plan(RATES, train, seconds, steps)

    def ours(rung: Rung) -> dict:
        model = train_rung(rung, train, plan[rung.name]["steps"])
        decoded = model.decode(model.encode(validate.images))
        facts = {"name": rung.name, "family": f"ours, {rung.name.split(',')[0]}"}
        return {
            **facts,
            **plan[rung.name],
            **_scores(validate.images, decoded, model.bits_per_slice),
        }

    def codec(family: str, kind: str, options: dict) -> dict:
        decoded, bits = through_codec(validate, kind, **options)
        facts = {"name": f"{family} {options}", "family": family}
        return facts | _scores(validate.images, decoded, bits)

    for rung in RATES:
        yield ledger.once("rates", rung.name, lambda rung=rung: ours(rung))
    for family, (kind, settings) in CODECS.items():
        for options in settings:
            how = (family, kind, options)
            yield ledger.once("rates", f"{family} {options}", lambda how=how: codec(*how))


def _scores(originals: np.ndarray, decoded: np.ndarray, bits: float) -> dict:
    whole, brain = metrics.ssim_scores(originals, decoded)
    return {
        "bits": round(bits, 1),
        "ssim": round(float(whole.mean()), 4),
        "brain_ssim": round(float(np.nanmean(brain)), 4),
        "psnr_db": round(float(metrics.psnr(originals, decoded).mean()), 2),
    }


def through_codec(slices: SliceSet, kind: str, **options) -> tuple[np.ndarray, float]:
    """A split after a codec of Pillow's, and the bits it took for each slice.

    Returns:
        float32 (N, size, size, 1) in [0, 1], and the mean number of bits, headers included.
    """
    decoded, total = np.empty_like(slices.images), 0
    size = slices.images.shape[1]
    for subject in np.unique(slices.subjects):
        mine = np.flatnonzero(slices.subjects == subject)
        mosaic = np.concatenate(slices.images[mine, :, :, 0])  # one slice below the other
        file = io.BytesIO()
        Image.fromarray(np.rint(mosaic * 255).astype("uint8")).save(file, kind, **options)
        total += 8 * file.getbuffer().nbytes
        back = np.asarray(Image.open(file).convert("L"), "float32") / 255
        decoded[mine, :, :, 0] = back.reshape(len(mine), size, size)
    return decoded, total / len(slices)


# --------------------------------------------------------------------------------------- race


class Watch(keras.callbacks.Callback):
    """Brain SSIM of some slices every few steps, with the seconds of training until then.

    Args:
        slices: to be encoded and decoded; the clock stands still meanwhile.
        every: so many steps.
        goal: ends the training once it is reached.
    """

    def __init__(self, slices: SliceSet, every: int, goal: float = 1.0):
        super().__init__()
        self.slices, self.every, self.goal = slices, every, goal
        self.curve, self.steps, self.trained = [], 0, 0.0

    def on_train_batch_begin(self, batch, logs=None):
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.trained += time.perf_counter() - self.started
        self.steps += 1
        if self.steps % self.every:
            return
        decoded = self.model.decode(self.model.encode(self.slices.images))
        score = float(np.nanmean(metrics.ssim_scores(self.slices.images, decoded)[1]))
        self.curve.append([round(self.trained, 1), round(score, 4)])
        self.model.stop_training = score >= self.goal


def race(root: str | Path, epochs: int = 20) -> dict:
    """The reference for `epochs` epochs, then ours until it is as good, in one run.

    Args:
        root: of the slices.
        epochs: of the reference; ours gets at most as many passes over the slices.

    Returns:
        {"machine", "reference", "ours": [[seconds of training, validation brain SSIM], ...],
        "times_faster"}: the seconds of the reference over those of ours, None where ours didn't
        get there.
    """
    train, validate = (load_slices(root, split) for split in ("train", "validate"))
    rungs, curves, goal = {"reference": ABLATION[0], "ours": OURS}, {}, 1.0
    for name, rung in rungs.items():
        keras.utils.set_random_seed(0)
        model = rung.build(float(train.images.var()))
        batches = -(-len(train) // rung.batch)
        model.compile(rung.optimizer(epochs * batches))
        watch = Watch(validate, every=-(-len(train) // rungs["reference"].batch), goal=goal)
        images = train.images
        model.fit(images, images, rung.batch, epochs, verbose=0, callbacks=[watch])
        curves[name] = watch.curve
        goal = watch.curve[-1][1]
    (slow, target), (fast, reached) = curves["reference"][-1], curves["ours"][-1]
    times = round(slow / fast, 1) if reached >= target else None
    return {"machine": machine_facts(), **curves, "times_faster": times}


# ----------------------------------------------------------------------------------- decoders

DECODERS = {
    "faithful loss": {"adversarial_weight": 0.0, "feature_weight": 0.0},
    "fixed features": {"adversarial_weight": 0.0, "feature_weight": 1.0},
    "critic": {},
}
DECODER_STEPS = 400


def decoders(root: str | Path, file: Path, name: str, steps: int = DECODER_STEPS):
    """Trains the decoder of faithful weights on, in three ways from one start; yields each.

    "faithful loss" goes on as before; "fixed features" adds the distance between the features of
    original and decoded in a network that is not trained along, the one that judges levels and
    people (a perceptual loss, Johnson et al. 2016, arXiv 1603.08155); "critic" is
    `AdversarialDecoder` as it is. Codes are the same for all, and so is the number of steps.

    Args:
        root: of the slices that the weights belong to.
        file: the JSON file of results.
        name: of the weights with the faithful decoder.
        steps: of training for each.

    Yields:
        {"name", "steps", "seconds", "scores": as `metrics.reconstruction_table`} on validation
        subjects.
    """
    models = pretrained.load_pretrained(name)
    train, validate = (models.load_slices(root, split) for split in ("train", "validate"))
    images, ledger = with_mirrored(train.images), Ledger(file)
    codes = models.vqvae.encode(images)
    judge = pretrained.load_feature_networks(models.scores["data"], train)["trained"]

    def scored(kind: str) -> dict:
        keras.utils.set_random_seed(0)
        vqvae = pretrained.load_pretrained(name).vqvae
        size, field = images.shape[1], vqvae.region
        critic = fixed_critic(judge) if kind == "fixed features" else patch_discriminator(size, field)
        model, stop = AdversarialDecoder(vqvae, critic, **DECODERS[kind]), StopAfter(steps)
        model.compile(keras.optimizers.Adam(training.learning_rate(1e-3, steps), beta_1=0.5))
        epochs = -(-steps * 32 // len(images))
        model.fit(codes, images, 32, epochs, verbose=0, callbacks=[stop])
        facts = {"name": kind, "steps": steps, "seconds": round(stop.ended[-1])}
        return facts | {"scores": metrics.reconstruction_table(vqvae, validate)}

    for kind in DECODERS:
        yield ledger.once("decoders", kind, lambda kind=kind: scored(kind))


def fixed_critic(network: keras.Model) -> keras.Model:
    """The first three convolutions of a feature network, in the form of a critic that never learns.

    Its score means nothing; it is there because a critic has one.
    """
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    features = [layer.output for layer in convolutions[:3]]
    score = keras.ops.mean(features[-1], axis=-1, keepdims=True)
    critic = keras.Model(network.input, [*features, score])
    critic.trainable = False
    return critic


# ------------------------------------------------------------------------------------- priors


PATIENCE = 15  # epochs without a better one after which the plain prior has had its chance


def priors(root: str | Path, name: str, seconds: float | None = None) -> dict:
    """The plain prior on the codes of shipped weights, trained for as long as the shipped prior.

    It keeps the epoch that is best on validation subjects, as the shipped one did, and ends
    early only when many epochs have brought nothing better.

    Args:
        root: of the slices that the weights belong to.
        name: of the weights.
        seconds: of training, in place of what the shipped prior took.

    Returns:
        {"weights", "seconds" that it might train, "epochs" that it trained, "best_epoch",
        "reference", "ours"}, the last two as `metrics.prior_table` on test subjects, and
        "bits_saved", the share by which ours needs fewer bits per code.
    """
    models = pretrained.load_pretrained(name)
    splits = {split: models.load_slices(root, split) for split in ("train", "validate", "test")}
    codes = {split: models.vqvae.encode(part.images) for split, part in splits.items()}
    seconds = seconds or sum(models.history["prior"]["seconds"])
    keras.utils.set_random_seed(0)
    plain = MaskedPixelCNN(models.vqvae.num_embeddings, models.prior.grid)
    plain.compile(
        keras.optimizers.Adam(recipes.RECIPES["oasis1-reference"].prior_schedule.learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    best = keras.callbacks.EarlyStopping(patience=PATIENCE, restore_best_weights=True)
    inputs = {split: (codes[split], part.slices) for split, part in splits.items()}
    history = plain.fit(
        inputs["train"],
        codes["train"],
        batch_size=64,
        epochs=10_000,
        validation_data=(inputs["validate"], codes["validate"]),
        callbacks=[StopAfter(seconds=seconds), best],
        verbose=0,
    ).history
    tables = {
        kind: metrics.prior_table(models.vqvae, prior, splits["train"], splits["test"])
        for kind, prior in (("reference", plain), ("ours", models.prior))
    }
    theirs, ours = (tables[kind]["bits_per_code"][0] for kind in ("reference", "ours"))
    facts = {
        "weights": name,
        "seconds": round(seconds),
        "epochs": len(history["loss"]),
        "best_epoch": int(np.argmin(history["val_loss"])) + 1,
    }
    return {**facts, **tables, "bits_saved": round(1 - ours / theirs, 4)}


# --------------------------------------------------------------------------------- tokenizers

TOKENIZERS = ("reference recipe", "dead codes restart", "warm-up, decay, small batches")
TOKENIZER_SLICES = 720 * 128  # trained on, as often as the plain recipe does


def tokenizers(
    root: str | Path,
    file: Path,
    name: str,
    slices: int = TOKENIZER_SLICES,
    recipe: recipes.Recipe = recipes.RECIPES["oasis1-10x10"],
):
    """Trains three tokenizers, and our prior on the codes of each; yields them and shipped ones.

    Rungs of the ablation with 10 x 10 cells of 8 x 8 pixels and K = 128, trained anew on whole
    frames. How much a prior saves hangs on what a tokenizer leaves to be guessed: cells of
    background cost nothing, and the less the others say, the more of it position, level and
    neighbours tell.

    Args:
        root: of the slices.
        file: the JSON file of results; those found there aren't made again.
        name: of shipped weights to set beside them.
        slices: that every tokenizer is trained on, counted as often as they are seen.
        recipe: of the prior, whose best epoch on validation subjects is kept.

    Yields:
        {"name", "brain_cells": the share of cells that hold brain, "scores": as
        `metrics.reconstruction_table`, "prior": as `metrics.prior_table`}, of test subjects.
    """
    splits = {split: load_slices(root, split) for split in ("train", "validate", "test")}
    ledger, rungs = Ledger(file), {rung.name: rung for rung in ABLATION}

    def trained(rung: Rung) -> dict:
        train = splits["train"]
        vqvae = train_rung(rung, train, slices // rung.batch)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = training.Checkpoint(Path(folder))
            prior, _ = training.train_prior(
                recipe, vqvae, train, splits["validate"], checkpoint=checkpoint
            )
            checkpoint.take_best()
        return _stages_table(rung.name, vqvae, prior, train, splits["test"])

    def shipped() -> dict:
        models = pretrained.load_pretrained(name)
        train, test = (models.load_slices(root, split) for split in ("train", "test"))
        return _stages_table(name, models.vqvae, models.prior, train, test)

    for rung in TOKENIZERS:
        yield ledger.once("tokenizers", rung, lambda rung=rung: trained(rungs[rung]))
    yield ledger.once("tokenizers", name, shipped)


def _stages_table(name: str, vqvae: VQVAE, prior: Prior, train: SliceSet, slices: SliceSet) -> dict:
    return {
        "name": name,
        "brain_cells": round(float(vqvae.brain_positions(slices.images).mean()), 4),
        "scores": metrics.reconstruction_table(vqvae, slices),
        "prior": metrics.prior_table(vqvae, prior, train, slices),
    }


# -------------------------------------------------------------------------------- temperature

TEMPERATURES = (0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1)


def temperature(root: str | Path, name: str, people: int | None = None) -> dict:
    """Fidelity and diversity of slices drawn at several temperatures, against validation subjects.

    Args:
        root: of the slices that the weights belong to.
        name: of the weights.
        people: drawings, of one slice at each level; as many as validation subjects by default.

    Returns:
        {"weights", "real": {"pairwise_ssim": [mean, low, high]} of the validation slices,
        "temperatures": {"0.7": `set_metrics.set_table` and "high_frequency_power", ...}}.
    """
    models = pretrained.load_pretrained(name)
    train, validate = (models.load_slices(root, split) for split in ("train", "validate"))
    networks = pretrained.load_feature_networks(models.scores["data"], train)
    people = people or len(np.unique(validate.subjects))
    levels = np.repeat(np.arange(SLICES_PER_SUBJECT), people)
    drawing = np.tile(np.arange(people), SLICES_PER_SUBJECT)
    real = set_metrics.pairwise_ssim(validate.images, validate.slices, validate.subjects)
    interval = [round(value, 4) for value in (real.mean, real.low, real.high)]
    found = {"weights": name, "real": {"pairwise_ssim": interval}, "temperatures": {}}
    for value in TEMPERATURES:
        codes = sample_codes(models.prior, len(levels), levels, temperature=value, seed=1)
        pictures = models.vqvae.decode(codes)
        judged = set_metrics.set_table(networks, validate, pictures, levels, drawing)
        power = set_metrics.high_frequency_power_by_third(pictures, levels, validate)
        found["temperatures"][str(value)] = judged | {"high_frequency_power": power}
    return found


# ----------------------------------------------------------------------------------- sampling

SIDES = (6, 10, 14, 20, 28)  # of the square grids that the cached sampler is timed on


def predict_loop(prior: Prior, slice_index: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """The usual way to sample: one `predict` of the whole grid for every position.

    Args:
        prior: any prior.
        slice_index: int (n,).
        uniform: float (n, cells) in [0, 1), the random draws.

    Returns:
        int32 (n, h, w).
    """
    codes = np.zeros((len(uniform), *prior.grid), "int32")
    for position, (row, column) in enumerate(np.ndindex(*prior.grid)):
        logits = prior.predict((codes, slice_index), verbose=0)[:, row, column]
        codes[:, row, column] = inverse_cdf(logits, uniform[:, position])
    return codes


def sampling(maps: int = 10, sides: tuple[int, ...] = SIDES) -> dict:
    """Seconds to draw maps with the cached sampler, compiled and with the usual loop, in one run.

    All use the same untrained network, of the size of the shipped prior: how long a draw takes
    doesn't depend on what the network has learnt.

    Args:
        maps: drawn at once.
        sides: of the grids; the usual loop is timed on those of 10 and 20 cells a side.

    Returns:
        {"machine", "maps", "grids": [{"side", "cells", "cached", "compiled", "compiling" (once,
        before), "compiled_times_faster" than cached, "compiled_same_codes", "loop",
        "times_faster" (cached than the loop), "same_codes"}, ...], "batch_of_64": seconds at
        20 x 20, "compiled_batch_of_64": {"compiled", ..., as in "grids"}}.
    """
    keras.utils.set_random_seed(0)
    recipe, indices = recipes.RECIPES["oasis1"], np.arange(maps, dtype="int32") % 32
    found = {"machine": machine_facts(), "maps": maps, "grids": []}
    for side in sides:
        prior = GatedPixelCNN(128 if side <= 10 else 256, (side, side), **recipe.prior)
        cached, paces = _sampler_paces(prior, indices)
        grid = {"side": side, "cells": side * side, **paces}
        if side in (10, 20):
            prior.predict((cached, indices), verbose=0)
            uniform = np.random.default_rng(0).random((maps, side * side))
            started = time.perf_counter()
            looped = predict_loop(prior, indices, uniform)
            grid["loop"] = time.perf_counter() - started
            grid["speed_up"] = round(grid["loop"] / grid["cached"])
            grid["same_codes"] = float(np.mean(looped == cached))
        found["grids"].append({key: round(value, 4) for key, value in grid.items()})
        if side == 20:
            _, paces = _sampler_paces(prior, np.full(64, 16, "int32"))
            found["batch_of_64"] = round(paces.pop("cached"), 2)
            found["compiled_batch_of_64"] = {k: round(value, 4) for k, value in paces.items()}
    return found


def _sampler_paces(prior: Prior, indices: np.ndarray, times: int = 5) -> tuple[np.ndarray, dict]:
    """What the cached sampler draws, and the medians of seconds: the two samplers take turns."""
    compiled = CompiledSampler(prior, len(indices))
    sample_codes(prior, 1)  # whatever is done once, isn't timed
    moments = [time.perf_counter()]
    compiled(indices)
    moments.append(time.perf_counter())
    for _ in range(times):
        cached_codes = sample_codes(prior, len(indices), indices)
        moments.append(time.perf_counter())
        compiled_codes = compiled(indices)
        moments.append(time.perf_counter())
    first, *seconds = np.diff(moments)
    medians = [float(np.median(seconds[turn::2])) for turn in (0, 1)]
    return cached_codes, {
        "cached": medians[0],
        "compiled": medians[1],
        "compiling": float(first - medians[1]),
        "compiled_times_faster": round(medians[0] / medians[1], 2),
        "compiled_same_codes": float(np.mean(compiled_codes == cached_codes)),
    }


# -------------------------------------------------------------------------------------- sizes


def sizes(root: str | Path, names: tuple[str, ...] = tuple(distributed.SIZES), steps: int = 5):
    """What both stages cost at every size of `distributed.SIZES`; yields each result.

    Every size is trained for a few steps in a process of its own, so that its memory can be told
    from the others'.

    Args:
        root: of the slices.
        names: in `distributed.SIZES`.
        steps: of each stage.

    Yields:
        as `size_cost`.
    """
    spawning = multiprocessing.get_context("spawn")
    for name in names:
        with ProcessPoolExecutor(1, spawning) as process:
            yield process.submit(size_cost, name, Path(root), steps).result()


def size_cost(name: str, root: Path, steps: int, drawn: int = 4) -> dict:
    """Seconds and memory that one size takes in this process, from training to drawing.

    Args:
        name, steps: as for `sizes`.
        root: of the slices, which are streamed from the disk.
        drawn: slices drawn at once.

    Returns:
        {"name", "size", "cells", "bits" a slice, "weights" and "batch" of both stages, "steps",
        "fit_step" and "prior_step" in seconds, "draw" in seconds a slice, "peak_gb" of memory}.
    """
    recipe, stops = distributed.SIZES[name], (StopAfter(steps), StopAfter(steps))
    with tempfile.TemporaryDirectory() as folder:
        vqvae, prior = distributed.train_together(
            recipe, root, Path(folder), callbacks=tuple([stop] for stop in stops)
        )
    vqvae.decode(sample_codes(prior, drawn, seed=0))  # whatever is done once, isn't timed
    started = time.perf_counter()
    vqvae.decode(sample_codes(prior, drawn, seed=0))
    seconds = time.perf_counter() - started
    paces = [float(np.median(np.diff(stop.ended))) for stop in stops]  # the first step compiles
    return {
        "name": name,
        "size": recipe.size,
        "cells": int(np.prod(vqvae.code_shape)),
        "bits": round(vqvae.bits_per_slice),
        "weights": [vqvae.count_params(), prior.count_params()],
        "batch": [recipe.vqvae_schedule.batch_size, recipe.prior_schedule.batch_size],
        "steps": steps,
        "fit_step": round(paces[0], 4),
        "prior_step": round(paces[1], 4),
        "draw": round(seconds / drawn, 4),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


# -------------------------------------------------------------------------------------- bench

POSITIONS_TIMED = 12  # of the usual sampling loop, all of which cost the same


def keras_example(variance: float, size: int = 80) -> VQVAE:
    """A yardstick after the description of Keras's own VQ-VAE example, not its code.

    Two strided convolutions of 32 and 64 filters, D = 16, K = 128 trained by gradient, mirrored
    transposed convolutions and a linear output: a grid of size / 4.
    """
    strided = {"kernel_size": 3, "strides": 2, "padding": "same", "activation": "relu"}
    encoder = keras.Sequential(
        [
            keras.Input((size, size, 1)),
            *(keras.layers.Conv2D(filters, **strided) for filters in (32, 64)),
            keras.layers.Conv2D(16, 1),
        ]
    )
    decoder = keras.Sequential(
        [
            keras.Input(encoder.output_shape[1:]),
            *(keras.layers.Conv2DTranspose(filters, **strided) for filters in (64, 32)),
            keras.layers.Conv2DTranspose(1, 3, padding="same"),
        ]
    )
    return VQVAE(encoder, VectorQuantizer(128, 16), decoder, variance)


def bench(steps: int = 8, maps: int = 8) -> dict:
    """Seconds of both stages, of ours and of two plain recipes, in one run on blank slices.

    How long a step or a draw takes doesn't depend on what is in the pictures or on what the
    networks have learnt. How good the result is, it doesn't say either: that is for `race`.

    Args:
        steps: timed, of every network.
        maps: drawn at once.

    Returns:
        {"machine", "recipes": {name: {"batch", "fit_step", "images_a_second", "prior_batch",
        "prior_step", "maps_a_second", "draw"}}, "times": {name of a plain recipe: how many times
        as many images, maps and draws a second ours makes}}; times in seconds, "draw" for a map.
    """
    recipe = recipes.RECIPES["oasis1"]
    contenders = {
        "Keras's example": (keras_example(1.0), 128, MaskedPixelCNN, {}, 128),
        "plain recipe": (reference_vqvae(1.0), 128, MaskedPixelCNN, {}, 64),
        "ours": (
            improved_vqvae(1.0, **recipes.RECIPES["oasis1-faithful"].vqvae),
            32,
            GatedPixelCNN,
            recipe.prior,
            recipe.prior_schedule.batch_size,
        ),
    }
    found = {}
    for name, (vqvae, batch, kind, options, prior_batch) in contenders.items():
        images = np.zeros((batch, 80, 80, 1), "float32")
        vqvae.compile(keras.optimizers.Adam())
        fit_step = _pace(vqvae, images, images, batch, steps)
        prior = kind(vqvae.num_embeddings, vqvae.code_shape, **options)
        codes = np.zeros((prior_batch, *prior.grid), "int32")
        prior.compile(
            keras.optimizers.Adam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        indices = np.zeros(prior_batch, "int32")
        prior_step = _pace(prior, (codes, indices), codes, prior_batch, steps)
        found[name] = {
            "batch": batch,
            "fit_step": fit_step,
            "images_a_second": batch / fit_step,
            "prior_batch": prior_batch,
            "prior_step": prior_step,
            "maps_a_second": prior_batch / prior_step,
            "draw": _draw_pace(prior, maps, usual=name != "ours"),
        }
    ours = found["ours"]
    times = {
        name: {
            "images": ours["images_a_second"] / row["images_a_second"],
            "maps": ours["maps_a_second"] / row["maps_a_second"],
            "draws": row["sample"] / ours["sample"],
        }
        for name, row in found.items()
        if name != "ours"
    }
    rounded = ({k: {n: float(f"{v:.3g}") for n, v in r.items()} for k, r in part.items()}
               for part in (found, times))  # fmt: skip
    return dict(zip(("machine", "recipes", "times"), (machine_facts(), *rounded)))


def _pace(model: keras.Model, x, y, batch: int, steps: int) -> float:
    """Seconds of a step of `fit`, on the same batch again and again; the first one compiles."""
    stop = StopAfter()
    model.fit(x, y, batch, epochs=steps + 1, verbose=0, shuffle=False, callbacks=[stop])
    return float(np.median(np.diff(stop.ended)))


def _draw_pace(prior: Prior, maps: int, usual: bool) -> float:
    """Seconds to draw one map: by the cached sampler, or by the usual loop of `predict`."""
    if not usual:
        sample_codes(prior, 1)
        started = time.perf_counter()
        sample_codes(prior, maps, 0)
        return (time.perf_counter() - started) / maps
    inputs = np.zeros((maps, *prior.grid), "int32"), np.zeros(maps, "int32")
    prior.predict(inputs, verbose=0)  # whatever is done once, isn't timed
    started = time.perf_counter()
    for _ in range(POSITIONS_TIMED):
        prior.predict(inputs, verbose=0)
    each = (time.perf_counter() - started) / POSITIONS_TIMED
    return each * prior.grid[0] * prior.grid[1] / maps
