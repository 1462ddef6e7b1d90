"""What ``.ci/run`` names."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]


def test_the_test_that_is_left_out_without_a_redis_server_exists() -> None:
    script = (CHECKOUT / ".ci" / "run").read_text()
    (name,) = re.findall(r"^ *test=(\w+)$", script, re.MULTILINE)
    (file,) = re.findall(r"--deselect=([\w/.]+)::\$test", script)
    assert f"\ndef {name}(" in (CHECKOUT / file).read_text()
