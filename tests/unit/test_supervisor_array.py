"""What a job of a bulk run takes for its event."""

from __future__ import annotations

import pytest

from scar_supervisor import array
from scar_supervisor.environment import OURS
from scar_supervisor.faults import EventFault
from scar_supervisor.storage import Storages


@pytest.mark.parametrize(
    "reference", ["", "s3://bucket/key", "http://bucket/key#width=9", "s3://bucket/key#width=many"]
)
def test_what_is_no_reference_to_a_manifest_is_a_fault_of_the_event(reference: str) -> None:
    with pytest.raises(EventFault, match="is not s3://bucket/key#width="):
        array.event({"SCAR_ARRAY": reference}, Storages({}), b"{}")


def test_the_script_does_not_see_the_manifest() -> None:
    assert "SCAR_ARRAY" in OURS
