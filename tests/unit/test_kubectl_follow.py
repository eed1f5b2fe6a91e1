"""A watch of jobs goes on over broken connections and old versions, tells no change twice, and gives up in the end."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from finetune_cli.kubectl import cluster as module
from finetune_cli.kubectl.cluster import ClusterProblem, _Follower
from kubectl_records import Object, job

Script = list[list[Object] | ClusterProblem]


class Scripted:
    """Lists and watches as they are given, one after the other."""

    def __init__(self, lists: Script, watches: Script) -> None:
        self._lists, self._watches = lists, watches
        self.watched_from: list[str] = []

    def list_jobs(self, namespace: str | None, query: object) -> tuple[list[Object], str]:
        found = self._lists.pop(0)
        if isinstance(found, ClusterProblem):
            raise found
        return found, "100"

    def watch_jobs(self, namespace: str | None, version: str, query: object) -> Iterator[Object]:
        self.watched_from.append(version)
        for event in self._watches.pop(0):  # type: ignore[union-attr]
            if isinstance(event, ClusterProblem):
                raise event
            yield event


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting takes no time, and is seen as time."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


def event(type_: str, name: str, version: str) -> Object:
    body = job(name)
    body["metadata"]["resourceVersion"] = version
    return {"type": type_, "object": body}


def told(cluster: Scripted, count: int) -> list[Any]:
    """The first changes: the name, with a minus when it is gone; None as it is."""
    changes = islice(_Follower(cluster, "team", {}).changes(), count)  # type: ignore[arg-type]
    return [change and (change.name if change.job else f"-{change.name}") for change in changes]


BROKEN = ClusterProblem("the connection broke")


def test_a_broken_watch_goes_on_from_where_it_was() -> None:
    cluster = Scripted([[job("a")]], [[event("MODIFIED", "a", "105"), BROKEN], [event("ADDED", "b", "106")]])
    assert told(cluster, 4) == ["a", None, "a", "b"]
    assert cluster.watched_from == ["100", "105"]


def test_bookmarks_move_the_version_and_are_not_told() -> None:
    cluster = Scripted([[job("a")]], [[event("BOOKMARK", "", "200")], [event("DELETED", "a", "201")]])
    assert told(cluster, 3) == ["a", None, "-a"]
    assert cluster.watched_from == ["100", "200"]


@pytest.mark.parametrize("old", [[{"type": "ERROR", "object": {"code": 410}}], [ClusterProblem("too old", status=410)]])
def test_after_a_version_that_is_too_old_everything_is_listed_anew(old: list[Any]) -> None:
    cluster = Scripted([[job("a"), job("b")], [job("b"), job("c")]], [old, [event("ADDED", "d", "300")]])
    assert told(cluster, 7) == ["a", "b", None, "-a", "b", "c", None]


def test_an_outage_of_a_minute_is_the_end() -> None:
    cluster = Scripted([[job("a")]], [[BROKEN]] * 100)
    with pytest.raises(ClusterProblem, match="broke"):
        told(cluster, 3)
    assert 25 < len(cluster.watched_from) < 40


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(status: int) -> None:
    busy = ClusterProblem("Too many requests, please try again later.", status)
    cluster = Scripted([[job("a")]], [[busy], [event("MODIFIED", "a", "105")]])
    assert told(cluster, 3) == ["a", None, "a"]


def test_short_outages_do_not_add_up() -> None:
    events = [event("MODIFIED", "a", str(version)) for version in range(101, 151)]
    watches: Script = [each for one in events for each in ([one, BROKEN], [BROKEN])]  # type: ignore[list-item]
    assert told(Scripted([[job("a")]], watches), 52)[2:] == ["a"] * 50


def test_a_right_that_is_taken_away_is_the_end_at_once() -> None:
    cluster = Scripted([[job("a")]], [[ClusterProblem("you may not", status=403)]])
    with pytest.raises(ClusterProblem, match="you may not"):
        told(cluster, 3)


def test_a_cluster_that_never_answered_is_the_end_at_once() -> None:
    with pytest.raises(ClusterProblem, match="broke"):
        told(Scripted([BROKEN], []), 1)
