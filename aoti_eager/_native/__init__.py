"""The C++ hit path: its sources in ``csrc/``, its build and its bindings.

It knows words of keys, and nothing of ops or policy. Begin with ``op_kernel``, then ``csrc/op.h``.
"""
