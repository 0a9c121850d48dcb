"""Compiled gradients at the autograd key.

It serves ops of users' functions alone. Begin with ``kernel``.
"""
