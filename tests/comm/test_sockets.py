"""Whose a socket is does not depend on who else looks at the same time."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack

from trainsys.comm.sockets import connected_sockets, connections, listening


def test_threads_that_look_at_once_see_each_socket_once() -> None:
    over, counts = threading.Event(), set[int]()
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = first.getsockname()[:2]
        for _ in range(4):
            stack.enter_context(socket.create_connection(address))
            stack.enter_context(first.accept()[0])

        def look() -> None:
            while not over.is_set():
                counts.add(len(connections([address], [])))
                connected_sockets()

        threads = [threading.Thread(target=look) for _ in range(2)]
        stack.callback(over.set)
        for thread in threads:
            thread.start()
        for _ in range(300):
            server, ends = listening(lambda: socket.create_server(("127.0.0.1", 0)))
            with server:
                assert ends == (server.getsockname(),)
        over.set()
        for thread in threads:
            thread.join()
    assert counts == {4}
