"""Offline reinforcement learning for robots with autoregressive Q-functions (Q-Transformer, arXiv 2309.10150)."""

__version__ = "0.1.0"
