"""All fuzzers, with fixed seeds, for a minute in all."""

import pytest

from tests.fuzz.__main__ import NAMES, fuzz

SECONDS = 60


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_lines_of_words(name):
    counts = fuzz(name, SECONDS / len(NAMES), seed=21)
    assert sum(counts.values()) > 10, counts
