"""The manifest of a bulk run: lines of one width, for objects of any name."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from scar.bulk import manifest


@given(st.lists(st.text(max_size=80), min_size=1, max_size=20))
def test_every_child_finds_its_own_line_by_its_index(names: list[str]) -> None:
    lines = [{"Records": [name]} for name in names]

    data, width = manifest(lines)

    assert len(data) == width * len(lines)
    for n, line in enumerate(lines):
        assert json.loads(data[n * width : (n + 1) * width]) == line
