"""Keys: schema, key, guards, patterns, and what must decline.

It is pure: no files, no compiler, no dispatcher. Begin with ``kernel_key``.
"""
