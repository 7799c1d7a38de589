"""Named random streams: every random choice has its own, so a new choice moves no other."""

from __future__ import annotations

import hashlib


def seed_for(study_seed: int, *stream: object) -> int:
    """A seed in [0, 2**31) for the stream of that name.

    The same (study_seed, stream) gives the same seed on every machine and Python version.
    """
    text = "\x1f".join(str(part) for part in (study_seed, *stream))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 33
