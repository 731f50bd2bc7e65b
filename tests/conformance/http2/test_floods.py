"""Attacks on a running transport: each is ended by its limit, costs a bounded amount, and harms nobody else."""

from pathlib import Path

import pytest
from conformance.http2.floods import FLOODS, MAX_STREAMS
from transport.http2.bench import ECHO

from headrace.transport.http2.limits import Limit

CHUNK = 50
RATE = 40
"""Pieces a second, two of which may count against a client that may do a hundred such things."""
SLACK = 1.4
"""Over the pieces that are borne, as a share: octets received pay for some more."""


@pytest.mark.parametrize("flood", [pytest.param(flood, id=f"attack {flood.name}") for flood in FLOODS])
def test_a_flood(start, flood):
    """The attacker reads nothing; another client's calls are answered between its pieces."""
    native = start()
    with native.connect(flood.hello) as bad, native.connect() as good:
        bad.send(flood.first)
        sent = 0
        while native.read_all(bad):
            bad.flood(b"".join(flood.piece(n) for n in range(sent, sent + CHUNK)))
            sent += CHUNK
            assert good.call(ECHO, b"%d" % sent) == (0, b"%d" % sent)
            octets, calls = native.footprint(bad)
            assert octets < 1 << 20
            assert calls <= 2 * MAX_STREAMS
            assert len(native.infer.calls) <= MAX_STREAMS
            assert sent <= SLACK * (flood.borne + CHUNK)
        assert sent >= flood.borne
        last = bad.end()[-1].split()
        assert (last[0], last[2]) == ("GOAWAY", "ENHANCE_YOUR_CALM")
        assert native.limits()[flood.limit] == 1
        assert all(work.cancelled for work in native.infer.calls)
        assert good.call(ECHO, b"after") == (0, b"after")
    native.eventually(lambda: not native.transport.peers)
    assert native.counts.protocol_errors == {"ENHANCE_YOUR_CALM": 1}


@pytest.mark.parametrize("flood", [pytest.param(flood, id=flood.name) for flood in FLOODS if flood.trickle])
def test_a_trickle_is_borne(start, flood):
    """More than the burst, at the rate of a client that has its reasons."""
    native = start()
    with native.connect(flood.hello) as client:
        client.send(flood.first)
        for sent in range(0, flood.borne + 200, RATE):
            client.send(b"".join(flood.piece(n) for n in range(sent, sent + RATE)))
            assert native.read_all(client)
            native.on_loop(native.clock.second)
    assert not set(native.limits()) - {"streams"}


def test_every_limit_is_met_by_an_attack():
    dialogues = "".join(Path(__file__).with_name(name).read_text() for name in ("test_attacks.py", "dialogues.py"))
    met = {flood.limit for flood in FLOODS} | {limit for limit in Limit if f'"{limit}"' in dialogues}
    assert met == set(Limit)
