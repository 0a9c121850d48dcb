"""The numerics laboratory: what compiled kernels compute, beside eager and an exact reference.

``python -m tests.numerics`` runs it; ``rule.py`` says what is right, ``families.py`` lists what is
compared with what data, and ``certificates.py`` writes the package's data file.
"""
