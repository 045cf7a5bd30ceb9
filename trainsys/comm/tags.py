"""Tags of messages between ranks of one group, so that no two exchanges that can be under way meet.

A channel has 2^24 tags. Buckets, boundaries and transitions use numbers below `BASE`, in groups of their own.
"""

BASE = 1 << 29


def channel(number: int) -> int:
    """The first tag of a channel, 0 to 15."""
    assert 0 <= number < 16, number
    return BASE | number << 24


EXPERTS, SCANS, AGREEMENT, STATISTICS, HEADS = map(
    channel, range(11, 16)
)  # below: flows (`flow.py`), by their channels
