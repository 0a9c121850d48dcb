"""Which liberties the C++ compiler may take with floating-point numbers. Pure.

Inductor's own list begins with the flags of ``-ffast-math`` and takes some back. What each flag
allows, and why it stays or goes:

- ``-fno-trapping-math`` stays: no exception flag is read. Torch itself is compiled with it.
- ``-funsafe-math-optimizations`` goes, also where a setting asks for it: it reorders sums
  (``-fassociative-math``) and turns divisions into products (``-freciprocal-math``). Some
  compilers link code with it that flushes denormals to zero (``crtfastmath.o``).
- ``-ffinite-math-only`` goes: NaN and infinities are values.
- ``-fno-signed-zeros`` goes: ``atan2(0 - x, -1)`` would flip by two pi.
- ``-fno-math-errno`` is absent: Inductor leaves it out, because of pairs of calls that it merges.
- ``-fno-rounding-math``, ``-fno-signaling-nans``: the compiler's defaults, as in torch's build.
- ``-ffp-contract`` says whether a product and a sum become one instruction that rounds once.
  Within one op it is on, as in torch's build (GCC's default): results are nearer to eager's.
  Across ops it is off: in a function of the user's, ``x * x - y * y`` must be zero if x equals y.
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
