"""The connected sockets of this process, and how to tell whose they are: a group ends its own, and nothing else.

A connection belongs to a group if it was accepted where the group listens here or leads to where a peer listens for it.
That holds whatever else connects meanwhile: another group, a store's client, the control connection.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
Socket = tuple[int, int]  # file descriptor and inode; both, since numbers are used again
End = tuple[str, int]  # address and port
_LOCAL_SEND_BUFFER = 256 << 10  # bytes; measured: 64 MiB to 4 ranks took 14 % less than with the kernel's 4 MiB
_making = threading.Lock()  # of a listener: one at a time, none waits for a peer
_looking = threading.Lock()


def connected_sockets() -> set[Socket]:
    """(fd, inode) of this process's connected internet sockets; listeners and unix pairs are left out."""
    return {entry for entry, listens in _each(_listens).items() if not listens}


def listening(make: Callable[[], T]) -> tuple[T, tuple[End, ...]]:
    """What `make` returns, and where this process listens since."""
    with _making:
        before = _each(_listener)
        made = make()
        new = [end for entry, end in _each(_listener).items() if end is not None and entry not in before]
    return made, tuple(new)


def connections(own: Collection[End], peers: Collection[End]) -> frozenset[Socket]:
    """The connections that were accepted at one of `own` or lead to one of `peers`."""
    return frozenset(entry for entry, (near, far) in _each(_ends).items() if near in own or far in peers)


def to_port(port: int) -> set[Socket]:
    """The connections to a port of any host."""
    return {entry for entry, (_, far) in _each(_ends).items() if far[1] == port}


def _each(look: Callable[[socket.socket], T]) -> dict[Socket, T]:
    """What `look` finds at each of this process's internet sockets; it is left out where that raises OSError.

    One thread at a time: another would take the duplicate that is looked at for one socket more.
    """
    found = {}
    with _looking:
        for name in os.listdir("/proc/self/fd"):
            fd = int(name)
            with suppress(OSError):  # closed meanwhile
                info = os.fstat(fd)
                if not stat.S_ISSOCK(info.st_mode):
                    continue
                with socket.socket(fileno=os.dup(fd)) as sock:
                    if sock.family in (socket.AF_INET, socket.AF_INET6):
                        found[fd, info.st_ino] = look(sock)
    return found


def _ends(sock: socket.socket) -> tuple[End, End]:
    """Near and far; a listener has no far one, nor has who is not connected any more. Raises OSError."""
    return _end(sock.getsockname()), _end(sock.getpeername())


def _listener(sock: socket.socket) -> End | None:
    return _end(sock.getsockname()) if _listens(sock) else None


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _end(name: tuple[str, int] | tuple[str, int, int, int]) -> End:
    """Without the interface of a link-local address, which each host calls otherwise."""
    return name[0].partition("%")[0], name[1]


def bound_if_local(entry: Socket) -> None:
    """Within one host let only so much lie in the kernel that the reader finds it in the cache."""
    with suppress(OSError), socket.socket(fileno=os.dup(entry[0])) as sock:  # it may have ended already
        if sock.getsockname()[0] == sock.getpeername()[0]:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LOCAL_SEND_BUFFER)


def shut(entry: Socket, how: int = socket.SHUT_RDWR) -> bool:
    """End a connection for whoever is blocked on it, here and on its peer. Returns whether it was there still."""
    fd, inode = entry
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:  # from here on nothing else can have the number
            if os.fstat(sock.fileno()).st_ino != inode:
                return False
            sock.shutdown(how)
            return True
    except OSError:
        return False  # already gone
