"""Both sides of the handshake, without a network."""

from __future__ import annotations

import pytest

from mosec_asgi.pool.ray import handshake
from mosec_asgi.pool.ray.handshake import HandshakeError

SECRET, OTHER = b"s" * 32, b"o" * 32
TOKEN = b"t" * 16
OURS, THEIRS = b"1" * 32, b"2" * 32


def claimed(secret: bytes = SECRET, server_nonce: bytes = OURS) -> handshake.Claim:
    return handshake.read_claim(handshake.claim(secret, TOKEN, server_nonce, THEIRS))


def test_sides_that_share_a_secret_accept_each_other() -> None:
    assert handshake.nonce_of(handshake.greeting(OURS)) == OURS
    assert claimed().token == TOKEN
    proof = handshake.proof(SECRET, OURS, claimed())
    handshake.check_proof(SECRET, TOKEN, OURS, THEIRS, proof)


def test_messages_have_the_sizes_that_are_read() -> None:
    assert len(handshake.greeting(OURS)) == handshake.GREETING_SIZE
    assert len(handshake.claim(SECRET, TOKEN, OURS, THEIRS)) == handshake.CLAIM_SIZE
    assert len(handshake.proof(SECRET, OURS, claimed())) == handshake.PROOF_SIZE


def test_another_secret_is_refused_by_the_server() -> None:
    with pytest.raises(HandshakeError, match="does not have the secret"):
        handshake.proof(SECRET, OURS, claimed(OTHER))


def test_a_claim_of_another_handshake_is_refused() -> None:
    with pytest.raises(HandshakeError):
        handshake.proof(SECRET, OURS, claimed(server_nonce=b"3" * 32))


def test_another_secret_is_refused_by_the_actor() -> None:
    proof = handshake.proof(OTHER, OURS, claimed(OTHER))
    with pytest.raises(HandshakeError, match="does not have the secret"):
        handshake.check_proof(SECRET, TOKEN, OURS, THEIRS, proof)


def test_neither_side_can_be_sent_back_what_it_has_sent() -> None:
    # A server that answers with the actor's own code has shown nothing.
    with pytest.raises(HandshakeError):
        handshake.check_proof(SECRET, TOKEN, OURS, THEIRS, claimed().mac)


@pytest.mark.parametrize("received", [b"", b"x" * handshake.GREETING_SIZE, handshake.greeting(OURS)[:-1]])
def test_what_does_not_greet_is_no_server(received: bytes) -> None:
    with pytest.raises(HandshakeError, match="does not greet"):
        handshake.nonce_of(received)
