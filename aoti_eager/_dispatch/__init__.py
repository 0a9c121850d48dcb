"""One op's calls: lookup, hit, miss, decline, and the comparison with the original.

It decides which kernel serves a call; it registers nothing. Begin with ``kernel_cache``.
"""
