"""Imported once by the fork server, so that every rank process starts with all of it.

torch loads some 200 modules the first time a module is built on the meta device (0.6 s); better here than in the first
step after a failure.

Nothing of it is ever garbage. A collection that looks at it all takes 0.06 s alone on a core, longer where each rank
must first copy the pages that it writes marks on; frozen, no collection does.
"""

import gc

import numpy.random  # noqa: F401
import torch
import torch.distributed.checkpoint
import torch.nn.attention.bias  # for sequences that are cut

import trainsys.elastic.manage
import trainsys.elastic.worker  # noqa: F401
from trainsys.elastic.bonds import die_with_parent
from trainsys.elastic.fingerprints import code_print

with torch.device("meta"):
    torch.nn.Embedding(1, 1)

code_print()
gc.collect()
gc.freeze()
die_with_parent()  # by itself the fork server stays until its last child has gone, and a stopped one never goes
