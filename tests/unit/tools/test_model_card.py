"""Model cards say what the scores say."""

import pytest

from oasis_helpers.data import REPOSITORY, read_json
from oasis_helpers.pretrained import WEIGHTS, results
from tools.score import model_card

NAMES = sorted(path.parent.name for path in WEIGHTS.glob("*/scores.json"))


@pytest.mark.parametrize("name", NAMES)
def test_model_cards_are_made_of_the_scores(name):
    card = model_card(name, read_json(WEIGHTS / name / "scores.json"))
    assert card == (WEIGHTS / name / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_a_card_warns_of_an_older_recipe_and_of_detail_that_is_not_the_subjects():
    scores = read_json(WEIGHTS / "oasis1" / "scores.json")
    assert "not the subject's own" in model_card("oasis1", scores)
    older = scores | {"recipe": scores["recipe"] | {"seed": 99}}
    assert model_card("oasis1", older) != model_card("oasis1", scores)


def test_the_notice_says_how_much_a_prior_shows_of_its_training_subjects():
    notice = " ".join((REPOSITORY / "NOTICE.md").read_text(encoding="utf-8").split())
    assert f"an AUC of {results('memorisation')['membership'][0]:.2f}," in notice
