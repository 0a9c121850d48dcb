"""What ``doctor`` says of the tiers: whether they are there, and whether kernels can come."""

from __future__ import annotations

import warnings

from .._base.tier_names import TierName
from .._bundles.signing import own_public_key
from .._compile_service import cache_context
from .._remote.remote_store import RemoteStore
from .._store.environment import current_environment
from .._store.tiers import LocalTier
from ..config import config
from ..errors import AotiEagerError, AotiEagerWarning
from .finding import NOTE, OK, PROBLEM, Finding


def tier_findings() -> list[Finding]:
    """Return a finding for each tier; none if there are no tiers."""
    tiers = cache_context.current().tiers
    if tiers is None:
        return []
    return [*map(_directory, tiers.local), *map(_place, tiers.remote)]


def _directory(tier: LocalTier) -> Finding:
    try:
        with tier.store.below() as directory:
            is_there = directory is not None
        has_entries = tier.store.has_entries(current_environment())
    except AotiEagerError as error:
        return Finding("tier", PROBLEM, f"{tier.name}: {error}", "make it a directory of yours")
    if not is_there and not tier.is_writable:
        return Finding("tier", NOTE, f"{tier.name}: there is no such directory", "make it, or not")
    if not has_entries and not tier.is_writable:
        return Finding(
            "tier",
            NOTE,
            f"{tier.name}: has no entries of this torch and these settings",
            "fill it with this torch: AOTI_EAGER_CACHE_DIR=... aoti-eager run --wait SCRIPT",
        )
    return Finding("tier", OK, tier.name)


def _place(name: TierName) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AotiEagerWarning)  # The finding says it.
            remote = RemoteStore(name)
            found = remote.objects(f"v1/{current_environment().digest[:16]}")
    except AotiEagerError as error:
        advice = "look at the URL and at fsspec's settings and credentials for it"
        return Finding("tier", PROBLEM, f"{name.text}: {error}", advice)
    message = f"{name.text}: {len(found)} kernels of this torch and these settings"
    if name.trust == "signed" and not config.trusted_keys and own_public_key() is None:
        return Finding(
            "tier",
            NOTE,
            f"{message}, and none can be taken: you trust nobody's signatures",
            "name the signer's key in trusted_keys, or make your own: aoti-eager keygen",
        )
    return Finding("tier", OK, message)
