"""A token speaks for one pod, if the API server says so; its answer is remembered for a minute and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from finetune_operator.cluster.client import TOKEN_REVIEWS, ClusterError, Resource
from finetune_operator.progress.tokens import CACHE_SECONDS, PodIdentity, TokenReviewer

AUDIENCE = "finetune-operator.io/progress"
POD = PodIdentity("team-a", "router-0-x", "pod-uid")


def answer(**changes: Any) -> dict[str, Any]:
    """A TokenReview's status for a token of the pod."""
    extra = {
        "authentication.kubernetes.io/pod-name": [POD.name],
        "authentication.kubernetes.io/pod-uid": [POD.uid],
    }
    user = {"username": "system:serviceaccount:team-a:default", "extra": extra}
    return {"authenticated": True, "audiences": [AUDIENCE], "user": user, **changes}


class Reviews:
    """Answers as it is told, and keeps what it was asked."""

    def __init__(self, status: dict[str, Any] | None) -> None:
        self.status = status
        self.asked: list[Mapping[str, Any]] = []

    async def post(self, resource: Resource, body: Mapping[str, Any]) -> Mapping[str, Any]:
        assert resource == TOKEN_REVIEWS
        self.asked.append(body)
        if self.status is None:
            raise ClusterError("no answer")
        return {"status": self.status}


class Bed:
    def __init__(self, status: dict[str, Any] | None) -> None:
        self.seconds = 0.0
        self.reviews = Reviews(status)
        self.reviewer = TokenReviewer(self.reviews, AUDIENCE, lambda: self.seconds)

    def identify(self, text: str = "a token") -> PodIdentity | None:
        return asyncio.run(self.reviewer.identify(text))


def test_a_valid_token_names_its_pod() -> None:
    bed = Bed(answer())
    assert bed.identify("secret") == POD
    [review] = bed.reviews.asked
    assert review["spec"] == {"token": "secret", "audiences": [AUDIENCE]}
    assert (review["apiVersion"], review["kind"]) == ("authentication.k8s.io/v1", "TokenReview")


@pytest.mark.parametrize(
    "changes",
    [
        {"authenticated": False},
        {"audiences": ["https://kubernetes.default.svc"]},
        {"audiences": []},
        {"user": {}},
        {"user": {**answer()["user"], "username": "alice"}},
        {"user": {**answer()["user"], "extra": {}}},
        {"user": {**answer()["user"], "extra": {"authentication.kubernetes.io/pod-name": [POD.name]}}},
        {
            "user": {
                **answer()["user"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["a", "b"],
                    "authentication.kubernetes.io/pod-uid": ["u", "v"],
                },
            }
        },
    ],
    ids=["refused", "other audience", "no audience", "no user", "a person", "no pod", "no uid", "two pods"],
)
def test_what_is_no_token_of_a_pod_for_us_is_nobody(changes: dict[str, Any]) -> None:
    assert Bed(answer(**changes)).identify() is None


def test_an_empty_answer_is_nobody() -> None:
    assert Bed({}).identify() is None


@pytest.mark.parametrize("status", [answer(), answer(authenticated=False)], ids=["valid", "invalid"])
def test_an_answer_is_remembered_for_a_minute(status: dict[str, Any]) -> None:
    bed = Bed(status)
    first = bed.identify()
    bed.seconds = CACHE_SECONDS - 1
    assert bed.identify() == first
    assert len(bed.reviews.asked) == 1
    bed.seconds = CACHE_SECONDS
    bed.reviews.status = answer(authenticated=False)
    assert bed.identify() is None
    assert len(bed.reviews.asked) == 2


def test_two_tokens_are_two_questions() -> None:
    bed = Bed(answer())
    bed.identify("one")
    bed.identify("two")
    assert len(bed.reviews.asked) == 2


def test_a_failure_is_told_and_not_remembered() -> None:
    bed = Bed(None)
    with pytest.raises(ClusterError):
        bed.identify()
    bed.reviews.status = answer()
    assert bed.identify() == POD


def test_no_token_is_kept_in_memory() -> None:
    bed = Bed(answer())
    bed.identify("a-very-secret-token")
    assert "a-very-secret-token" not in repr(vars(bed.reviewer))


def test_tokens_of_no_worth_take_no_memory_for_ever_and_push_out_no_newer_one() -> None:
    bed = Bed(answer(authenticated=False))

    async def flood() -> None:
        for number in range(25_000):
            await bed.reviewer.identify(f"junk-{number}")

    asyncio.run(flood())
    assert len(bed.reviewer._known) <= 20_001
    before = len(bed.reviews.asked)
    bed.identify("junk-24999")
    assert len(bed.reviews.asked) == before
