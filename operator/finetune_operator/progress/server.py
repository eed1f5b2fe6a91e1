"""The HTTP side of progress: one route, and a reason for every refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import ValidationError

from finetune_api.trainer_status import MAX_BODY_BYTES, Report, progress_of
from finetune_api.v1alpha1.status import Progress
from finetune_operator.cluster.client import ClusterError
from finetune_operator.engine.store import Key, Store
from finetune_operator.plan.stored import read_status
from finetune_operator.progress.limiter import RateLimiter
from finetune_operator.progress.pods import PodIdentity
from finetune_operator.progress.tokens import Throttled, TokenReviewer, bearer_token

REPORTS_PER_SECOND = 1.0
BURST = 10


class ProgressServer:
    """Takes reports from the pods of known jobs."""

    def __init__(
        self,
        store: Store,
        reviewer: TokenReviewer[PodIdentity],
        reported: Callable[[Key, bool], None],
        count: Callable[[str], None],
        limiter: RateLimiter | None = None,
    ) -> None:
        self._store = store
        self._reviewer = reviewer
        self._reported = reported
        self._count = count
        self._limiter = limiter or RateLimiter(REPORTS_PER_SECOND, BURST)

    def app(self, middlewares: Sequence[Middleware] = ()) -> web.Application:
        """The application with its one route."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=middlewares)
        app.add_routes([web.post("/v1/{namespace}/{name}", self._post)])
        return app

    async def _post(self, request: web.Request) -> web.Response:
        status, reason = await self._answer(request)
        self._count(str(status))
        return web.json_response({"message": reason}, status=status)

    async def _answer(self, request: web.Request) -> tuple[int, str]:
        key = Key(request.match_info["namespace"], request.match_info["name"])
        token = bearer_token(request.headers.get("Authorization", ""))
        if not token:
            return 401, "a bearer token is needed"
        try:
            pod = await self._reviewer.identify(token, request.remote)
        except Throttled:
            return 429, "too many tokens that are not valid came from this address; report again later"
        except ClusterError:
            return 503, "the token cannot be checked now; report again later"
        if pod is None:
            return 401, "the token is not valid for this audience, or not bound to a pod"
        if not self._may_speak(pod, key):
            job = f"{key.namespace}/{key.name}"
            return 403, f"pod {pod.namespace}/{pod.name} is not a pod of FineTuneJob {job}, or not its first node's"
        if not self._limiter.allows(pod.uid):
            return 429, "too many reports; once in five seconds is enough"
        try:
            report = Report.model_validate_json(await request.read())
            progress = progress_of(report, self._earlier(key))
        except web.HTTPRequestEntityTooLarge:
            return 413, f"a report has at most {MAX_BODY_BYTES} bytes"
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return 400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        is_first = self._store.progress(key) is None
        if self._store.put_progress(key, progress):
            self._reported(key, is_first)
        return 200, "noted"

    def _earlier(self, key: Key) -> Progress | None:
        """The report before this one; since the operator's start there may have been none, and the status has it."""
        if (known := self._store.progress(key)) is not None:
            return known
        snapshot = self._store.snapshot(key)
        return read_status(snapshot.job.status).progress if snapshot else None

    def _may_speak(self, pod: PodIdentity, key: Key) -> bool:
        """Whether the pod is the job's first, in the job's namespace, and the very pod the token was made for."""
        return pod.namespace == key.namespace and self._store.may_report(key, pod.name, pod.uid)
