"""What a system really does: whether its jobs are kept, and what becomes of one that is no JSON."""

import tempfile
import time

import drain
import process

PATIENCE = 15  # seconds in which a worker should get past the bad message
AFTERWARDS = 1.5  # and to see what it does then


def look(system, broker, logs):
    """Spoils one job, has a good one behind it, and tells in words what a worker makes of it."""
    drain.publish(system, 1, broker, logs)
    durable, persistent = broker.durable(system), broker.spoil(system)
    publish_behind(system, broker, logs)
    with tempfile.TemporaryDirectory() as folder:
        worker = drain.begin(system, broker, logs, folder)
        try:
            process.wait_until(lambda: drain.tally(folder)[0] or not worker.alive(), PATIENCE)
            time.sleep(AFTERWARDS)
            good, alive = drain.tally(folder)[0] > 0, worker.alive()
        finally:
            worker.stop()
    # Given back by the worker that was stopped, if it was not settled.
    time.sleep(broker.lag(system))
    kept = broker.waiting(system)
    broker.forget(system)
    return {"durable": durable, "persistent": persistent, "bad": words(system, good, alive, kept)}


def publish_behind(system, broker, logs):
    """One more, which finds a message before it."""
    try:
        drain.publish(system, 1, broker, logs)
    except drain.Failed:
        raise drain.Failed("no job could be published behind the bad one") from None


def words(system, good, alive, kept):
    """`kept`: what is still on its queues, by name."""
    said = []
    if not alive:
        said.append("**the worker ends**")
    if not good:
        said.append("**the job behind it does not run**")
    # The good job has run, or is still there too.
    bad = {name: count for name, count in kept.items() if good or count > 1 or not is_job_queue(system, name)}
    if not bad:
        said.append("**it is gone**")
    else:
        where = ", ".join(f"`{name}`" for name in sorted(bad))
        said.append(f"it is kept: {where}" if not any(is_job_queue(system, name) for name in bad)
                    else f"it is still on its queue: {where}")
    return "; ".join(said)


def is_job_queue(system, name):
    return name in (system.queue, f"queue:{system.queue}", f"bull:{system.queue}:wait", f"bull:{system.queue}:active")
