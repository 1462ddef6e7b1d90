"""The texts of a task's prompts in a state store, compressed and cut into values that fit into any database."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from contextlib import suppress

from airflow_provider_whisul.state.state_store import (
    MAX_ENTRY_BYTES,
    StateStore,
    read_versioned,
    unreadable,
    versioned,
)

#: Bytes of one value, with room for what is around the text.
_PIECE_BYTES = MAX_ENTRY_BYTES - 100


def save_prompts(store: StateStore, generation: int, prompts: Sequence[str]) -> int:
    """
    Store prompts.

    :param store: The store.
    :param generation: Under which of several sets of keys they are kept.
    :param prompts: The prompts.
    :return: The number of values that they take, which :func:`load_prompts` needs.
    """
    packed = b64encode(zlib.compress(json.dumps(prompts).encode())).decode()
    pieces = [packed[first : first + _PIECE_BYTES] for first in range(0, len(packed), _PIECE_BYTES)]
    for number, piece in enumerate(pieces):
        store.set(_key(generation, number), versioned({"prompts": piece}))
    return len(pieces)


def load_prompts(store: StateStore, generation: int, pieces: int) -> list[str]:
    """
    Read stored prompts.

    :param store: The store.
    :param generation: Under which of several sets of keys they are kept.
    :param pieces: The number of values that they take.
    :raises WhisulStateUnreadableError: One of their values is missing, or makes no sense.
    """
    packed = ""
    for number in range(pieces):
        match read_versioned(store, _key(generation, number)):
            case {"prompts": str(piece)}:
                packed += piece
            case _:
                raise unreadable(store, _key(generation, number))
    with suppress(ValueError, zlib.error):
        match json.loads(zlib.decompress(b64decode(packed))):
            case list(prompts) if all(isinstance(prompt, str) for prompt in prompts):
                return prompts
    raise unreadable(store, _key(generation, 0))


def _key(generation: int, number: int) -> str:
    return f"whisul_prompts_{generation}_{number:04d}"
