"""The manager's ends of the connections: who may come in, and who counts as silent."""

from __future__ import annotations

import multiprocessing as mp
import queue
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection, Pipe

import pytest

from tests.tiny import eventually
from trainsys.elastic.control import ControlClient
from trainsys.elastic.endpoint import Endpoint, serve
from trainsys.elastic.links import Link, Links
from trainsys.elastic.messages import Beat, StopWanted, Verdict

pytestmark = pytest.mark.alone


@pytest.fixture
def admitted() -> Iterator[tuple[Endpoint, list[Connection]]]:
    """An open endpoint, and whom it let in."""
    links: list[Connection] = []
    endpoint = Endpoint("127.0.0.1", 0)
    serve(endpoint.socket, endpoint.rendezvous.authkey, links.append)
    yield endpoint, links
    endpoint.close()


def test_who_says_nothing_keeps_nobody_out(admitted: tuple[Endpoint, list[Connection]]) -> None:
    endpoint, links = admitted
    with socket.create_connection(endpoint.rendezvous.control):  # type: ignore[arg-type]
        time.sleep(0.1)
        with Client(endpoint.rendezvous.control, authkey=endpoint.rendezvous.authkey) as ours:
            assert eventually(lambda: len(links) == 1, 5)
            ours.send("hello")
            assert links[0].recv() == "hello"


def test_a_closed_endpoint_frees_its_ports() -> None:
    endpoint = Endpoint("127.0.0.1", 0)
    port = endpoint.rendezvous.store[1]
    endpoint.close()
    again = Endpoint("127.0.0.1", port)
    again.close()
    Endpoint("127.0.0.1", port).close()


def test_another_key_is_not_let_in(admitted: tuple[Endpoint, list[Connection]]) -> None:
    endpoint, links = admitted
    with pytest.raises(mp.AuthenticationError):
        Client(endpoint.rendezvous.control, authkey=b"another key")
    assert links == []


def test_beats_are_heard_and_messages_passed_on() -> None:
    links = Links(tick_s=0.5)
    ours, theirs = Pipe()
    links.connected(theirs)
    ours.send(Beat())
    ours.send(StopWanted())
    arrived = links.receive()
    assert arrived is not None
    link, message = arrived
    assert isinstance(message, StopWanted)
    ours.close()
    assert links.receive() == (link, None)
    assert links.receive() is None


def test_silence_counts_only_while_this_process_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    links, link = Links(tick_s=0.02), Link(Pipe()[0])
    for _ in range(60):  # 1.2 s in small turns
        now += 0.02
        silent = links.silent([link], limit_s=1.0)
    assert silent == [link]
    link.heard = now
    now += 30.0  # the whole machine was suspended
    assert links.silent([link], limit_s=1.0) == []
    for _ in range(60):
        now += 0.02
        silent = links.silent([link], limit_s=1.0)
    assert silent == [link]


def test_what_fails_in_another_thread_is_raised_by_the_main_one() -> None:
    client = ControlClient.__new__(ControlClient)  # connected to nobody: a lost manager would end this process
    client._inbox, client.epoch = queue.Queue(), 0
    threading.Timer(0.05, client.fail, [AssertionError("half a message")]).start()
    with pytest.raises(AssertionError, match="half a message"):
        client.expect(Verdict)
