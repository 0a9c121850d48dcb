"""The worker's program: lower, compile, try, measure.

No room imports this one: a worker process starts ``main``. Begin with ``jobs``.
"""
