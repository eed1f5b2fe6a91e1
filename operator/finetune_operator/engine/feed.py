"""Takes what watches bring: notes it in the store and queues the job it is about, and does nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.engine.store import Key, Store
from finetune_operator.engine.work_queue import WorkQueue
from finetune_operator.plan.names import JOB_NAME_LABEL
from finetune_operator.plan.snapshot import KubernetesObject

DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class Feed:
    """One method a watch. Events may come late, twice or never: the store keeps what is newest."""

    store: Store
    queue: WorkQueue[Key]

    def fine_tune_job(self, type_: str | None, body: KubernetesObject) -> None:
        """A FineTuneJob was seen."""
        key = _key(body)
        if type_ == DELETED:
            if self.store.drop_fine_tune_job(key, body["metadata"]["uid"]):  # not a successor under the same name
                self.queue.forget(key)
        elif self.store.put_fine_tune_job(body):
            self.queue.add(key)

    def job(self, type_: str | None, body: KubernetesObject) -> None:
        """A Job was seen."""
        key = _key(body)
        if type_ == DELETED:
            self.store.put_job(body)  # that it has ended may be told by its farewell alone
            self.store.drop_job(key, body["metadata"]["uid"])
            self.queue.add(key)
        elif self.store.put_job(body):
            self.queue.add(key)

    def pod(self, type_: str | None, body: KubernetesObject) -> None:
        """A pod was seen."""
        metadata = body["metadata"]
        if type_ == DELETED:
            owner = Key(metadata["namespace"], metadata.get("labels", {}).get(JOB_NAME_LABEL, ""))
            self.store.put_pod(body)  # how it ended may be told by its farewell alone
            self.store.drop_pod(owner, metadata["name"], metadata["uid"])
            self.queue.add(owner)
        elif owner_seen := self.store.put_pod(body):
            self.queue.add(owner_seen)


def _key(body: KubernetesObject) -> Key:
    return Key(body["metadata"]["namespace"], body["metadata"]["name"])
