"""Each reason for which a region stops is explained to users."""

from __future__ import annotations

import re
from pathlib import Path

from aoti_eager._keys.declines import REASONS
from aoti_eager._regions.stop import STOPS

PAGE = Path(__file__).parents[2] / "docs" / "regions.md"


def test_the_page_of_regions_has_each_reason_with_its_words() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.read_text(), flags=re.M))
    assert {reason: table.get(reason) for reason in STOPS} == STOPS


def test_no_reason_means_two_things() -> None:
    assert STOPS.keys() & REASONS.keys() == set()
