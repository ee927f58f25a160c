"""No single silo decides the average: who is invited, what is finite, and how much it may weigh."""

from types import SimpleNamespace

import numpy as np
import pytest

from lifelong.federation.flower import FIGURES, SILO, WEIGHED_BY, WEIGHT_BOUND, WEIGHTS, believed

INVITED = ("sea", "farm", "law")


def reply(domain, tokens, value=1.0):
    array = SimpleNamespace(numpy=lambda: np.array([value], dtype=np.float32))
    content = {SILO: {"domain": domain}, FIGURES: {WEIGHED_BY: tokens}, WEIGHTS: {"w": array}}
    return SimpleNamespace(content=content, has_error=lambda: False)


def weights(replies):
    return {answer.content[SILO]["domain"]: answer.content[FIGURES][WEIGHED_BY] for answer in replies}


def test_equal_silos_weigh_what_they_say():
    assert weights(believed([reply(name, 1000) for name in INVITED], INVITED)) == dict.fromkeys(INVITED, 1000)


def test_a_silo_cannot_claim_to_be_the_whole_federation():
    found = weights(believed([reply("sea", 1000), reply("farm", 1200), reply("law", 10**15)], INVITED))
    assert found == {"sea": 1000, "farm": 1200, "law": int(WEIGHT_BOUND * 1200)}


@pytest.mark.parametrize(
    "stranger",
    [reply("town", 10), reply("sea", 10), reply("law", 0), reply("law", -5), reply("law", float("nan")),
     reply("law", 10, np.nan), reply("law", 10, np.inf)],
)  # fmt: skip
def test_what_nobody_invited_or_cannot_be_is_left_out(stranger):
    replies = [reply("sea", 1000), reply("farm", 1000), stranger]
    assert weights(believed(replies, INVITED)) == {"sea": 1000, "farm": 1000}


def test_an_error_is_passed_on():
    failed = SimpleNamespace(has_error=lambda: True)
    assert believed([failed], INVITED) == [failed]
