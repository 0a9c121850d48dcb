"""Remote tiers: entries behind a URL of fsspec's, taken and given beside the calls.

Begin with ``courier``: the thread that carries kernels. ``remote_store`` makes its requests, and
``transfer`` those of a caller who waits.
"""
