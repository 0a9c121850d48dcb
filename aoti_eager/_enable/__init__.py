"""Whole scripts faster without a change: the op set, chosen by measurement, and its switch.

It imports from most rooms. Begin with ``scripts``.
"""
