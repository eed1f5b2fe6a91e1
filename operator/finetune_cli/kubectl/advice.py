"""What to do about each reason a job can have, in a sentence or two."""

from __future__ import annotations

import re

_SAME_AGAIN = "The same manifest would fail in the same way"

ADVICE: dict[str, str] = {
    # It waits.
    "PodsPending": "Nothing is wrong yet: pods are being made, scheduled or started. A large image takes minutes.",
    "Unschedulable": (
        "No node takes the pod. Ask for less in spec.resources, check spec.pod.nodeSelector and tolerations, or "
        "add nodes; it starts by itself once one fits."
    ),
    "ImagePullFailed": (
        "The administrator has to mend the operator's trainer image (FINETUNE_TRAINER_IMAGE) or the nodes' "
        "right to pull it; the job then starts by itself. Where the message names a container, its image is meant."
    ),
    "PodConfigInvalid": (
        "Create the secret that spec.pod.envFromSecrets names, with that key, in this namespace; the job then "
        "starts by itself. Where the message names a container, mend what adds that one to the pod."
    ),
    "ContainerNotStarted": (
        "The node's container runtime refuses the trainer: most often its GPU driver is too old for the image "
        "(unsatisfied condition: cuda), or the GPU runtime is not set up. The administrator has to mend the node; "
        "spec.pod.nodeSelector leads to others. If it has failed, then create the job anew."
    ),
    "PodsRefused": (
        "kubectl describe job NAME -n NAMESPACE has the API server's words: raise the quota, ask for less, or change "
        "what is refused; the pods then come by themselves, after some minutes at most."
    ),
    "PodNotStopping": (
        "If the node comes back, the job goes on by itself. If it is off for good, the commands in the message free "
        "the pod; do not run them while its trainer may still be at work. Deleting the Node does the same for all pods "
        "on it."
    ),
    "ChildRefused": (
        "The API server refuses what the job needs: raise the quota, ask for less, change what the admission policy "
        "refuses, or mend the webhook that does not answer; the operator tries again by itself."
    ),
    "FieldUnknown": (
        "The CRD is newer than the operator. The administrator has to upgrade the operator, or apply the CRD of its "
        "version; the job then starts by itself."
    ),
    "SpecRefused": (
        "Its spec was changed, or the operator was, since it trained. Mend the field that the message names, or have "
        "the administrator bring back a version of the operator that takes it; it then goes on from its checkpoint."
    ),
    "HeldByFinalizer": (
        "Its Job is deleted, to be made anew, and something else keeps it there until it has done its own part. See to "
        "what sets that finalizer; if that is gone, the command in the message lets the Job go."
    ),
    "ChildNameTaken": (
        "A Job of that name belongs to somebody else. Delete it if it is not needed, or create this FineTuneJob "
        "under another name."
    ),
    "EarlierPodsStopping": (
        "A pod of an earlier job of that name still ends. If its node is gone: kubectl delete pod --force."
    ),
    "WaitingForQueue": "It is in the queue; kubectl describe the Workload of its Job says what it waits for.",
    "SuspendedByUser": 'To go on: kubectl patch ftj NAME -n NAMESPACE --type merge -p \'{"spec":{"suspend":false}}\'',
    "NotSeen": "kubectl get pods -A -l app.kubernetes.io/name=finetune-operator shows whether the operator runs.",
    # It runs or is done.
    "PodsRunning": "It trains; kubectl finetune watch NAME -n NAMESPACE shows how far it is.",
    "HeldBySidecar": (
        "Training has ended, and another container keeps the pod. Have the mesh add native sidecars, or leave the "
        "job's pods out of it (docs/installing.md, Service meshes). The job ends when that container does."
    ),
    "ChangeWaits": (
        "It trains as it was before the change. To have it at once: set spec.suspend to true, and to false again when "
        "it is Suspended; training goes on from its checkpoint."
    ),
    "Complete": "kubectl finetune result NAME -n NAMESPACE shows what tuning did and how to load the model.",
    # It failed, and would again.
    "SpecInvalid": (
        "Mend the field that the message names and apply again; finetune validate checks a manifest first. What "
        "decides the weights cannot be changed in place: delete the job then, and create it anew."
    ),
    "DataInvalid": f"{_SAME_AGAIN}: mend the rows or spec.data.columns, delete the job, and create it anew.",
    "CredentialsInvalid": (
        "Check the secret named in spec.pod.envFromSecrets (HF_TOKEN, or the store's keys) and that it may read "
        "the source; then delete the job and create it anew."
    ),
    "ModelInvalid": (
        "Check spec.model: that the path or revision exists, that it has safetensors weights, and that it fits "
        "spec.task; then delete the job and create it anew."
    ),
    "OutputRefused": (
        "spec.output.uri holds something that is no earlier output, or cannot be written. Empty it or choose "
        "another, delete the job, and create it anew."
    ),
    "NonFiniteLoss": (
        f"{_SAME_AGAIN}. Create it anew with a lower training.learningRate, a longer warm-up, a lower "
        "training.maxGradNorm, or training.precision FP32. Nothing was saved after the bad step."
    ),
    "OutOfMemory": (
        "Halve training.microBatchSize, or evaluation.batchSize if it was evaluating (the result stays the same), or "
        "data.maxLength, or raise spec.resources.memory or the GPU; then delete the job and create it anew."
    ),
    "ExportMismatch": (
        "The exported model did not give the same answers as the tuned one: most often a library or the model's "
        "own code. The checkpoints are kept; please report it with the log."
    ),
    "Forgetting": (
        "It lost more on the retention rows than evaluation.retention.maxDrop allows. Tune less (adapter, fewer "
        "epochs, a lower rate), mix in data.replay, or use onForgetting: RollBack."
    ),
    # It failed, and may pass.
    "StorageFull": (
        "Make room in the output's claim, or enlarge it; old runs are folders under its .finetune. For a pod that was "
        "evicted raise spec.resources.ephemeralStorage. Then create the job anew."
    ),
    "NetworkUnavailable": (
        "A hub, an object store, a server or another process of the job could not be reached: check NetworkPolicies, "
        "proxy and DNS from the pod, and that all pods start; then create the job anew."
    ),
    "WorkDirectoryBusy": (
        "Another trainer is at work in the same directory: two jobs with one output, or a pod on a lost node. "
        "Wait for it to end, or give this job another output."
    ),
    "Hang": (
        "Nothing got on for half an hour, and it ended itself. The end of the log shows where each thread stood: check "
        "the node's storage, network and GPU, then create the job anew."
    ),
    "PeerLost": (
        "One of its nodes was lost or did not come. kubectl get pods shows which; with a queue all its pods start at "
        "once, or not at all."
    ),
    "Stopped": "It was stopped and has saved a checkpoint; created anew under the same name, it starts afresh.",
    "InternalError": "A defect of the trainer or of the machine: the log has the traceback; please report it.",
    "TrainerFailed": "The container ended with a code that is not the trainer's: its log says more.",
    "OtherContainerFailed": (
        "The container that the message names is not the job's: kubectl logs POD -c CONTAINER -n NAMESPACE has its "
        "words. Mend what adds it to the pod, or leave the job's pods out of it; a mesh's proxy has to be a native "
        "sidecar (docs/installing.md, Service meshes). If the job has failed, create it anew; where the trainer is "
        "done, its output is whole all the same."
    ),
    "Preempted": (
        "Its pods were removed from their nodes, or lost with them, too often. Use a higher "
        "spec.pod.priorityClassName or nodes that stay, raise spec.backoffLimit, and create it anew."
    ),
    "RejectedByNode": (
        "The node did not take the pods that the scheduler gave it: most often its device plug-in starts anew or a GPU "
        "is broken, or something else took the place. Check the node, then create the job anew; with a higher "
        "spec.backoffLimit it outlasts such a time."
    ),
    "DeadlineExceeded": (
        "It ran longer than spec.activeDeadlineSeconds, or than the cluster lets a pod run, as the message says. Raise "
        "that, or train less; then create it anew."
    ),
    "BackoffLimitExceeded": "It failed more often than spec.backoffLimit; the attempts and their logs say why.",
    "PodFailurePolicy": "The trainer ended with a code that is not retried; the attempts and their logs say which.",
    "JobFailed": "Its Job failed without saying why; the attempts and their logs may.",
}


_OF_THE_TRAINER = {
    "SpecInvalid": (
        f"{_SAME_AGAIN}, and what has ended cannot be changed: mend the field that the message names, delete the job, "
        "and create it anew; finetune validate checks a manifest first."
    )
}
"""In place of those, where the same word ended a job that had begun."""


def advice(reason: str, namespace: str, name: str, *, begun: bool = False) -> str:
    """What to do, with the job's own name in the commands; empty for a reason that is not known here."""
    known = {**ADVICE, **_OF_THE_TRAINER} if begun else ADVICE
    return fill(known.get(reason, ""), namespace, name)


def fill(text: str, namespace: str, name: str) -> str:
    """Advice with the job's own name in its commands."""
    return re.sub(r"\bNAME\b", name, re.sub(r"\bNAMESPACE\b", namespace, text))
