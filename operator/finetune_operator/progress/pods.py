"""Which pod a token's user is: only a token that is bound to a pod speaks for one."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.progress.tokens import User

_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_ACCOUNT_PREFIX = "system:serviceaccount:"


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """The pod that a token was made for."""

    namespace: str
    name: str
    uid: str


async def identify_pod(user: User) -> PodIdentity | None:
    """The pod, or None when the token is bound to none."""
    names, uids = user.extra.get(_POD_NAME, ()), user.extra.get(_POD_UID, ())
    if not user.name.startswith(_ACCOUNT_PREFIX) or len(names) != 1 or len(uids) != 1:
        return None
    namespace = user.name.removeprefix(_ACCOUNT_PREFIX).partition(":")[0]
    return PodIdentity(namespace, names[0], uids[0])
