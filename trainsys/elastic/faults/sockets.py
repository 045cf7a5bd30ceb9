"""Which of this process's connections lead to which rank, as far as the kernel of one machine knows both ends."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from trainsys.comm import sockets
from trainsys.comm.communicator import Communicator
from trainsys.elastic.faults.nemesis import NothingThere


def shut(comm: Communicator, peer: int, pid: int, how: int) -> int:
    """Shut down this rank's connections to `peer` in all groups. Returns how many.

    Args:
        pid: of the peer's process.
        how: ``socket.SHUT_RDWR`` or ``socket.SHUT_WR``.

    Raises:
        NothingThere: none is open.
    """
    theirs = _inodes(pid)
    ends = _other_ends()
    done = 0
    for group in comm.groups:
        for entry in group.sockets if peer in group.ranks else ():
            if ends.get(entry[1]) in theirs:
                done += sockets.shut(entry, how)
    if not done:
        raise NothingThere(f"there is no open connection to rank {peer}")
    return done


def _inodes(pid: int) -> set[int]:
    """Of a process's sockets."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
            if match:
                found.add(int(match[1]))
    return found


def _other_ends() -> dict[int, int]:
    """Inode of a connected socket -> that of its other end, where that is on this machine."""
    inode_of = {}
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for row in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                fields = row.split()
                inode_of[fields[1], fields[2]] = int(fields[9])
    return {inode: inode_of[far, near] for (near, far), inode in inode_of.items() if (far, near) in inode_of}
