"""What every test may ask for."""

import gc
import os
import signal
import threading

import pytest

# Started in the background, this process ignores SIGINT, and so would the commands it starts.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def missing(what: str, why: str) -> None:
    """Skip the test because `what` is not here; fail it where SCAR_TEST_REQUIRE names `what`."""
    if what in os.environ.get("SCAR_TEST_REQUIRE", "").split(","):
        pytest.fail(f"{what} are required here: {why}")
    pytest.skip(why)


@pytest.fixture(autouse=True)
def few_open_files():
    """Whole clouds live in these tests' process; what one leaves in a cycle is closed in time."""
    yield
    if len(os.listdir("/proc/self/fd")) > 200:
        gc.collect()
