"""The command line's verbs, one file each.

No verb imports another's. Begin with ``run``.
"""
