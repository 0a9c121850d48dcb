"""Users' functions as data: source, values, constants, gradients.

It never runs or pickles a function of the user's. Begin with ``description``.
"""
