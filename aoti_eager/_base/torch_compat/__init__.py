"""Every private torch name that the package uses, each with the reason it has no public twin.

There is one file for each area. Outside of this folder, only
``_compile_worker/inductor_compat.py`` spells private names: those of ``torch._inductor``, which
only the compile worker imports. Releases differ in their names:
``_base/checked_torch.py`` has the releases.
"""
