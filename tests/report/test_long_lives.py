"""A run of thousands of stages: its page stays small, and says what it leaves out."""

from lifelong.report.curves import thinned
from lifelong.report.html import page
from lifelong.report.view import SHOWN_ROWS, table
from tests.report.generated import generated_history


def test_the_page_of_two_thousand_stages_is_below_two_megabytes():
    text = page(generated_history(20, 2000, documents=2))
    assert len(text.encode()) < 2_000_000
    assert "1,800 earlier rows are not shown" in text
    assert "1999-domain-019" in text


def test_a_short_life_is_shown_whole():
    rows = [[str(number)] for number in range(SHOWN_ROWS + 1)]
    assert table(("x",), rows[1:]).left_out == 0
    assert table(("x",), rows).rows == rows[1:]
    assert table(("x",), rows).left_out == 1
    assert thinned([1, 2, 3], 3) == [1, 2, 3]


def test_a_thinned_line_keeps_its_ends():
    for count in range(1, 50):
        kept = thinned(list(range(count)), 7)
        assert kept[0] == 0
        assert kept[-1] == count - 1
        assert len(kept) <= 8
        assert kept == sorted(set(kept))
