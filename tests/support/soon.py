"""A bound on a test's seconds that holds on a busy machine too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds. Without what such a test is about it takes much longer, while a busy machine stands still for seconds.
SOON = 10.0


@contextmanager
def soon() -> Iterator[None]:
    """Check that what happens meanwhile ends soon."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SOON
