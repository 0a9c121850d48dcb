"""Keys: schema, key, guards, patterns, decline rules.

It is pure: no files, no compiler, no dispatcher. Begin with ``kernel_key``.
"""
