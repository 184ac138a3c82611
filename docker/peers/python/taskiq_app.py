"""taskiq on aio-pika. `python taskiq_app.py` publishes; `taskiq worker taskiq_app:broker` works."""

import asyncio
import itertools
import os
import time

import tally
from taskiq_aio_pika import AioPikaBroker, Queue, QueueType

WINDOW = 1_000  # publishes that may wait for their confirm

broker = AioPikaBroker(
    os.environ["AMQP_URL"],
    qos=tally.PREFETCH,
    # Classic, as all systems here can have it; quorum is its default.
    task_queues=[Queue(name=tally.queue(), type=QueueType.CLASSIC, durable=True)],
)


@broker.task
async def work(job):
    tally.count(job["n"])


async def publish():
    await broker.startup()
    jobs = tally.jobs()
    began = time.perf_counter()
    while window := list(itertools.islice(jobs, WINDOW)):
        await asyncio.gather(*(work.kiq(job) for job in window))
    tally.published(time.perf_counter() - began)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(publish())
