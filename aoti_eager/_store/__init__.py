"""The cache directory: entries, failures, verdicts and the kept queue.

It never compiles and never loads a library. Begin with ``store``.
"""
