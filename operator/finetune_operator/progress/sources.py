"""Slows who sends tokens that are not valid: each costs the API server a review."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

from finetune_operator.progress.limiter import RateLimiter

REVIEWS_PER_SECOND = 1.0
REVIEWS_BURST = 50
RELAYED_PER_SECOND = 0.2
RELAYED_BURST = 10
"""A replica that passes reports on lets less through, as the leader sees its address for all of them."""


class Sources:
    """A budget of bad tokens for each address; good ones cost nothing."""

    def __init__(self, limiter: RateLimiter | None = None) -> None:
        self._limiter = limiter or RateLimiter(REVIEWS_PER_SECOND, REVIEWS_BURST)

    def may_try(self, address: str | None) -> bool:
        """Whether a token that is not known may be tried now; it counts as bad until `was_good`."""
        return self._limiter.allows(_network_of(address))

    def has_left(self, address: str | None) -> bool:
        """Whether there is anything left of the budget now."""
        return self._limiter.has_left(_network_of(address))

    def was_good(self, address: str | None) -> None:
        """The token that was tried is a valid one."""
        self._limiter.give_back(_network_of(address))


def _network_of(address: str | None) -> str:
    """The address, or the network that one machine has the addresses of."""
    try:
        found = ip_address(address or "")
    except ValueError:
        return address or ""
    if not isinstance(found, IPv6Address):
        return str(found)
    return str(found.ipv4_mapped or ip_network((found, 64), strict=False))
