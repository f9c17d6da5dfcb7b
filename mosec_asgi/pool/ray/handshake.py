"""How an actor and its server recognise each other before the first frame: by a secret that has crossed by Ray. Pure.

    server ─► actor    greeting = magic, nonce                       (48 bytes)
    actor  ─► server   claim    = token, nonce, HMAC of both sides'  (80 bytes)
    server ─► actor    proof    = HMAC of the same, by the server    (32 bytes)

Each launch of a worker has a token, which names it, and a secret, which never passes by the connection. Both cross as
arguments of the actor. All messages have a fixed size, and nothing that has been read is interpreted before the HMAC
that belongs to it has been found right: whoever has not the secret gets no byte to a decoder. What each side signs
begins with its own label and holds both nonces, so that neither can be sent back what it has sent, nor what it has
heard in another handshake.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

MAGIC = b"mosec_asgi ray 1"
NONCE_SIZE = 32
TOKEN_SIZE = 16
SECRET_SIZE = 32
MAC_SIZE = 32
GREETING_SIZE = len(MAGIC) + NONCE_SIZE
CLAIM_SIZE = TOKEN_SIZE + NONCE_SIZE + MAC_SIZE
PROOF_SIZE = MAC_SIZE

_ACTOR = b"actor"
_SERVER = b"server"


class HandshakeError(Exception):
    """The other side is not what it should be; the text says how that showed."""


class Claim(NamedTuple):
    """What an actor has sent, and has not been checked yet."""

    token: bytes
    nonce: bytes
    mac: bytes


def greeting(nonce: bytes) -> bytes:
    """Return the server's first message."""
    return MAGIC + nonce


def nonce_of(received: bytes) -> bytes:
    """Return the server's nonce of its greeting.

    Raises:
        HandshakeError: what listens there is no server of this kind.
    """
    if len(received) != GREETING_SIZE or not received.startswith(MAGIC):
        raise HandshakeError("what listens there does not greet as a mosec_asgi server of this version")
    return received[len(MAGIC) :]


def claim(secret: bytes, token: bytes, server_nonce: bytes, nonce: bytes) -> bytes:
    """Return the actor's message."""
    return token + nonce + _mac(secret, _ACTOR, token, server_nonce, nonce)


def read_claim(received: bytes) -> Claim:
    """Take an actor's message apart; `proof` checks it."""
    if len(received) != CLAIM_SIZE:
        raise HandshakeError(f"a claim has {CLAIM_SIZE} bytes, not {len(received)}")
    return Claim(
        received[:TOKEN_SIZE], received[TOKEN_SIZE : TOKEN_SIZE + NONCE_SIZE], received[TOKEN_SIZE + NONCE_SIZE :]
    )


def proof(secret: bytes, server_nonce: bytes, claimed: Claim) -> bytes:
    """Return the server's answer to a claim.

    Raises:
        HandshakeError: whoever has sent it does not have the secret.
    """
    expected = _mac(secret, _ACTOR, claimed.token, server_nonce, claimed.nonce)
    if not hmac.compare_digest(expected, claimed.mac):
        raise HandshakeError("whoever connected does not have the secret of a worker that was started")
    return _mac(secret, _SERVER, claimed.token, server_nonce, claimed.nonce)


def check_proof(secret: bytes, token: bytes, server_nonce: bytes, nonce: bytes, received: bytes) -> None:
    """Check the server's answer.

    Raises:
        HandshakeError: what listens there does not have the secret.
    """
    if not hmac.compare_digest(_mac(secret, _SERVER, token, server_nonce, nonce), received):
        raise HandshakeError("what listens there does not have the secret of this worker's server")


def _mac(secret: bytes, *parts: bytes) -> bytes:
    # All parts but the label have fixed sizes, and no label begins with the other.
    return hmac.new(secret, b"".join(parts), hashlib.sha256).digest()
