"""AOTInductor's libraries: containers, constants, ``ModelContainerRunner``.

It knows nothing of keys or of the cache. Begin with ``runner``.
"""
