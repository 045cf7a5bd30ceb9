"""Sequence parallelism of linear attention: contiguous parts, of which each needs one state from those before it.

A method of scanning is one file and one line below.
"""

from trainsys.parallel.sequence.linear.all_scan import MakeMethod, for_link
from trainsys.parallel.sequence.linear.lasp import lasp
from trainsys.parallel.sequence.linear.lasp2 import lasp2, lasp2_direct

SCANS: dict[str, MakeMethod] = {
    "all_scan": for_link,
    "lasp": lambda link: lasp,
    "lasp2": lambda link: lasp2,
    "lasp2_direct": lambda link: lasp2_direct,
}
