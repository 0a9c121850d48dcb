"""Every private torch name that the package uses, each with the reason it has no public twin.

One file an area. Outside of this folder, ``_compile_worker/inductor_compat.py`` alone spells
private names: those of ``torch._inductor``, which only the compile worker imports. All were checked
on torch 2.13.0.
"""
