"""Entries in one file: written, signed, checked and taken in elsewhere.

Nothing that a bundle says of itself is believed but its digests. Begin with ``manifest``, the
format, then ``export`` and ``load``.
"""
