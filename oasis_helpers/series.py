"""What the notebooks and the commands share: data in force, profiles, weights and their scores.

Weights live in `data/weights/<name>/`: `vqvae.keras`, `prior.keras`, `history.json` with the
training curves, `scores.json` with what was measured, `MODEL_CARD.md`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
    fingerprint,
    load_slices,
    with_mirrored,
)
from oasis_helpers.files import only_one, read_json, write_bytes, write_json, written_beside
from oasis_helpers.pixelcnn import Prior
from oasis_helpers.recipes import RECIPES, Recipe
from oasis_helpers.sampling import sample_codes
from oasis_helpers.training import (
    Checkpoint,
    EpochLines,
    claim,
    sharpen,
    train_prior,
    train_vqvae,
)
from oasis_helpers.vqvae import VQVAE

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
