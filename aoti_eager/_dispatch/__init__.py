"""One op's calls: lookup, hit, miss, decline; the table; comparison with the original.

Never imports the compiler, and never starts a process by itself. What serves a call is decided in
``miss``, ``rare``, ``asking``, ``pending``, ``decision``, ``candidate`` and ``kernel_cache`` only.
Begin with ``python_kernel``, then ``unserved_calls``, then ``miss``.
"""
