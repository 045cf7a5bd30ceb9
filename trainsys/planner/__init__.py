"""Which layout to train with, and what it will cost. Never imports torch or starts a process group."""
