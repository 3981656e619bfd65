"""docs/aws-beliefs.md is a table that can be followed: rows are whole, files are there."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "aws-beliefs.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if re.match(r"\| [A-Z]\d+ ", line)]


def test_every_belief_has_a_number_a_place_a_source_and_what_follows():
    assert len(ROWS) > 50
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in ROWS]
    assert [row[0] for row in cells if len(row) != 6 or not all(row)] == []
    assert [number for number, times in Counter(row[0] for row in cells).items() if times > 1] == []


def test_the_files_that_rely_on_it_are_there():
    named = set(re.findall(r"`((?:src|tests)/[\w/.]+\.py)`", TEXT))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
