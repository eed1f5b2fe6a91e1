"""The progress server over real HTTP (its TLS is the integration tests'): who may speak, and what is taken."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from aiohttp.test_utils import TestClient, TestServer

from finetune_api.trainer_status import MAX_BODY_BYTES, report_of
from finetune_api.v1alpha1.status import Phase
from finetune_operator.cluster.client import ClusterError
from finetune_operator.engine.store import Key, Store
from finetune_operator.progress.pods import PodIdentity
from finetune_operator.progress.server import BURST, ProgressServer
from finetune_operator.progress.tokens import Throttled, TokenReviewer
from plan_builders import CHILD_UID, JOB_UID, KEY, NOW, make_child, make_job, make_pod, make_progress
from status_samples import full_status

PATH = f"/v1/{KEY.namespace}/{KEY.name}"
TOKENS = {
    "good": PodIdentity("team-a", "router-0-0", "pod-uid-0"),
    "an earlier pod": PodIdentity("team-a", "router-0-0", "an earlier uid"),
    "another pod": PodIdentity("team-a", "web-server", "pod-uid-0"),
    "another namespace": PodIdentity("team-b", "router-0-0", "pod-uid-0"),
}
BODY = report_of(make_progress(25, loss=0.5), NOW).model_dump_json(by_alias=True, exclude_none=True)


class Reviewer:
    """Knows TOKENS, as the API server would."""

    async def identify(self, token: str, address: str | None) -> PodIdentity | None:
        assert address == "127.0.0.1"
        if token == "outage":
            raise ClusterError("no answer")
        if token == "one of many":
            raise Throttled
        return TOKENS.get(token)


class Bed:
    """A server with one running job."""

    def __init__(self) -> None:
        self.store = Store()
        self.store.put_fine_tune_job(make_job().obj())
        self.store.put_job(make_child().obj())
        self.store.put_pod(make_pod().running().obj())
        self.reported: list[tuple[Key, bool]] = []
        self.counted: Counter[str] = Counter()
        reviewer = cast("TokenReviewer[PodIdentity]", Reviewer())
        self.server = ProgressServer(
            self.store,
            reviewer,
            lambda key, is_first: self.reported.append((key, is_first)),
            lambda code: self.counted.update([code]),
        )
        self.post: Callable[..., Awaitable[tuple[int, str]]]

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            async with TestClient(TestServer(self.server.app())) as client:

                async def post(
                    body: str | bytes = BODY, bearer: str | None = "good", path: str = PATH, **headers: str
                ) -> tuple[int, str]:
                    credentials = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
                    async with client.post(path, data=body, headers={**credentials, **headers}) as answer:
                        return answer.status, (await answer.text())

                self.post = post
                await test()

        asyncio.run(main())


def send(bed: Bed, *arguments: Any, **named: Any) -> tuple[int, str]:
    """One report."""
    answers: list[tuple[int, str]] = []

    async def test() -> None:
        answers.append(await bed.post(*arguments, **named))

    bed.run(test)
    return answers[0]


def test_a_report_of_the_jobs_pod_is_noted() -> None:
    bed = Bed()
    assert send(bed)[0] == 200
    progress = bed.store.progress(KEY)
    assert progress is not None
    assert (progress.step, progress.percent, progress.loss) == (25, 25, 0.5)
    assert bed.reported == [(KEY, True)]
    assert bed.counted == {"200": 1}


def test_only_the_first_report_of_a_job_is_told_to_be_the_first() -> None:
    bed = Bed()

    async def test() -> None:
        for _ in range(3):
            await bed.post()

    bed.run(test)
    assert bed.reported == [(KEY, True), (KEY, False), (KEY, False)]


@pytest.mark.parametrize("token", [name for name in TOKENS if name != "good"])
def test_no_other_pod_may_speak_for_a_job(token: str) -> None:
    bed = Bed()
    code, text = send(bed, bearer=token)
    assert code == 403
    assert "is not a pod of FineTuneJob team-a/router" in text
    assert bed.store.progress(KEY) is None


@pytest.mark.parametrize("path", ["/v1/team-a/other", "/v1/team-b/router"])
def test_a_pod_may_not_speak_for_another_job(path: str) -> None:
    assert send(Bed(), path=path)[0] == 403


@pytest.mark.parametrize(
    "header", [None, "", "good", "Basic good", "Bearer", "Bearer ", "bearer-good"], ids=lambda value: str(value)
)
def test_without_a_bearer_token_nothing_is_taken(header: str | None) -> None:
    named = {} if header is None else {"Authorization": header}
    code, text = send(Bed(), bearer=None, **named)
    assert code == 401
    assert "a bearer token is needed" in text


def test_a_token_that_nobody_knows_is_refused_and_not_repeated() -> None:
    code, text = send(Bed(), bearer="a-secret-of-someone")
    assert code == 401
    assert "a-secret-of-someone" not in text


def test_when_tokens_cannot_be_checked_the_pod_is_told_to_come_again() -> None:
    assert send(Bed(), bearer="outage")[0] == 503


def test_who_tries_many_tokens_is_slowed_and_told_so() -> None:
    code, text = send(Bed(), bearer="one of many")
    assert code == 429
    assert "not valid came from this address" in text


def test_a_report_may_have_64_kib_and_no_more() -> None:
    filler = {"trainerStatus": {"lastUpdatedTime": "2026-01-01T00:00:00Z"}, "ignored": ""}
    spare = MAX_BODY_BYTES - len(json.dumps(filler))
    assert send(Bed(), json.dumps({**filler, "ignored": "x" * spare}))[0] == 200
    assert send(Bed(), json.dumps({**filler, "ignored": "x" * (spare + 1)}))[0] == 413


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "Invalid JSON"),
        ("{", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        ("[]", "object"),
        ("{}", "trainerStatus"),
        ('{"trainerStatus": {}}', "lastUpdatedTime"),
        ('{"trainerStatus": {"lastUpdatedTime": "yesterday"}}', "lastUpdatedTime"),
        ('{"trainerStatus": {"lastUpdatedTime": "2026-01-01T00:00:00"}}', "lastUpdatedTime"),
        ('{"trainerStatus": {"lastUpdatedTime": "2026-01-01T00:00:00Z", "progressPercentage": 101}}', "progressPerc"),
        ('{"trainerStatus": {"lastUpdatedTime": "2026-01-01T00:00:00Z", "metrics": [{"name": ""}]}}', "metrics"),
        ("[" * 5000, "Invalid JSON"),
    ],
)
def test_a_report_that_cannot_be_read_is_refused_with_the_field(body: str | bytes, said: str) -> None:
    bed = Bed()
    code, text = send(bed, body)
    assert code == 400
    assert said in text
    assert bed.store.progress(KEY) is None


def test_numbers_that_are_not_finite_are_absent() -> None:
    bed = Bed()
    metrics = [{"name": name, "value": value} for name, value in (("loss", "nan"), ("grad_norm", "inf"), ("x", "y"))]
    status = {"lastUpdatedTime": "2026-01-01T00:00:00Z", "progressPercentage": 7, "metrics": metrics}
    assert send(bed, json.dumps({"trainerStatus": status}))[0] == 200
    progress = bed.store.progress(KEY)
    assert progress is not None
    assert (progress.percent, progress.loss, progress.grad_norm) == (7, None, None)


def test_a_pod_in_haste_is_slowed_and_told_so() -> None:
    bed = Bed()

    async def test() -> None:
        codes = [(await bed.post())[0] for _ in range(BURST + 3)]
        assert codes[:BURST] == [200] * BURST
        assert 429 in codes[BURST:]

    bed.run(test)


def test_a_report_after_the_end_changes_nothing_and_is_no_error() -> None:
    bed = Bed()
    ended = full_status().model_copy(update={"phase": Phase.COMPLETE})
    bed.store.put_fine_tune_job(make_job().metadata(resourceVersion="99").status(ended.to_json()).obj())
    assert send(bed)[0] == 200
    assert bed.store.progress(KEY) is None
    assert bed.reported == []


def test_a_report_without_totals_takes_them_from_the_one_before() -> None:
    bed = Bed()

    async def test() -> None:
        await bed.post()
        last = {"trainerStatus": {"progressPercentage": 100, "lastUpdatedTime": "2026-01-01T00:00:00Z"}}
        assert (await bed.post(json.dumps(last)))[0] == 200

    bed.run(test)
    progress = bed.store.progress(KEY)
    assert progress is not None
    assert (progress.step, progress.total_steps) == (100, 100)


def test_there_is_one_route_and_one_method() -> None:
    async def main() -> list[int]:
        async with TestClient(TestServer(Bed().server.app())) as client:
            paths = ("/", "/metrics", "/v1/team-a", f"{PATH}/more", "/v1/../v1/team-a")
            codes = [(await client.post(path)).status for path in paths]
            return [*codes, (await client.get(PATH)).status]

    assert asyncio.run(main()) == [404, 404, 404, 404, 404, 405]


def test_a_pod_whose_job_was_taken_by_another_owner_may_not_speak() -> None:
    bed = Bed()
    bed.store.drop_job(KEY, CHILD_UID)
    assert send(bed)[0] == 403
    bed.store.put_job(make_child().owned_by("someone").obj())
    assert send(bed)[0] == 403
    bed.store.drop_fine_tune_job(KEY, JOB_UID)
    assert send(bed)[0] == 403
