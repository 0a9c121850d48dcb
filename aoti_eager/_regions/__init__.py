"""Whole modules and functions, each served by one kernel library: ``fuse``.

Never imports a tracer or a compiler: the script's process records what eager does, no more.
Begin with ``fuse``, then ``region``: one call of a region.
"""
