"""trainsys: train large models on clusters whose shape keeps changing."""

__version__ = "0.1.0"
