"""PyTorch's own operator databases, ``op_db`` and ``foreach_op_db``, run against the originals.

``python -m tests.conformance run --work DIR`` runs units of work, and resumes where it was ended;
``keep --work DIR`` puts what was recorded into ``recorded.jsonl``, and ``table`` makes
docs/coverage.md of that file.

A *unit* is an entry, a dtype and a part. The parts are ``samples`` (the entry's own samples by its
function, in place and with out=, and its error inputs), ``layouts`` (a sample in other layouts and
sizes) and ``gradients``. Each unit runs in two processes: *cold* compiles what is missing, *warm*
is a later process that finds it in the store. Where to begin reading: ``child.py``.
"""
