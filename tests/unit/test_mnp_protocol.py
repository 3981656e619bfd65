"""Nodes of one job understand each other; nobody else does, and nothing can be slipped in."""

import pytest

from scar_supervisor import mnp_protocol as protocol
from scar_supervisor.mnp_protocol import Codec, Refused, job_key, unpacked

KEY = job_key("s" * 43, "job")


def a_pair(server_key=KEY, client_key=KEY):
    """Both ends after their handshake."""
    server, client = Codec(server_key, is_server=True), Codec(client_key, is_server=False)
    said, _ = client.feed(server.greeting())
    proof, _ = server.feed(said)
    client.feed(proof)
    return server, client


def test_frames_arrive_as_they_were_sent_in_both_directions():
    server, client = a_pair()
    frames = [(protocol.STDIN, b"a"), (protocol.STDIN, b""), (protocol.EXIT, b"x" * 70_000)]
    for sender, receiver in ((client, server), (server, client)):
        data = b"".join(sender.frame(kind, payload) for kind, payload in frames)
        assert receiver.feed(data) == (b"", frames)


def test_a_handshake_and_its_frames_may_come_in_any_pieces():
    whole = Codec(KEY, is_server=True)
    greeting = whole.greeting()
    for size in (1, 7, 31, 64):
        server, client = Codec(KEY, is_server=True), Codec(KEY, is_server=False)
        to_client, to_server, got = bytearray(server.greeting()), bytearray(), []
        while not (client.authenticated and server.authenticated):
            answer, _ = client.feed(bytes(to_client[:size]))
            del to_client[:size]
            to_server += answer
            answer, _ = server.feed(bytes(to_server[:size]))
            del to_server[:size]
            to_client += answer
        data = client.frame(protocol.LOG, b"hello") + client.frame(protocol.PING)
        for i in range(0, len(data), size):
            got += server.feed(data[i : i + size])[1]
        assert got == [(protocol.LOG, b"hello"), (protocol.PING, b"")]
    assert len(greeting) == 40


def test_frames_that_come_with_the_handshake_are_not_lost():
    server, client = Codec(KEY, is_server=True), Codec(KEY, is_server=False)
    said, _ = client.feed(server.greeting())
    proof, _ = server.feed(said)
    assert client.feed(proof + server.frame(protocol.PING)) == (b"", [(protocol.PING, b"")])


def test_a_client_without_the_secret_is_refused_before_it_may_say_anything():
    server = Codec(KEY, is_server=True)
    stranger = Codec(job_key("t" * 43, "job"), is_server=False)
    said, _ = stranger.feed(server.greeting())
    with pytest.raises(Refused, match="does not know the job's secret"):
        server.feed(said + b"x" * 100)


def test_a_server_without_the_secret_is_refused():
    server = Codec(job_key("t" * 43, "job"), is_server=True)
    client = Codec(KEY, is_server=False)
    client.feed(server.greeting())
    with pytest.raises(Refused, match="secret"):
        client.feed(bytes(32))


def test_a_server_that_sends_our_own_words_back_proves_nothing():
    client, other = Codec(KEY, is_server=False), Codec(KEY, is_server=False)
    rogue = b"SCARMNP1" + bytes(32)
    said, _ = client.feed(rogue)
    other.feed(rogue)
    with pytest.raises(Refused):
        client.feed(said[32:64])


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n", b"SSH-2.0-x\r\n", b"\0" * 64])
def test_what_is_no_node_is_told_at_the_first_bytes(garbage):
    with pytest.raises(Refused):
        Codec(KEY, is_server=False).feed(garbage)
    with pytest.raises(Refused):
        Codec(KEY, is_server=True).feed(garbage * 8)


@pytest.mark.parametrize("position", [0, 4, 5, 9, 20])
def test_a_changed_frame_is_refused(position):
    server, client = a_pair()
    data = bytearray(client.frame(protocol.STDIN, b"hello"))
    data[position] ^= 1
    with pytest.raises(Refused):
        server.feed(bytes(data) + bytes(64) + bytes(1 << 17))


def test_repeated_reordered_dropped_and_reflected_frames_are_refused():
    server, client = a_pair()
    first, second = client.frame(protocol.PING), client.frame(protocol.PING)
    server.feed(first)
    with pytest.raises(Refused):
        server.feed(first)
    server, client = a_pair()
    first, second = client.frame(protocol.PING), client.frame(protocol.PING)
    with pytest.raises(Refused):
        server.feed(second + first)
    server, client = a_pair()
    with pytest.raises(Refused):
        client.feed(client.frame(protocol.PING))


def test_a_recorded_session_cannot_be_played_to_a_server_again():
    server, client = Codec(KEY, is_server=True), Codec(KEY, is_server=False)
    said, _ = client.feed(server.greeting())
    server.feed(said)
    with pytest.raises(Refused):
        Codec(KEY, is_server=True).feed(said)


def test_a_frame_longer_than_any_is_refused_before_it_has_come():
    server, _ = a_pair()
    with pytest.raises(Refused, match="too long"):
        server.feed((protocol.LONGEST_PAYLOAD_BYTES + 1).to_bytes(4, "big") + b"\1")


def test_all_nodes_of_a_job_have_one_key_and_other_jobs_another():
    assert job_key("s" * 43, "job#0") == job_key("s" * 43, "job#12") == KEY
    assert job_key("s" * 43, "other") != KEY


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{", b'{"code": "1"}', b'{"code": true}', b"{}", b"[" * 100_000]
)
def test_a_payload_that_is_not_what_it_should_be_is_refused(payload):
    with pytest.raises(Refused):
        unpacked(payload, {"code": int})


def test_fields_that_nobody_knows_are_left_out():
    assert unpacked(b'{"code": 3, "more": 1}', {"code": int}) == {"code": 3}
