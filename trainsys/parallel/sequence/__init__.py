"""Context parallelism. A method of attention over a cut sequence is one file and one line below."""

from trainsys.parallel.sequence.all_gather import attend as all_gather
from trainsys.parallel.sequence.context import Attend

METHODS: dict[str, Attend] = {"all_gather": all_gather}
