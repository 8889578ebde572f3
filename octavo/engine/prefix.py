"""Names of KV blocks for the prefix cache: a keyed SHA-256 chain over the tokens of each full block."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from hashlib import sha256

from octavo.errors import OctavoError


class BlockHasher:
    """Gives every full block a digest that stands for its tokens and all tokens before it.

    The chain starts from a secret of this process and the sequence's salt, so that digests of one salt
    (a tenant) never meet those of another and cannot be computed by a client.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = os.urandom(32) if secret is None else secret
        if not self._secret:
            raise OctavoError("The secret of the prefix cache is empty.", hint="Leave it out to draw one.")

    def root(self, salt: str, rope_tokens: int = 0, adapter: str = "") -> bytes:
        """The digest before the first block. `rope_tokens` sets apart prompts whose rotary angles differ,
        `adapter` (its key) those that different weights compute.
        """
        root = sha256(
            self._secret + rope_tokens.to_bytes(8, "little") + salt.encode("utf-8", "surrogatepass")
        ).digest()
        return sha256(root + adapter.encode("utf-8", "surrogatepass")).digest() if adapter else root

    def extend(
        self, digests: list[bytes], root: bytes, tokens: Sequence[int], block_size: int, full: int
    ) -> None:
        """Append to `digests` until it names the first `full` blocks of `tokens`."""
        parent = digests[-1] if digests else root
        for index in range(len(digests), full):
            part = array("q", tokens[index * block_size : (index + 1) * block_size])
            parent = sha256(parent + part.tobytes()).digest()
            digests.append(parent)
