"""Pipelines in which a microbatch visits only some of the stages, on nodes and links that all differ.

After SkipPipe (Blagoev et al. 2025, arXiv:2502.19913). Imports no torch.
"""
