"""Data in force, profiles, training that resumes, shipped weights and their scores."""

import dataclasses
import json

import numpy as np
import pytest

from oasis_helpers import load_pretrained, metrics, recipes, sample_codes, pretrained

SHIPPED = sorted(path.parent.name for path in pretrained.WEIGHTS.glob("*/scores.json"))


def test_profile(monkeypatch):
    monkeypatch.delenv("OASIS_PROFILE", raising=False)
    assert pretrained.profile() == "tour"
    monkeypatch.setenv("OASIS_PROFILE", "full")
    assert pretrained.profile() == "full"
    monkeypatch.setenv("OASIS_PROFILE", "fast")
    with pytest.raises(ValueError, match="OASIS_PROFILE is 'fast'; expected"):
        pretrained.profile()


def test_data_root_that_is_no_folder(monkeypatch):
    monkeypatch.setenv("OASIS_DATA_DIR", "/nowhere/slices")
    with pytest.raises(FileNotFoundError, match="/nowhere/slices is no folder; set it to"):
        pretrained.data_root()


def test_weights_that_are_not_there():
    with pytest.raises(FileNotFoundError, match=r"no weights named 'oasis9'.*there are: .*cohort"):
        load_pretrained("oasis9")


@pytest.fixture
def tiny(monkeypatch, tmp_path, cohort_root, load_few):
    """A recipe that trains in seconds, working and landing in a temporary folder."""
    schedule = recipes.Schedule(6, 128, 1e-3)
    recipe = recipes.Recipe(
        "cohort",
        vqvae={**recipes.WHOLE_FRAME, "widths": (8, 8), "blocks": 1, "num_embeddings": 16},
        vqvae_schedule=schedule,
        prior={"filters": 8, "blocks": 1, "heads": 1},
        prior_schedule=recipes.Schedule(6, 64, 1e-3),
        views=1,
    )
    sharp = dataclasses.replace(recipe, vqvae_schedule=None, fine_tunes="tiny", decoder_schedule=schedule)
    monkeypatch.setitem(recipes.RECIPES, "tiny", recipe)
    monkeypatch.setitem(recipes.RECIPES, "tiny-sharp", dataclasses.replace(sharp, prior_schedule=None))
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(pretrained, "WORK", tmp_path / "work")
    monkeypatch.setattr(pretrained, "load_slices", load_few)
    monkeypatch.setattr(pretrained, "DRAWN_FOR_SCORES", 1)
    return tmp_path


def test_training_to_the_end(tiny):
    scores = pretrained.train_weights("tiny")
    models = load_pretrained("tiny")
    assert models.scores == json.loads(json.dumps(scores))
    assert scores["epochs"] == {"vqvae": 2, "prior": 2}
    assert scores["train"]["subjects"] == 6 and scores["test"]["slices"] == 192
    assert scores["samples"]["slices"] == {"drawn": 32, "unseen": 192}
    assert len(models.history["prior"]["val_loss"]) == 2
    test = models.load_slices(pretrained.data_root(), "test")
    assert metrics.reconstruction_table(models.vqvae, test) == scores["test"]
    assert "Scores on test subjects" in (pretrained.WEIGHTS / "tiny" / "MODEL_CARD.md").read_text()


def test_sharpening_takes_the_codes_over(tiny):
    with pytest.raises(FileNotFoundError, match="`make train NAME=tiny` makes them"):
        pretrained.train_weights("tiny-sharp")
    pretrained.train_weights("tiny")
    scores = pretrained.train_weights("tiny-sharp")
    assert scores["epochs"] == {"vqvae": 2} and "prior_test" not in scores
    faithful, sharp = load_pretrained("tiny"), load_pretrained("tiny-sharp")
    assert sharp.prior is None
    test = sharp.load_slices(pretrained.data_root(), "test").images[:64]
    codes = faithful.vqvae.encode(test)
    np.testing.assert_array_equal(sharp.vqvae.encode(test), codes)
    assert not np.array_equal(sharp.vqvae.decode(codes), faithful.vqvae.decode(codes))
    assert "not the patient's own" in (pretrained.WEIGHTS / "tiny-sharp/MODEL_CARD.md").read_text()


def test_checkpoints_of_another_recipe_are_not_resumed(tiny, monkeypatch):
    note = pretrained.CHECKPOINTS / "tiny" / "run_signature.json"
    note.parent.mkdir(parents=True)
    note.write_text('{"recipe": "another"}')
    with pytest.raises(ValueError, match="holds a training with another recipe or other slices"):
        pretrained.train_weights("tiny")


def test_weights_need_their_own_data(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="need other data: set OASIS_DATA_DIR to the oasis1"):
        pretrained.train_weights("oasis1-10x10")
    monkeypatch.setenv("OASIS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="need other data: unset OASIS_DATA_DIR"):
        pretrained.train_weights("cohort")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_scores_are_what_the_weights_score(name, request):
    """Measured anew on test subjects; processors differ by a code here and there."""
    models = load_pretrained(name)
    fixture = {"cohort": "cohort_root", "oasis1": "real_root"}[models.scores["data"]]
    root = request.getfixturevalue(fixture)
    test, train = (models.load_slices(root, split) for split in ("test", "train"))
    if not models.scored_on(test):
        pytest.skip(f"{root} holds other test slices than those the weights were scored on")
    measured = metrics.reconstruction_table(models.vqvae, test)
    for figure, tolerance in (("ssim", 0.002), ("brain_ssim", 0.005), ("psnr_db", 0.1)):
        np.testing.assert_allclose(measured[figure], models.scores["test"][figure], atol=tolerance)
    assert measured["perplexity"] == pytest.approx(models.scores["test"]["perplexity"], rel=0.02)
    fine = models.scores["test"]["sharpness"]["high_frequency_power"]
    assert measured["sharpness"]["high_frequency_power"] == pytest.approx(fine, rel=0.03)
    if models.prior:
        prior = metrics.prior_table(models.vqvae, models.prior, train, test)
        bits = models.scores["prior_test"]["bits_per_code"][0]
        assert prior["bits_per_code"][0] == pytest.approx(bits, abs=0.02)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_generate(name):
    models = load_pretrained(name)
    if not models.prior:
        pytest.skip(f"{name} has no prior")
    codes = sample_codes(models.prior, 2, slice_index=[4, 28])
    pictures = models.vqvae.decode(codes)
    size = models.scores["frame"]["size"]
    assert pictures.shape == (2, size, size, 1) and pictures.dtype == np.float32
    assert (0.15 < pictures[pictures > 0.04].mean()) and (pictures > 0.04).mean() > 0.2


def test_sharp_and_faithful_decoders_share_their_codes():
    for name in ("cohort", "oasis1"):
        sharp, faithful = load_pretrained(name), load_pretrained(f"{name}-faithful")
        assert faithful.prior is None
        parts = [(x.vqvae.encoder, x.vqvae.quantizer) for x in (sharp, faithful)]
        for one, other in zip(*parts):
            for mine, theirs in zip(one.get_weights(), other.get_weights()):
                np.testing.assert_array_equal(mine, theirs)


# The figures that the project set itself, on real test subjects.


def scores_of(name):
    scores = load_pretrained(name).scores
    assert scores["test"]["subjects"] == 18 and scores["test"]["slices"] == 576
    return scores


def test_target_scores_at_700_bits():
    scores = scores_of("oasis1-10x10")
    test, prior = scores["test"], scores["prior_test"]
    assert test["bits_per_slice"] == 700
    assert test["ssim"][0] >= 0.93 and test["brain_ssim"][0] >= 0.82
    assert test["perplexity_brain"] >= 90
    assert scores["train"]["dead_codes"] == 0
    assert prior["bits_per_code"][0] < min(prior["baselines"].values())


def test_target_scores_at_3200_bits():
    test = scores_of("oasis1-20x20")["test"]
    assert test["bits_per_slice"] <= 3200
    assert test["ssim"][0] >= 0.965 and test["brain_ssim"][0] >= 0.92


def test_the_sharp_decoder_is_sharp_and_not_far_from_the_faithful_one():
    sharp, faithful = scores_of("oasis1")["test"], scores_of("oasis1-faithful")["test"]
    assert 0.8 <= sharp["sharpness"]["high_frequency_power"] <= 1.1
    assert faithful["ssim"][0] - sharp["ssim"][0] <= 0.02


def test_drawn_slices_are_much_nearer_to_real_ones_than_the_plain_pipelines():
    ours, plain = scores_of("oasis1")["set_metrics"], scores_of("oasis1-reference")["set_metrics"]
    assert {row["slices"] for row in (*ours.values(), *plain.values())} == {576}

    def share_of_the_way(measure):
        start, end = plain["samples"][measure][0], ours["real"][measure][0]
        return (start - ours["samples"][measure][0]) / (start - end)

    assert share_of_the_way("kid") >= 0.9
    assert share_of_the_way("recall") >= 0.5 and share_of_the_way("coverage") >= 0.5


def test_drawn_slices_are_new_and_crisp_and_at_their_level():
    scores = scores_of("oasis1")
    assert max(share for share, *_ in scores["memorisation"].values()) <= 0.03
    assert all(0.8 <= share <= 1.1 for share in scores["samples"]["high_frequency_power"])
    assert scores["samples"]["slices"]["samples"] == 640
    assert scores["samples"]["slice_index_accuracy"]["samples"] >= 0.8
