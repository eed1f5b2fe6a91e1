"""A restart is a moment at which pods ended badly that got successors: in any order, and whatever is gone meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import permutations

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_operator.engine.feed import Feed
from finetune_operator.engine.store import Store
from finetune_operator.engine.work_queue import WorkQueue
from finetune_operator.plan.plan import make_plan
from plan_builders import (
    CHILD_UID,
    KEY,
    SETTINGS,
    ChildBuilder,
    JobBuilder,
    PodBuilder,
    at,
    make_child,
    make_job,
    make_pod,
    make_word,
    snapshot,
)

NETWORK = ExitCode.NETWORK_UNAVAILABLE


def restarts(*pods: PodBuilder, child: ChildBuilder | None = None) -> int:
    return snapshot(make_job(), child or make_child(), *pods).restarts


def first(exit_code: int) -> PodBuilder:
    return make_pod(0).failed(exit_code)


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (make_pod(0).failed(NETWORK), 1),
        (make_pod(0).failed(137, "OOMKilled"), 1),
        (make_pod(0).disrupted("Evicted"), 1),
        (make_pod(0).disrupted("Preempting"), 1),
        (make_pod(0).failed(ExitCode.STOPPED).disrupted(), 1),
        (make_pod(0).evicted("too much", ExitCode.STOPPED), 1),
        (make_pod(0).failed(ExitCode.STOPPED), 0),
        (make_pod(0).succeeded(), 0),
    ],
    ids=["failed", "killed", "evicted", "preempted", "evicted and saved", "wrote too much", "told to stop", "done"],
)
def test_who_ended_badly_and_has_a_successor_is_a_restart(pod: PodBuilder, expected: int) -> None:
    assert restarts(pod, make_pod(1).running()) == expected


def test_the_last_failure_is_no_restart() -> None:
    assert restarts(first(NETWORK)) == 0
    assert restarts(first(NETWORK), make_pod(1).failed(NETWORK)) == 1


def test_a_successor_within_the_same_second_is_one() -> None:
    assert restarts(make_pod(1).created(at(0)).disrupted(), make_pod(0).created(at(0))) == 1


PEER_LOST = ExitCode.PEER_LOST


def tries(node: int, *ends: PodBuilder, at_seconds: tuple[int, ...]) -> list[PodBuilder]:
    """The pods of one node: how each ended, when it was created, and a last one that runs."""
    found = []
    for number, (pod, second) in enumerate(zip([*ends, make_pod().running()], at_seconds, strict=True)):
        name = f"router-{node}-{number}"
        found.append(PodBuilder(pod.obj()).node(node).created(at(second)).metadata(name=name, uid=name))
    return found


def ended(exit_code: int) -> PodBuilder:
    return make_pod().failed(exit_code)


def removed() -> PodBuilder:
    return make_pod().disrupted("NodeLost")


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        # One node failed, the others lost it; their successors come first, as they wait for no back-off.
        ([tries(0, ended(PEER_LOST), at_seconds=(0, 12)), tries(1, ended(NETWORK), at_seconds=(0, 30))], 1),
        # A machine with two nodes of the job went away.
        ([tries(0, removed(), at_seconds=(0, 9)), tries(1, removed(), at_seconds=(0, 8))], 1),
        # Now one, then the other.
        (
            [
                tries(0, ended(NETWORK), ended(PEER_LOST), at_seconds=(0, 20, 50)),
                tries(1, ended(PEER_LOST), ended(NETWORK), at_seconds=(0, 12, 60)),
            ],
            2,
        ),
        # One failed before its peer had a machine, and later the peer did: neither had to go with the other.
        ([tries(0, ended(NETWORK), at_seconds=(40, 70)), tries(1, ended(NETWORK), at_seconds=(0, 30))], 2),
        # Three nodes.
        (
            [
                tries(0, ended(PEER_LOST), at_seconds=(0, 12)),
                tries(1, ended(PEER_LOST), at_seconds=(1, 11)),
                tries(2, ended(137), at_seconds=(2, 30)),
            ],
            1,
        ),
        # Told to stop, all of them.
        ([tries(0, ended(143), at_seconds=(0, 9)), tries(1, ended(143), at_seconds=(0, 9))], 0),
        # Within one second, again and again.
        ([tries(0, removed(), removed(), at_seconds=(0, 0, 0)), tries(1, at_seconds=(0,))], 2),
    ],
    ids=["peer lost", "two removed", "by turns", "apart", "three nodes", "suspended", "within a second"],
)
def test_one_cause_is_one_restart_however_many_nodes_it_takes(nodes: list[list[PodBuilder]], expected: int) -> None:
    pods = [pod for node in nodes for pod in node]
    for order in (pods, pods[::-1]):
        assert restarts(*order, child=make_child().nodes(len(nodes))) == expected


def test_a_node_without_a_successor_yet_is_counted_by_its_peers() -> None:
    first, failed = tries(0, ended(PEER_LOST), at_seconds=(0, 12)), make_pod(9).node(1).failed(NETWORK)
    assert restarts(*first, failed, child=make_child().nodes(2)) == 1


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_at_the_limit_it_is_the_limit_however_far_the_job_controller_is(limit: int) -> None:
    """It announces the end, then deletes what still runs, and then is final: each may be the first that is seen."""
    pods = [make_pod(n).failed(NETWORK, word=make_word(NETWORK)) for n in range(limit + 1)]
    for child in (make_child().fails(type_="FailureTarget"), make_child().fails()):
        status = make_plan(snapshot(make_job().spec(backoffLimit=limit), child, *pods), SETTINGS, at(60)).status
        assert status is not None
        assert (status["phase"], status.get("restarts", 0)) == ("Failed", limit)


def put(store: Store, *pods: PodBuilder) -> None:
    for pod in pods:
        store.put_pod(pod.obj())


def counted(store: Store) -> int:
    """What the plan says, as the status that is then stored says it."""
    found = store.snapshot(KEY)
    assert found is not None
    plan = make_plan(found, SETTINGS, at(60))
    if plan.status is not None:
        version = found.job.resource_version + 1
        store.put_fine_tune_job(make_job().metadata(resourceVersion=str(version)).status(plan.status).obj())
        return int(plan.status.get("restarts", 0))
    return int(found.job.status.get("restarts", 0))


def started(job: JobBuilder | None = None) -> tuple[Store, Feed]:
    store = Store()
    feed = Feed(store, WorkQueue())
    store.put_fine_tune_job((job or make_job()).obj())
    store.put_job(make_child().obj())
    return store, feed


def gone(feed: Feed, pod: PodBuilder, version: int) -> None:
    feed.pod("DELETED", pod.metadata(resourceVersion=str(version)).obj())


def test_pods_that_go_with_their_nodes_stay_counted() -> None:
    store, feed = started()
    for number in range(5):
        pod = make_pod(number).running()
        put(store, pod)
        assert counted(store) == number
        gone(feed, pod.disrupted("NodeLost"), 100 + number)  # all of it between two looks
    assert counted(store) == 4
    put(store, make_pod(5).running())
    assert counted(store) == 5


def test_the_order_of_events_does_not_matter() -> None:
    for order in permutations(range(4)):
        store, feed = started()
        events: list[Callable[[], None]] = [
            partial(feed.pod, "ADDED", make_pod(0).failed(NETWORK).obj()),
            partial(gone, feed, make_pod(1).disrupted(), 100),
            partial(feed.pod, "ADDED", make_pod(2).running().obj()),
            partial(feed.job, "MODIFIED", make_child().metadata(resourceVersion="99").obj()),
        ]
        for number in order:
            events[number]()
            counted(store)
        assert counted(store) == 2, order


def test_a_pod_that_is_told_of_twice_is_counted_once() -> None:
    store, feed = started()
    evicted = make_pod(0).disrupted()
    put(store, evicted, make_pod(1).running())
    store.drop_pod(KEY, "router-0-0", "pod-uid-0")  # the resync does not find it
    gone(feed, evicted, 100)
    put(store, evicted.metadata(resourceVersion="99"))
    assert counted(store) == 1


def test_the_failure_that_ended_a_job_is_no_restart_when_its_pod_goes() -> None:
    store, feed = started()
    put(store, make_pod(0).failed(NETWORK))
    store.put_job(make_child().metadata(resourceVersion="98").fails().obj())
    assert counted(store) == 0
    gone(feed, make_pod(0).failed(NETWORK), 100)
    assert counted(store) == 0


def test_what_was_written_is_added_to_after_a_start_of_the_operator() -> None:
    store, _ = started()
    put(store, make_pod(0).disrupted(), make_pod(1).running())
    assert counted(store) == 1
    written = snapshot_status(store)
    anew, feed = started(make_job().metadata(resourceVersion="50").status({**written, "restarts": 7}))
    put(anew, make_pod(1).running())  # the others are gone
    assert counted(anew) == 7
    gone(feed, make_pod(1).disrupted(), 100)
    put(anew, make_pod(2).running())
    assert counted(anew) == 8


def snapshot_status(store: Store) -> dict[str, object]:
    found = store.snapshot(KEY)
    assert found is not None
    return dict(found.job.status)


def test_another_job_of_the_same_fine_tune_job_goes_on_counting() -> None:
    """Under Kueue it is made anew to be resumed."""
    store, _ = started()
    put(store, make_pod(0).failed(NETWORK), make_pod(1).running())
    assert counted(store) == 1
    store.drop_pod(KEY, "router-0-0", "pod-uid-0")
    store.drop_pod(KEY, "router-0-1", "pod-uid-1")
    store.drop_job(KEY, CHILD_UID)
    assert counted(store) == 1
    store.put_job(make_child().metadata(uid="another", resourceVersion="200").obj())
    put(store, make_pod(2).of("another").failed(NETWORK), make_pod(3).of("another").running())
    assert counted(store) == 2


def test_a_successor_under_the_same_name_starts_from_nothing() -> None:
    store, feed = started()
    put(store, make_pod(0).disrupted())
    gone(feed, make_pod(0).disrupted(), 100)
    put(store, make_pod(1).running())
    assert counted(store) == 1
    store.put_fine_tune_job(make_job().metadata(uid="another", resourceVersion="300").obj())
    found = store.snapshot(KEY)
    assert found is not None
    assert found.restarts == 0


def test_jobs_of_which_nothing_is_gone_take_no_memory() -> None:
    store, feed = started()
    put(store, make_pod(0).failed(NETWORK), make_pod(1).running())
    assert counted(store) == 1
    assert not store._past._of
    gone(feed, make_pod(0).failed(NETWORK), 100)
    assert list(store._past._of) == [KEY]
    store.drop_fine_tune_job(KEY, make_job().obj()["metadata"]["uid"])
    assert not store._past._of
