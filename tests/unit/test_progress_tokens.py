"""A token speaks for one pod, if the API server says so; its answer is remembered for a minute and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from finetune_operator.cluster.client import TOKEN_REVIEWS, ClusterError, Resource
from finetune_operator.progress.pods import PodIdentity, identify_pod
from finetune_operator.progress.sources import REVIEWS_BURST
from finetune_operator.progress.tokens import (
    CACHE_SECONDS,
    REFRESH_SECONDS,
    REVIEWS_AT_ONCE,
    Throttled,
    TokenReviewer,
    bearer_token,
)
from virtual_time import run_virtually

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
        self.seconds = 0.0
        """How long an answer takes."""
        self.most_at_once = self._at_once = 0

    async def post(self, resource: Resource, body: Mapping[str, Any]) -> Mapping[str, Any]:
        assert resource == TOKEN_REVIEWS
        self.asked.append(body)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        if self.seconds:
            await asyncio.sleep(self.seconds)
        self._at_once -= 1
        if self.status is None:
            raise ClusterError("no answer")
        return {"status": self.status}


class Bed:
    def __init__(self, status: dict[str, Any] | None) -> None:
        self.seconds = 0.0
        self.reviews = Reviews(status)
        self.reviewer = TokenReviewer(self.reviews, AUDIENCE, identify_pod, clock=lambda: self.seconds)

    def identify(self, text: str = "a token", address: str | None = None) -> PodIdentity | None:
        return asyncio.run(self.reviewer.identify(text, address))


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


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer a.b-c", "a.b-c"), ("", ""), ("Bearer", ""), ("Bearer ", ""), ("Basic a", ""), ("Bearer \udcff", "")],
)
def test_a_token_is_what_follows_its_scheme_and_is_ascii(header: str, token: str) -> None:
    assert bearer_token(header) == token


def test_an_empty_answer_is_nobody() -> None:
    assert Bed({}).identify() is None


@pytest.mark.parametrize("status", [answer(), answer(authenticated=False)], ids=["valid", "invalid"])
def test_an_answer_is_remembered_for_a_while_and_no_longer(status: dict[str, Any]) -> None:
    bed = Bed(status)
    first = bed.identify()
    bed.seconds = REFRESH_SECONDS[0] - 1
    assert bed.identify() == first
    assert len(bed.reviews.asked) == 1
    bed.seconds = CACHE_SECONDS
    bed.reviews.status = answer(authenticated=False)
    assert bed.identify() is None
    assert len(bed.reviews.asked) == 2


def reporting(bed: Bed, until: float) -> list[PodIdentity | None]:
    """A pod that reports every five seconds, and a second for what that sets off."""

    async def report() -> list[PodIdentity | None]:
        found = []
        while bed.seconds < until:
            before = len(bed.reviews.asked)
            found.append(await bed.reviewer.identify("a token"))
            assert not found[1:] or found[-1] is None or len(bed.reviews.asked) == before, "no report waits for it"
            await asyncio.sleep(0)
            bed.seconds += 5
        return found

    return asyncio.run(report())


def test_a_token_in_use_is_reviewed_about_once_a_minute_and_no_report_waits_for_it() -> None:
    bed = Bed(answer())
    assert reporting(bed, 3600) == [POD] * 720
    assert 51 <= len(bed.reviews.asked) <= 72
    assert not bed.reviewer._under_way


def test_a_token_that_is_no_longer_valid_is_noticed_while_it_is_in_use() -> None:
    bed = Bed(answer())
    assert reporting(bed, 30) == [POD] * 6
    bed.reviews.status = answer(authenticated=False)
    found = reporting(bed, 120)
    assert found[0] == POD
    assert found[-1] is None
    assert found.index(None) * 5 + 30 <= REFRESH_SECONDS[1] + 5


def test_an_outage_is_bridged_for_as_long_as_an_answer_is_good() -> None:
    bed = Bed(answer())
    assert bed.identify() == POD
    bed.reviews.status = None
    assert reporting(bed, CACHE_SECONDS) == [POD] * 18
    with pytest.raises(ClusterError):
        bed.identify()
    bed.reviews.status = answer()
    assert bed.identify() == POD


def test_the_tokens_of_jobs_that_start_together_are_not_reviewed_together_for_ever() -> None:
    bed = Bed(answer())

    async def report() -> list[int]:
        asked = []
        for second in range(600):
            bed.seconds = second
            before = len(bed.reviews.asked)
            for number in range(200):
                await bed.reviewer.identify(f"token-{number}", f"10.0.0.{number}")
            await asyncio.sleep(0)
            asked.append(len(bed.reviews.asked) - before)
        return asked

    asked = asyncio.run(report())
    assert asked[0] == 200
    assert max(asked[300:]) < 20  # evenly it were 200 / 60


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


def flood(bed: Bed, count: int, address: Callable[[int], str]) -> int:
    """Try so many different tokens; returns how many were throttled."""

    async def tries() -> int:
        throttled = 0
        for number in range(count):
            try:
                await bed.reviewer.identify(f"junk-{number}", address(number))
            except Throttled:
                throttled += 1
        return throttled

    return asyncio.run(tries())


def test_tokens_of_no_worth_from_one_address_cost_few_reviews_and_harm_no_other() -> None:
    bed = Bed(answer())
    assert bed.identify("good", "10.0.0.1") == POD
    bed.reviews.status = answer(authenticated=False)
    assert flood(bed, 1000, lambda _: "10.0.0.1") == 1000 - REVIEWS_BURST
    assert len(bed.reviews.asked) == 1 + REVIEWS_BURST
    bed.reviews.status = answer()
    assert bed.identify("another good one", "10.0.0.2") == POD
    bed.seconds = CACHE_SECONDS  # what was valid once may be asked again, also from an address with a bad neighbour
    assert bed.identify("good", "10.0.0.1") == POD


def test_the_same_bad_token_costs_few_reviews() -> None:
    bed = Bed(answer(authenticated=False))
    for second in range(int(5 * CACHE_SECONDS)):
        bed.seconds = second
        assert bed.identify("expired") is None
    assert len(bed.reviews.asked) == 5


def test_good_tokens_cost_an_address_nothing() -> None:
    bed = Bed(answer())
    assert flood(bed, 1000, lambda _: "10.0.0.1") == 0


def test_a_thousand_jobs_that_start_together_behind_one_address_are_all_heard() -> None:
    bed = Bed(answer())
    bed.reviews.seconds = 1.0

    async def reports(clock: object) -> list[PodIdentity | None]:
        return await asyncio.gather(*(bed.reviewer.identify(f"token-{number}", "10.0.0.1") for number in range(1000)))

    assert run_virtually(reports) == [POD] * 1000
    assert bed.reviews.most_at_once == REVIEWS_AT_ONCE


def test_an_outage_costs_an_address_nothing() -> None:
    bed = Bed(None)
    for number in range(2 * REVIEWS_BURST):
        with pytest.raises(ClusterError):
            bed.identify(f"token-{number}")


def test_many_at_once_are_no_way_around_the_limit() -> None:
    bed = Bed(answer(authenticated=False))

    async def tries() -> list[PodIdentity | BaseException | None]:
        some = (bed.reviewer.identify(f"junk-{number}", "10.0.0.1") for number in range(200))
        return await asyncio.gather(*some, return_exceptions=True)

    answers = asyncio.run(tries())
    assert sum(isinstance(each, Throttled) for each in answers) == 200 - REVIEWS_BURST


@pytest.mark.parametrize(
    ("one", "another", "is_the_same"),
    [
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("no address", "no address", True),
    ],
)
def test_all_addresses_of_one_machine_are_one(one: str, another: str, is_the_same: bool) -> None:
    bed = Bed(answer(authenticated=False))
    flood(bed, REVIEWS_BURST, lambda _: one)
    if is_the_same:
        with pytest.raises(Throttled):
            bed.identify("junk", another)
    else:
        assert bed.identify("junk", another) is None


def test_tokens_of_no_worth_take_no_memory_for_ever_and_push_out_neither_newer_nor_good_ones() -> None:
    bed = Bed(answer())
    bed.identify("good")
    bed.reviews.status = answer(authenticated=False)
    assert flood(bed, 25_000, lambda number: f"10.0.{number // 250}.{number % 250}") == 0
    assert len(bed.reviewer._invalid) <= 5_000
    before = len(bed.reviews.asked)
    assert bed.identify("junk-24999") is None
    assert bed.identify("good") == POD
    assert len(bed.reviews.asked) == before
