"""One system, one time: fill its queue, let a worker drain it, and believe neither without counting."""

import dataclasses
import json
import os
import pathlib
import struct
import subprocess
import tempfile
import time

import process

RECORD = struct.Struct("<QQ")
PATIENCE = 300  # seconds for one publish, and for one drain
SEEN = 15  # seconds until the broker's counts must show what was published, or that all is acked


class Failed(Exception):
    """Why a system could not be measured."""


@dataclasses.dataclass
class Look:
    """What is known at one moment of a drain."""

    at: float
    jobs: int
    worker: float
    broker: float
    machine: tuple  # what worked, what passed
    script: float


def measure(system, jobs, broker, logs):
    """Raises Failed. A figure is None where there were too few jobs to tell."""
    publish_rate = publish(system, jobs, broker, logs)
    first, last, memory = drain(system, jobs, broker, logs)
    figures = {
        "system": system.name, "jobs": jobs, "publish_rate": publish_rate, "memory_mib": memory / 2**20,
        "rate": None, "cpu_us": None, "broker_us": None, "others": None,
    }
    ran, took = last.jobs - first.jobs, last.at - first.at
    # The tally is looked at a hundred times a second.
    if took >= 0.2:
        ours = sum(getattr(last, part) - getattr(first, part) for part in ("worker", "broker", "script"))
        busy, passed = (after - before for before, after in zip(first.machine, last.machine))
        figures |= {
            "rate": ran / took,
            "cpu_us": (last.worker - first.worker) / ran * 1e6,
            "broker_us": (last.broker - first.broker) / ran * 1e6,
            # The share of the machine that went to neither worker nor broker nor this script.
            "others": max(0, busy - ours) / passed,
        }
    return figures


def publish(system, jobs, broker, logs):
    """Jobs per second, as the program has measured it; its start does not count."""
    try:
        done = subprocess.run(
            [str(word) for word in system.publish], cwd=system.folder, timeout=PATIENCE, text=True,
            capture_output=True, stdin=subprocess.DEVNULL, env=environment(system, broker, PEERS_JOBS=str(jobs)),
        )
    except OSError as error:
        raise Failed(f"its publisher could not be started: {error}") from error
    except subprocess.TimeoutExpired:
        raise Failed(f"publishing {jobs} jobs took more than {PATIENCE} s") from None
    (logs / f"{system.name}-publish.log").write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        raise Failed(f"its publisher ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    waiting = process.wait_until(lambda: sum(broker.waiting(system).values()) >= jobs, SEEN)
    if not waiting:
        raise Failed(f"of {jobs} published jobs {broker.waiting(system)} are on its queues")
    try:
        return jobs / json.loads(done.stdout.splitlines()[-1])["seconds"]
    except (IndexError, KeyError, ValueError):
        raise Failed(f"its publisher did not say how long it took: {done.stdout[-300:]!r}") from None


def drain(system, jobs, broker, logs):
    """Looks at the first jobs and at the last one, and the most memory that it took."""
    with tempfile.TemporaryDirectory() as folder:
        worker = begin(system, broker, logs, folder)
        try:
            first = last = None
            memory = seen = 0
            deadline = time.monotonic() + PATIENCE
            while last is None:
                ran, _ = tally(folder)
                if ran and first is None:
                    first = look(ran, worker, broker)
                if ran >= jobs:
                    last = look(ran, worker, broker)
                elif not worker.alive():
                    raise Failed(f"its worker ended after {ran} of {jobs} jobs: {worker.last_words()}")
                elif time.monotonic() > deadline:
                    raise Failed(f"its worker ran {ran} of {jobs} jobs in {PATIENCE} s")
                if last or time.monotonic() > seen + 0.5:
                    memory, seen = max(memory, worker.memory()), time.monotonic()
                time.sleep(0.01)
        finally:
            worker.stop()
        every_job_ran_once(jobs, *tally(folder))
    if not process.wait_until(lambda: not broker.waiting(system), SEEN):
        raise Failed(f"every job ran, and still on its queues are {broker.waiting(system)}")
    return first, last, memory


def begin(system, broker, logs, folder):
    command = [str(word) for word in system.work]
    try:
        return process.Running(
            command, environment(system, broker, PEERS_TALLY=str(folder)), system.folder,
            logs / f"{system.name}-work.log",
        )
    except OSError as error:
        raise Failed(f"its worker could not be started: {error}") from error


def environment(system, broker, **more):
    return {**os.environ, **broker.environment, "PEERS_QUEUE": system.queue, **system.environment, **more}


def look(ran, worker, broker):
    # The time goes with the count; what comes after it takes some milliseconds.
    at = time.monotonic()
    return Look(at, ran, worker.cpu(), broker.cpu(), process.machine(), time.process_time())


def tally(folder):
    """How many jobs ran in all processes of the worker, and the sum of their numbers."""
    count = total = 0
    for file in pathlib.Path(folder).iterdir():
        record = file.read_bytes()
        if len(record) == RECORD.size:
            counted, summed = RECORD.unpack(record)
            count += counted
            total += summed
    return count, total


def every_job_ran_once(jobs, ran, total):
    if ran != jobs:
        raise Failed(f"{ran} jobs ran, not {jobs}")
    if total != jobs * (jobs - 1) // 2:
        raise Failed(f"{jobs} jobs ran, but not each of them: their numbers add up to {total}")
