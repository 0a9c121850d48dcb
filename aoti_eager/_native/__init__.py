"""The C++ hit path: its sources in ``csrc/``, its build and its bindings.

It knows the words of keys and makes no decisions about ops. Begin with ``op_kernel``, then
``csrc/op.h``.
"""
