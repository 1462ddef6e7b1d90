"""Song and cover of a job: a short melody as WAV, a few coloured bars as PNG. Made from nothing but numbers."""

from __future__ import annotations

import colorsys
import io
import math
import random
import struct
import wave
import zlib
from functools import lru_cache

RATE = 8000
"""Samples per second of a song; one byte each, so also its bytes per second."""

LONGEST = 300
"""Seconds after which a melody stops, whatever the job says: an hour of it would help nobody."""

COVER_SIZE = 256
"""Width and height of a cover in pixels."""

_SCALE = (0, 2, 4, 7, 9, 12, 14, 16)
_BARS = 8


@lru_cache(maxsize=8)
def song(seed: str, bpm: int, seconds: int) -> bytes:
    """Return a WAV file (8 kHz, mono, 8 bit).

    :param seed: what tells this melody from others.
    :param bpm: tempo in beats per minute; two notes per beat.
    :param seconds: length in seconds, at most ``LONGEST``.
    """
    rng = random.Random(f"song:{seed}")  # noqa: S311
    root = rng.uniform(196.0, 294.0)
    length = min(seconds, LONGEST) * RATE
    note_length = RATE * 30 // bpm
    notes = [_note(root * 2 ** (step / 12), note_length) for step in _SCALE]
    step, melody = 0, bytearray()
    while len(melody) < length:
        melody += notes[step]
        step = max(0, min(len(notes) - 1, step + rng.choice((-2, -1, -1, 1, 1, 2, 3))))
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(1)
        out.setframerate(RATE)
        out.writeframes(bytes(melody[:length]))
    return file.getvalue()


def _note(frequency: float, samples: int) -> bytes:
    turn = 2 * math.pi * frequency / RATE
    # The fade to nothing keeps the joints between notes free of clicks.
    return bytes(round(128 + 90 * (1 - n / samples) * math.sin(turn * n)) for n in range(samples))


@lru_cache(maxsize=32)
def cover(seed: str) -> bytes:
    """Return a PNG file of ``COVER_SIZE`` pixels square: bars on a fading ground, in colours of its own.

    :param seed: what tells this cover from others.
    """
    rng = random.Random(f"cover:{seed}")  # noqa: S311
    hue = rng.random()
    bar = bytes(_rgb(hue, 0.6, 1.0))
    top, bottom = _rgb(hue + 0.5, 0.7, 0.5), _rgb(hue + rng.uniform(0.55, 0.8), 0.8, 0.2)
    heights = [rng.randrange(COVER_SIZE // 8, COVER_SIZE - 16) for _ in range(_BARS)]
    slot = COVER_SIZE // _BARS
    rows = bytearray()
    for y in range(COVER_SIZE):
        ground = bytes(a + (b - a) * y // COVER_SIZE for a, b in zip(top, bottom, strict=True))
        rows.append(0)  # PNG: each row starts with its filter, none
        for height in heights:
            colour = bar if COVER_SIZE - y <= height else ground
            rows += ground * 4 + colour * (slot - 8) + ground * 4
    header = struct.pack(">IIBBBBB", COVER_SIZE, COVER_SIZE, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(bytes(rows), 9))
        + _chunk(b"IEND", b"")
    )


def _rgb(hue: float, saturation: float, value: float) -> list[int]:
    return [round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value)]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
