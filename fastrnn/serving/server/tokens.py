"""Bearer tokens from a file: who may use the server."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat

from ...errors import FastRNNError

logger = logging.getLogger("fastrnn")

# What RFC 6750 allows in a bearer token. At least 16 characters, so that none can be guessed.
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,4096}=*")
LONGEST = 8192  # characters of a presented one that are looked at


class Tokens:
    """The tokens of a file.

    Each line is a token, or `name: token`. Empty lines and those that begin with # are skipped. The name is that of the
    client in limits and logs; without one it is `token 3`, the number of its line.

    A presented token is looked up by a keyed hash. What can be learned from the time that takes is a hash under a key
    that never leaves the process, however many tokens there are.

    Parameters
    ----------
    path : of the file

    Raises
    ------
    FastRNNError : it can't be read, is empty, or has a line that is not a token.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = path
        self._key = secrets.token_bytes(32)
        self._names: dict[bytes, tuple[bytes, str]] = {}
        self.reload()

    def __len__(self) -> int:
        return len(self._names)

    def reload(self) -> None:
        """Read the file again. FastRNNError: it is wrong, and the tokens of before stay valid."""
        where = repr(os.fspath(self.path))
        try:
            with open(self.path, encoding="utf-8") as file:
                mode = os.fstat(file.fileno()).st_mode
                lines = file.read().splitlines()
        except OSError as error:
            raise FastRNNError(f"the token file {where} can't be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise FastRNNError(f"the token file {where} is not text in UTF-8") from None
        names: dict[bytes, tuple[bytes, str]] = {}
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            name, colon, token = (part.strip() for part in text.rpartition(":"))
            if not TOKEN.fullmatch(token) or (colon and not (name and name.isprintable())):
                raise FastRNNError(
                    f"{where}, line {number}: expected TOKEN or NAME: TOKEN, at least 16 letters, digits or characters "
                    "of ._~+/-; make one by `openssl rand -hex 32`"
                )
            digest = self._hash(token)
            if digest in names:
                raise FastRNNError(f"{where}, line {number}: the token of '{names[digest][1]}' is given twice")
            names[digest] = digest, name or f"token {number}"
        if not names:
            raise FastRNNError(f"the token file {where} has no token: nobody could use the server. Add one to a line")
        if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
            logger.warning("the token file %s can be read by other users: chmod 600 it", where)
        self._names = names

    def name_of(self, token: str) -> str | None:
        """The name of the client that presents a token; None: it is none of the file."""
        digest = self._hash(token[:LONGEST])
        found = self._names.get(digest)
        return found[1] if found is not None and hmac.compare_digest(found[0], digest) else None

    def _hash(self, token: str) -> bytes:
        return hashlib.blake2b(token.encode("utf-8", "surrogatepass"), key=self._key, digest_size=32).digest()


def bearer(header: str | None) -> str | None:
    """The token of an Authorization header; None: it has none."""
    kind, _, token = (header or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None
