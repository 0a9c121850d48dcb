"""The user's side of compiling: queue, worker processes, toolchain.

It knows requests and replies, and nothing of ops or tables. Begin with ``cache_context``.
"""
