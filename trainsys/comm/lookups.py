"""Look-ups of names that c10d makes by itself.

It asks the resolver for the name of every address that it connects to, for its log. An answer that gets lost costs the
resolver's five seconds, in the middle of building process groups; asked again each second, it costs one.
"""

import os


def retry_soon() -> None:
    """Have this process and its children ask again after a second, as long in all as before; the user's word counts."""
    os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:5")
