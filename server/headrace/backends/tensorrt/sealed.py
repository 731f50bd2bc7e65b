"""Files that only this server can have written: a manifest with a signature, and a payload that the manifest describes.

    magic | length of the manifest, 4 bytes | manifest, JSON | HMAC-SHA256 of all before | payload

The signature is checked before anything of the file is interpreted, the payload's digest before it is given out. Pure.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

MAGIC = b"headrace sealed file 1\n"
MAC_BYTES = 32
MOST_MANIFEST_BYTES = 1 << 20


class Unsealed(Exception):
    """A file is not one that was written with this key, or not any more. Says what is wrong."""


def seal(key: bytes, about: dict[str, Any], payload: bytes) -> bytes:
    """What stands before the payload in a file. about: what the file is; compared by `unseal`.

    Raises ValueError for a description that is too large.
    """
    manifest = {"about": about, "bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    text = json.dumps(manifest, sort_keys=True).encode()
    if len(text) > MOST_MANIFEST_BYTES:
        raise ValueError(f"a manifest of {len(text)} bytes, at most {MOST_MANIFEST_BYTES} fit")
    signed = MAGIC + len(text).to_bytes(4, "big") + text
    return signed + hmac.digest(key, signed, "sha256")


def unseal(key: bytes, about: dict[str, Any], content: bytes) -> bytes:
    """The payload of a file that `seal` has described as `about`. Raises Unsealed."""
    start = len(MAGIC) + 4
    if content[: len(MAGIC)] != MAGIC or len(content) < start:
        raise Unsealed("it is no sealed file")
    end = start + int.from_bytes(content[len(MAGIC) : start], "big")
    if end - start > MOST_MANIFEST_BYTES or len(content) < end + MAC_BYTES:
        raise Unsealed("it is cut off")
    if not hmac.compare_digest(hmac.digest(key, content[:end], "sha256"), content[end : end + MAC_BYTES]):
        raise Unsealed("its signature is not by the key of this directory")
    manifest = json.loads(content[start:end])
    payload = content[end + MAC_BYTES :]
    if len(payload) != manifest["bytes"] or hashlib.sha256(payload).hexdigest() != manifest["sha256"]:
        raise Unsealed("what it holds is not what was signed")
    if manifest["about"] != about:
        raise Unsealed("it was written as another file than it is named")
    return payload
