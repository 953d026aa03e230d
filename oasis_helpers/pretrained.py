"""Shipped weights and kept results, the active data set, and the profile.

Weights lie in `data/weights/<name>/`: `vqvae.keras`, `prior.keras`, `head_decoder.keras`,
`history.json` with the training curves, `scores.json` with their scores, `MODEL_CARD.md`. Results
of measured comparisons lie in `data/results/`.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from oasis_helpers import REPOSITORY, metrics, own_folder, set_metrics
from oasis_helpers.convert.synthetic import is_cohort, make_cohort
from oasis_helpers.data import (
    SLICES_PER_SUBJECT,
    SliceSet,
    atomic_write,
    fingerprint,
    load_slices,
    read_json,
    write_json,
)
from oasis_helpers.layers import checked_codes
from oasis_helpers.pixelcnn import Prior
from oasis_helpers.recipes import RECIPES
from oasis_helpers.training import file_lock
from oasis_helpers.vqvae import VQVAE, with_neighbours

WEIGHTS = REPOSITORY / "data" / "weights"
# Of a student. Tests and `make run`, which train too, keep theirs elsewhere.
MY_WEIGHTS = Path(os.environ.get("OASIS_MY_WEIGHTS") or own_folder("my_weights"))
FEATURES = REPOSITORY / "data" / "features"  # feature networks, which score sets of slices
RESULTS = REPOSITORY / "data" / "results"
COHORT = REPOSITORY / "data" / "cohort"
COHORT = COHORT if COHORT.is_dir() else own_folder("data/cohort")
CHECKPOINTS = own_folder("build/train")  # of unfinished trainings
NEEDED = {"train": 12, "validate": 3, "test": 3}  # subjects with which every notebook runs
OTHER_SLICES = (
    "These are not the test slices that the shipped weights were scored on. Some of their subjects "
    "may be training subjects, so scores on them are not results on unseen subjects."
)


def data_root() -> Path:
    """The folder of the active data set: `OASIS_DATA_DIR`, or the synthetic cohort.

    The cohort is made on first use, in a minute or two.

    Raises:
        FileNotFoundError: when `OASIS_DATA_DIR` is not a folder.
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
    """The active data set and its weights: "oasis1" for real slices, else "cohort"."""
    named = os.environ.get("OASIS_DATA_DIR")
    return "oasis1" if named and not is_cohort(named) else "cohort"


def profile() -> str:
    """`OASIS_PROFILE`: "tour" (the default, minutes) or "full" (trains to the end).

    Raises:
        ValueError: for another value.
    """
    named = os.environ.get("OASIS_PROFILE") or "tour"
    if named not in ("tour", "full"):
        raise ValueError(f'OASIS_PROFILE is {named!r}; expected "tour" or "full".')
    return named


@dataclass(frozen=True)
class Pretrained:
    """Finished weights and their scores.

    Attributes:
        vqvae: the first stage.
        prior: the second stage, or None where there is none.
        head_decoder: the decoder of whole heads, or None where there is none.
        scores: the content of `scores.json`.
        history: the recipe and the training curves, {"recipe": {...}, "vqvae": {...},
            "prior": {...}}; a curve is a list with one value an epoch.
    """

    vqvae: VQVAE
    prior: Prior | None
    head_decoder: keras.Model | None
    scores: dict
    history: dict

    def decode_heads(self, codes: np.ndarray) -> np.ndarray:
        """Slices of heads: int (n, 32, h, w) to float32 (n, 32, size, size, 1) in [0, 1].

        Each slice is decoded with the codes of the slices below and above; alone, where these
        weights have no head decoder.
        """
        codes = checked_codes("decode_heads got", codes, self.vqvae.num_embeddings)
        flat, stacks = codes.reshape(-1, *codes.shape[2:]), codes.shape[:2]
        if self.head_decoder:
            flat = with_neighbours(flat, stacks[1])
        images = self.vqvae.decode(flat, head_decoder=self.head_decoder)
        return images.reshape(*stacks, *images.shape[1:])

    def load_slices(self, root: str | Path, split: str) -> SliceSet:
        """The slices of a split in the frame (size and crop) that these weights expect."""
        frame = self.scores["frame"]
        crop = tuple(frame["crop"]) if frame["crop"] else None
        slices = load_slices(root, split, frame["size"], crop, frame["side"])
        subjects, indices = (len(np.unique(x)) for x in (slices.subjects, slices.slices))
        if subjects < NEEDED[split] or indices < SLICES_PER_SUBJECT:
            needed = "{train} / {validate} / {test}".format(**NEEDED)
            warnings.warn(
                f"{root}: fewer than the {needed} subjects (train / validate / test) with "
                f"{SLICES_PER_SUBJECT} slices each that the course needs; notebooks will stop.",
                stacklevel=1,  # one place, so that it is shown once
            )
        if split == "test" and not self.scored_on(slices):
            warnings.warn(OTHER_SLICES, stacklevel=2)
        return slices

    def scored_on(self, slices: SliceSet) -> bool:
        """Whether `scores` hold for these test slices.

        The cohort is the same everywhere but for a rounded grey level, so only real slices are
        compared.
        """
        synthetic = self.scores["data"] == "cohort"
        return synthetic or fingerprint(slices) == self.scores["test_fingerprint"]


def load_pretrained(name: str) -> Pretrained:
    """The weights in `data/weights/<name>/`; "mine" are those in `my_weights/mine/` (`keep`).

    Code that loads many times in one process should call `keras.utils.clear_session()` after each:
    TensorFlow keeps a compiled kernel of 35 kB for every variable that ever existed.

    Raises:
        FileNotFoundError: when there are no weights of that name; the message lists the others.
        ValueError: when a file is damaged or belongs to other weights.
    """
    mine = name.split("-")[0] == "mine"  # mine-1, mine-2 ... are earlier ones
    folder = (MY_WEIGHTS if mine else WEIGHTS) / name
    if not (folder / "vqvae.keras").is_file():
        if mine:
            raise FileNotFoundError(f"{folder} holds no weights of yours; run notebook 03 first.")
        available = sorted(path.parent.name for path in WEIGHTS.glob("*/vqvae.keras"))
        advice = f" `make train NAME={name}` trains them." if name in RECIPES else ""
        if not WEIGHTS.is_dir():
            advice = " The package is outside of its repository; install it with --editable."
        raise FileNotFoundError(
            f"There are no weights named {name!r} in {WEIGHTS}; available: "
            f"{', '.join(available) or 'none yet'}.{advice}"
        )
    scores, history = read_json(folder / "scores.json"), read_json(folder / "history.json")
    stages = load_stages(folder)
    _refuse_other_scores(folder, stages[0], scores, history)
    return Pretrained(*stages, scores, history)


def load_stages(folder: Path) -> list[keras.Model | None]:
    """VQ-VAE, prior and head decoder in a folder of weights, None for a missing one."""
    kinds = {"prior": Prior, "head_decoder": keras.Model}
    files = [(folder / f"{name}.keras", kind) for name, kind in kinds.items()]
    others = [load_model(file, kind) if file.is_file() else None for file, kind in files]
    return [load_model(folder / "vqvae.keras", VQVAE), *others]


def load_model(file: Path, kind: type[keras.Model] = keras.Model) -> keras.Model:
    """A model from a `.keras` file, which cannot run code of its own (Keras's safe mode).

    Args:
        file: what `save_model` wrote.
        kind: the class that it must be of.

    Raises:
        ValueError: when it is damaged, of another version, of another class, or carries code.
    """
    settings = keras.config.floatx(), keras.config.image_data_format()
    if settings != ("float32", "channels_last"):
        raise ValueError(
            "keras.json of another project sets {} and {}; expected float32 and channels_last: set "
            "KERAS_HOME to an empty folder, and start again.".format(*settings)
        )
    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
        fault = "" if isinstance(model, kind) else f"it holds a {type(model).__name__}"
    except Exception as error:  # a damaged file makes Keras raise almost anything
        fault = " ".join(f"{type(error).__name__}: {error}".split())
        fault = fault if len(fault) < 240 else f"{fault[:240]} ..."
    if fault:
        raise ValueError(
            f"{file} cannot be used ({fault}); expected a {kind.__name__} that this version of the "
            "course saved, without code of its own: restore it with git, or train it again."
        )
    return model


def save_model(model: keras.Model, path: Path) -> None:
    """Saves a model as a whole and without its optimizer, in a third of the size."""
    bare = type(model).from_config(model.get_config())
    bare.set_weights(model.get_weights())
    with atomic_write(path) as temporary:
        bare.save(temporary)


def _refuse_other_scores(folder: Path, vqvae: VQVAE, scores: dict, history: dict) -> None:
    """Raises ValueError for scores that were measured with other weights."""
    try:
        bits, size = scores["test"]["bits_per_slice"], scores["frame"]["size"]
        same = size == vqvae.size and bits == round(vqvae.bits_per_slice, 1)
        same &= scores["recipe"] == history["recipe"] and {"crop", "side"} < set(scores["frame"])
        same &= scores["weights"] == stages_digest(folder)
    except (KeyError, TypeError):
        same = False
    if not same:
        shipped = f"`make score NAME={folder.name}` scores them again"
        raise ValueError(
            f"{folder}: scores.json or history.json belongs to other weights than those beside "
            f"it; {shipped if folder.parent == WEIGHTS else 'move that folder and train again'}."
        )


def stages_digest(folder: Path) -> dict[str, str]:
    """{"vqvae": ..., "prior": ...}: SHA-256 of the files of weights in a folder."""
    files = sorted(folder.glob("*.keras"))
    return {file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def keep(stage: str, model: keras.Model, history: dict, slices: SliceSet) -> None:
    """Keeps a model that a student trained in `my_weights/mine/`, with its curves and scores.

    A new VQ-VAE starts a new folder, because a prior belongs to the codes it was trained on. The
    folder that was there is renamed to mine-1, mine-2 ... A printed line says what was done.

    Args:
        stage: "vqvae" or "prior".
        history: the training curves, {name: [one value an epoch]}.
        slices: the test slices, on which the model is scored.

    Raises:
        ValueError: for other arguments, and for a prior of the codes of another VQ-VAE.
        OSError: when no VQ-VAE is kept for a prior, the folder is in use or cannot be written.
    """
    if not isinstance(model, {"vqvae": VQVAE, "prior": Prior}.get(stage, ())):
        raise ValueError(
            f'keep got {stage!r} and a {type(model).__name__}; expected "vqvae" and a VQVAE, or '
            '"prior" and a Prior, of the package.'
        )
    if slices.split != "test":
        raise ValueError(f"keep got slices of {slices.split}; expected the test slices.")
    try:
        with file_lock(MY_WEIGHTS, "keeping weights"):
            _keep(stage, model, history, slices)
    except OSError as error:
        if not error.strerror:  # a sentence already
            raise
        raise type(error)(
            f"{error.filename} cannot be written ({error.strerror}), so your weights are not kept; "
            "allow writing there, or free space, and try again."
        ) from None


def _keep(stage: str, model: keras.Model, curves: dict, slices: SliceSet) -> None:
    mine, unfinished, own = MY_WEIGHTS / "mine", MY_WEIGHTS / "unfinished", None
    try:
        own = load_pretrained("mine")
    except (FileNotFoundError, ValueError):  # nothing, or damaged weights, which are renamed
        if stage == "prior":
            raise
    old, new = (one.get_weights() if one else [] for one in (getattr(own, stage, None), model))
    if len(old) == len(new) and all(map(np.array_equal, old, new)):
        print(f"{MY_WEIGHTS.name}/mine holds these weights already.")
        return
    frame = {"size": slices.images.shape[1], "crop": slices.crop, "side": slices.side}
    history, vqvae = {"recipe": {"data": data_name(), **frame}}, model
    scores = {"data": data_name(), "frame": frame, "test_fingerprint": fingerprint(slices)}
    if stage == "prior":
        history, vqvae = own.history, own.vqvae
        codes = vqvae.encode(slices.images)
        bits = metrics.bits_per_code(model.log_prob(codes, slices.slices), codes[0].size)
        if bits.mean() > np.log2(vqvae.num_embeddings) + 0.5:  # an untrained one needs log2 K
            raise ValueError(
                f"This prior needs {bits.mean():.1f} bits per code on the codes of {mine}, more "
                'than a guess: train it on them, with WEIGHTS = "mine" in notebook 05.'
            )
        interval = metrics.subject_interval(bits, slices.subjects)
        scores["prior_test"] = {"bits_per_code": interval.rounded()}
    history[stage] = {name: [float(value) for value in curve] for name, curve in curves.items()}
    scores |= {"recipe": history["recipe"], "test": metrics.reconstruction_table(vqvae, slices)}
    shutil.rmtree(unfinished, ignore_errors=True)
    if stage == "prior":
        shutil.copytree(mine, unfinished)
    else:
        unfinished.mkdir()
    save_model(model, unfinished / f"{stage}.keras")
    write_json(unfinished / "history.json", history)
    write_json(unfinished / "scores.json", scores | {"weights": stages_digest(unfinished)}, 2)
    names = (f"mine-{number}" for number in itertools.count(1))
    earlier = next(MY_WEIGHTS / name for name in names if not (MY_WEIGHTS / name).exists())
    if renamed := mine.exists():
        mine.rename(earlier)
    unfinished.rename(mine)
    line = f"Kept in {MY_WEIGHTS.name}/mine"
    if stage == "prior" and not own.prior:
        shutil.rmtree(earlier)  # all of it is in the new folder
    elif renamed:
        line += f"; the weights that were there are now {earlier.name}"
    print(f'{line}. Later notebooks use it with WEIGHTS = "mine".')


def load_feature_networks(data: str, train: SliceSet) -> dict[str, keras.Model]:
    """{"trained": the shipped feature network of "oasis1" or "cohort", "random": its control}.

    Raises:
        FileNotFoundError: when there is none for this data set.
    """
    file = FEATURES / f"{data}.keras"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing; `python -m tools.features` trains it on the training slices "
            "of the active data set."
        )
    untrained = set_metrics.feature_layers(train.images.shape[1:])
    return {"trained": load_model(file), "random": set_metrics.standardised(untrained, train)}


def results(experiment: str) -> dict:
    """The kept results of a measured comparison, `data/results/<experiment>.json`.

    Raises:
        FileNotFoundError: when there are none of that name; the message lists the others.
    """
    file = RESULTS / f"{experiment}.json"
    if not file.is_file():
        available = ", ".join(sorted(path.stem for path in RESULTS.glob("*.json")))
        raise FileNotFoundError(
            f"{file}: there are no results of {experiment!r}; available: {available or 'none'}. "
            f"`python -m experiments {experiment}` measures them."
        )
    return read_json(file)
