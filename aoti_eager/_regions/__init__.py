"""Whole modules and functions, each served by one kernel library: ``fuse``.

The script's process records what eager does, and never imports a tracer or a compiler.
Begin with ``fuse``, then ``region``: one call of a region.
"""
