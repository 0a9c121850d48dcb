"""The worker's program: lower, compile, try, measure.

Nobody imports it: it is started, as ``main``. Begin with ``jobs``.
"""
