"""The reasons for which a region stops: then the original forward runs, and its children are tried.

docs/regions.md explains every reason to a user; a test checks that both lists are the same.
"""

from __future__ import annotations

STOPS: dict[str, str] = {
    "unsupported_argument": "an argument is no tensor, number or string, nor a list of these",
    "unsupported_result": "a result is no tensor, number or string, nor in a container that "
    "torch.utils._pytree knows",
    "unknown_tensor": "it reads a tensor that is no argument, parameter, buffer or attribute",
    "data_leaves": "it takes the data of a tensor to Python",
    "python_state": "it reads a clock, draws random numbers in Python, sets a seed, or has an "
    "iterator",
    "side_effect": "it prints, writes to a file, changes a global name or an outer function's, or "
    "a tensor that it makes is kept somewhere",
    "writes_argument": "it changes a list or dict that is an argument, or returns it, or gives an "
    "argument other memory",
    "writes_attribute": "it changes an attribute of a module, or of an object that a module has",
    "overridden": "an op's kernel was replaced by somebody, and the compile worker has torch's own",
    "large_attribute": "it reads an attribute with more than 256 items, those within items "
    "included, or attributes of objects with more than 2,048 values",
    "argument_is_state": "an argument is a parameter, a buffer or an attribute of its own",
    "hooks": "a module within it has hooks, or all modules have",
    "unsupported_module": "a module within it is TorchScript's, or is not built yet",
    "raises": "its calls raise an error, again and again",
    "result_is_shared": "a result shares memory with an argument, a parameter or another result, "
    "or is a list or dict that the module has",
    "result_needs_gradients": "a result requires gradients, in a call that asks for none",
    "too_small": "it is a single call of an op",
    "too_large": "it makes more calls of ops, has more modules and tensors, or keeps more memory, "
    "than a recording holds",
    "tape_differs": "two calls with equal arguments made different calls of ops",
    "not_by_ops": "its results are not what its calls of ops give",
    "too_many_signatures": "its arguments or attributes keep changing: no more kinds of calls are "
    "recorded (region_cap)",
    "replaced": "its forward was replaced by somebody else",
    "not_recorded": "it could not be recorded",
}


# What a forward may do in its first calls alone: to warn, to make a mask and keep it.
MAY_PASS = frozenset({"side_effect", "writes_attribute"})
# Reasons that may go away: hooks are removed, dropout is switched off, a kernel of torch's is put
# back. All other reasons lie in the code.
MAY_GO = MAY_PASS | {
    "argument_is_state",
    "hooks",
    "mutates_constant",
    "not_recorded",
    "overridden",
    "python_state",
    "raises",
    "random",
    "result_needs_gradients",
    "tape_differs",
    "too_many_signatures",
    "undeclared_write",
    "unsupported_device",
}
# Reasons for which a library is refused at this moment, and may be made or found later, at no cost
# to anybody. A compile that took too long, or whose worker died, is not tried again: it may end so
# once more.
OF_THE_MOMENT = frozenset(
    {
        "float_mode",
        "library_unloadable",
        "locked",
        "no_compiler",
        "not_in_cache",
        "queue_full",
        "store_unwritable",
    }
)
# Reasons of a region that is a single call of an op: no library can save anything.
HOPELESS = frozenset({"too_small", "no_kernel_of_its_own"})


class Stop(Exception):
    """A region is given up.

    Attributes:
        reason: One of ``STOPS``, or a decline reason of ``_keys.declines.REASONS``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
