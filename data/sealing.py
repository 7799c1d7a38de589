"""Checksums inside files, so that a cut or a changed byte anywhere in them is seen.

Each kind of file takes its checksum where other readers do not mind it, and stays what it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

DIGEST_BYTES = 16
MARK = b"mariposa blake2b"


def digest(content: bytes) -> str:
    """A checksum in hexadecimal."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


def seal_lines(body: str, before: str, after: str) -> bytes:
    """A text file whose first line is ``before``, the checksum of what follows, ``after``."""
    content = body.encode()
    return f"{before}{digest(content)}{after}\n".encode() + content


def unseal_lines(content: bytes, before: str, after: str) -> str | None:
    """What follows the first line; None where that is no checksum.

    Raises:
        ValueError: the checksum is wrong.
    """
    head, _, body = content.partition(b"\n")
    if not (head.startswith(before.encode()) and head.endswith(after.encode())):
        return None
    if head != f"{before}{digest(body)}{after}".encode():
        raise ValueError("its checksum is wrong")
    return body.decode()


def seal_json(values: Mapping[str, Any]) -> str:
    """An object as JSON, with the checksum of its other values under ``sealed``."""
    return json.dumps({"sealed": digest(_plain(values)), **values}, indent=1)


def unseal_json(text: str) -> dict[str, Any]:
    """The object.

    Raises:
        ValueError: it is no JSON object, or its checksum is missing or wrong.
    """
    values = json.loads(text)
    if not isinstance(values, dict) or values.pop("sealed", None) != digest(_plain(values)):
        raise ValueError("its checksum is missing or wrong")
    return values


def _plain(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True).encode()


def seal_parquet(content: bytes) -> bytes:
    """A parquet file with a checksum of all its bytes.

    It stands between the pages and the footer, where no reader looks. The format's own checksums
    are of pages only, and a changed byte in the footer can change values.
    """
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return content[:end] + MARK + bytes.fromhex(digest(content)) + content[end:]


def unseal_parquet(content: bytes) -> bytes:
    """The file without its checksum; as it is where it has none.

    Raises:
        ValueError: the checksum is wrong.
    """
    start = content.rfind(MARK)
    if start < 0:
        return content
    end = start + len(MARK) + DIGEST_BYTES
    found, bare = content[start + len(MARK) : end], content[:start] + content[end:]
    if found.hex() != digest(bare):
        raise ValueError("its checksum is wrong")
    return bare


def seal_end(content: bytes) -> bytes:
    """A file whose readers stop before its end (``.npy``), with its checksum there."""
    return content + MARK + bytes.fromhex(digest(content))


def unseal_end(content: bytes, required: bool = True) -> bytes:
    """The file without its checksum.

    Args:
        content: of the file.
        required: whether there must be one; else a file without is as it is.

    Raises:
        ValueError: the checksum is missing or wrong.
    """
    bare = content[: -len(MARK) - DIGEST_BYTES]
    if not content[len(bare) :].startswith(MARK) and not required:
        return content
    if seal_end(bare) != content:
        raise ValueError("its checksum is missing or wrong")
    return bare
