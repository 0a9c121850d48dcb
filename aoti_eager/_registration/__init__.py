"""What ``register``, ``impl`` and ``custom_op`` put into the dispatcher.

It decides nothing about a call. Begin with ``registry``.
"""
