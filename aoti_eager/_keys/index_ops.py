"""Ops that raise for an index out of range, and whose compiled code raises for the same indices.

A library's code checks each index before it is used, and a check that fails makes the run fail in
order (``_compile_worker.index_checks``); then the original runs and raises its own error. This
serves functions, tapes, and the ops that read by indices and write to no argument. Other ops of
``declines.DATA_DEPENDENT_ERRORS`` stay declined: compiled code accepts what the original refuses,
for example negative numbers in ``index_copy``.
"""

from __future__ import annotations

# By base name. ``index`` counts negative numbers from the end in both, the others refuse them in
# both.
INDEX_OPS = frozenset(
    "embedding gather index scatter scatter_ scatter_add scatter_add_".split()  # noqa: SIM905
)

# A tape's calls of these are traced as others' (``_compile_worker.traced_tape``): by themselves,
# compiled code would accept negative numbers.
TAPE_INDEX_OPS = frozenset({"index_add", "index_add_", "index_select"})

# Ops that are served by themselves. After a run that failed the original runs, so none may have
# written to an argument: only overloads that write to none are meant. ``scatter`` and
# ``scatter_add`` are left out: with an index that is there twice, the order of threads decides.
SINGLE_INDEX_OPS = frozenset(
    "embedding gather index index_select nll_loss_forward nll_loss2d_forward".split()  # noqa: SIM905
)


def reads_by_index(op: str, *, mutates: bool) -> bool:
    """Return whether an op of torch's is served although it raises for an index out of range.

    Args:
        op: Qualified name of the overload, ``aten::index.Tensor``.
        mutates: Whether the overload writes to an argument.
    """
    namespace, _, name = op.partition("::")
    return namespace == "aten" and name.partition(".")[0] in SINGLE_INDEX_OPS and not mutates
