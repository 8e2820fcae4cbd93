"""Cards and what their limits allow."""

import pytest
from slipway.compiler.cards import CARDS, NODE_S, card_for, cards_for
from slipway.compiler.errors import UserError
from slipway.compiler.target import GPUS
from slipway.recipes.schema import CARD_TARGETS


def test_every_card_runs_a_target():
    assert {card.target for card in CARDS.values()} == set(GPUS) - {"sm86"}


def test_recipes_know_the_same_cards():
    assert CARD_TARGETS == {name: card.target for name, card in CARDS.items()}


def test_time_is_the_longer_of_the_two_and_the_kernels():
    card = CARDS["h200"]
    assert card.seconds(card.read_bytes_per_s, 0, 0) == pytest.approx(1)
    assert card.seconds(card.read_bytes_per_s / 2, card.flops_per_s, 10) == pytest.approx(1 + 10 * NODE_S)


def test_the_published_ceiling_of_an_8b_model_in_bf16_on_an_h200():
    """286 tokens/s at the 4.3 TB/s that a copy reaches, for 15 GB of weights a token."""
    assert 1 / CARDS["h200"].seconds(15.0e9, 0, 0) == pytest.approx(286, rel=0.01)


def test_a_card_by_name():
    assert card_for("sm90", None).name == "h200" and card_for("sm90", "H100").name == "h100"
    with pytest.raises(UserError, match="--card: a100 with an engine for sm90; expected h200, h100"):
        card_for("sm90", "a100")
    with pytest.raises(UserError, match="none with an engine for sm86"):
        card_for("sm86", None)
    assert [card.name for card in cards_for("sm120")] == ["rtx-pro-6000"]
