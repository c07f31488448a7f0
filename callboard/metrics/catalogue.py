"""The metrics that aren't of jobs: of a worker's processes, of a scheduler, and of what all workers share."""

from __future__ import annotations

from typing import Literal

#: Of a worker's processes: the type of each metric, and what it tells.
WORKER_METRICS: dict[str, tuple[Literal["gauge", "counter"], str]] = {
    "callboard_worker_processes": ("gauge", "Processes that are ready to run jobs."),
    "callboard_worker_processes_wanted": ("gauge", "How many processes there should be."),
    "callboard_worker_threads": ("gauge", "How many jobs can run at once, in the processes that are ready."),
    "callboard_worker_processes_stalled": ("gauge", "Processes that claim nothing although messages wait."),
    "callboard_worker_process_deaths": ("counter", "Processes that ended by themselves, or were killed."),
    "callboard_worker_process_stalls": ("counter", "Processes that were replaced because they had stalled."),
}
#: Of a scheduler, as each counts for itself: the type, the labels, and what it tells.
SCHEDULER_METRICS: dict[str, tuple[Literal["gauge", "counter"], tuple[str, ...], str]] = {
    "callboard_scheduler_ticks": ("counter", ("actor", "outcome"), "Ticks that this scheduler dealt with."),
    "callboard_scheduler_lateness_seconds": (
        "gauge",
        ("actor",),
        "How long after its tick the last job was sent that this scheduler sent.",
    ),
    "callboard_scheduler_paused": ("gauge", ("actor",), "Whether the schedule is paused."),
    "callboard_scheduler_looked_seconds": (
        "gauge",
        (),
        "How long ago this scheduler looked at its schedules.",
    ),
}
QUEUE_LABELS = ("queue", "category", "priority")
#: Of what all workers share, as each tells it: the type, the labels, and what it tells.
SHARED_METRICS: dict[str, tuple[Literal["gauge", "counter"], tuple[str, ...], str]] = {
    "callboard_broker_up": ("gauge", (), "Whether the broker could be asked."),
    "callboard_store_up": ("gauge", (), "Whether the store could be asked."),
    "callboard_queue_ready": ("gauge", QUEUE_LABELS, "Jobs that could start now."),
    "callboard_queue_claimed": ("gauge", QUEUE_LABELS, "Jobs that workers hold."),
    "callboard_queue_delayed": ("gauge", QUEUE_LABELS, "Jobs that aren't due yet."),
    "callboard_queue_consumers": ("gauge", QUEUE_LABELS, "Worker processes that consume the queue."),
    "callboard_queue_paused": ("gauge", QUEUE_LABELS, "Whether the queue is paused."),
    "callboard_queue_oldest_seconds": (
        "gauge",
        QUEUE_LABELS,
        "How long the oldest job that could start has waited.",
    ),
    "callboard_dead_letters": ("gauge", ("category",), "Dead letters."),
    "callboard_quarantined": ("gauge", (), "Messages in quarantine."),
    "callboard_workers": ("gauge", (), "Worker processes that live, on all hosts."),
    "callboard_schedules": ("gauge", (), "Actors that have a schedule."),
    "callboard_scheduler_up": ("gauge", (), "Whether a scheduler lives."),
    "callboard_records_dropped": ("counter", (), "Records of jobs that could never be written."),
}
