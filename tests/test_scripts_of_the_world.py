"""Labels in Chinese, Arabic or with a $: letters and no boxes, and no warning."""

import warnings

import numpy as np
import pytest
from matplotlib import font_manager

from report import plotting

TILE = np.full((28, 28, 4), 255, np.uint8)


@pytest.fixture(autouse=True)
def fresh():
    plotting.fonts_for.cache_clear()
    yield
    plotting.fonts_for.cache_clear()


def drawn(text, heading="heading"):
    with warnings.catch_warnings(action="error"):
        return plotting.compose(heading, [(text, TILE)], 1, 6)


def test_latin_letters_need_one_font_and_a_dollar_is_no_mathematics():
    assert plotting.fonts_for("pneumonia $a_1$ é") == ("DejaVu Sans",)
    assert not np.array_equal(drawn("$a_1$ and $b$"), drawn("a1 and b"))
    drawn("$\\frac", heading="$\\frac")  # as mathematics, an error


def test_other_fonts_are_taken_for_letters_that_the_first_lacks(monkeypatch):
    known = [
        f for f in font_manager.fontManager.ttflist if f.name in ("DejaVu Sans", "STIXGeneral")
    ]
    monkeypatch.setattr(plotting.fontManager, "ttflist", known)
    text = "a\N{LATIN SMALL LETTER D WITH PALATAL HOOK}"  # not in DejaVu Sans
    assert plotting.fonts_for(text) == ("DejaVu Sans", "STIXGeneral")
    drawn(text)


def test_where_no_font_has_a_letter_that_is_known(monkeypatch):
    known = [f for f in font_manager.fontManager.ttflist if f.name.startswith(("DejaVu", "Last"))]
    monkeypatch.setattr(plotting.fontManager, "ttflist", known)
    assert (
        plotting.fonts_for("\N{CJK UNIFIED IDEOGRAPH-80F8}\N{CJK UNIFIED IDEOGRAPH-7247}") is None
    )


def test_arabic_needs_a_matplotlib_that_joins_its_letters(monkeypatch):
    text = "\N{ARABIC LETTER SAD}\N{ARABIC LETTER DAL}\N{ARABIC LETTER REH}"
    monkeypatch.setattr(plotting.matplotlib, "__version_info__", (3, 10, 0))
    assert plotting.fonts_for(text) is None
    plotting.fonts_for.cache_clear()
    monkeypatch.setattr(plotting.matplotlib, "__version_info__", (3, 11, 0))
    assert plotting.fonts_for(text) == ("DejaVu Sans",)
    drawn(text)
