"""Recorded calls, and warming: compiling them ahead of time.

It calls no op. Begin with ``workload``.
"""
