"""Which liberties the C++ compiler may take with floating-point numbers. Pure.

Inductor's own list begins with those of ``-ffast-math`` and takes some back. What each one allows,
and why it stays or goes:

- ``-fno-trapping-math`` stays: no exception flag is read. Torch itself is compiled with it.
- ``-funsafe-math-optimizations`` goes, also where a setting asks for it: it reorders sums
  (``-fassociative-math``) and turns divisions into products (``-freciprocal-math``). Some
  compilers link code with it that flushes denormals to zero (``crtfastmath.o``).
- ``-ffinite-math-only`` goes: NaN and infinities are values.
- ``-fno-signed-zeros`` goes: ``atan2(0 - x, -1)`` would flip by two pi.
- ``-fno-math-errno`` is not there: Inductor leaves it out, for pairs of calls it merges.
- ``-fno-rounding-math``, ``-fno-signaling-nans``: the compiler's defaults, as torch's.
- ``-ffp-contract`` says whether a product and a sum become one instruction that rounds once.
  Within one op torch's compiler does that (GCC's default), and results are nearer to eager's so.
  Across ops it is off: in a function of the user's, ``x * x - y * y`` must be zero for equal ones.
"""

from __future__ import annotations

CONTRACT = "cpp.enable_floating_point_contract_flag"


def float_flags(contract: str) -> list[str]:
    """Return the compiler's options, without their dash.

    Args:
        contract: ``off``, ``on`` or ``fast``.
    """
    return ["fno-trapping-math", "fno-finite-math-only", f"ffp-contract={contract}"]


def contraction(is_function: bool) -> dict[str, str]:
    """Return the setting of Inductor for one op, or for a function that calls several."""
    return {CONTRACT: "off" if is_function else "fast"}
