"""A bound on a test's seconds that holds on a busy machine too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Seconds. Without what such a test is about it takes much longer, while a busy machine stands still for seconds.
SOON = 10.0

#: Seconds after which no machine is busy: something is broken.
PATIENCE = 60.0


@contextmanager
def soon() -> Iterator[None]:
    """Check that what happens meanwhile ends soon."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SOON


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for what another thread or process is about to do, however late this machine lets it."""
    give_up_at = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up_at, "It has not happened."
        time.sleep(0.01)
