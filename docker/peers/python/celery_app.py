"""Celery. `python celery_app.py` publishes; `celery --app celery_app worker --pool …` works."""

import os
import time

import tally
from celery import Celery

app = Celery("peers", broker=os.environ["AMQP_URL"])
app.conf.update(
    task_default_queue=tally.queue(),
    # Acked when it has run, not when it is taken: otherwise a worker that dies loses what it has.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    # Each publish waits for the broker's confirm; off by default.
    broker_transport_options={"confirm_publish": True},
    # Nobody reads results here, and keeping them costs.
    task_ignore_result=True,
    # The prefetch is a multiple of the concurrency.
    worker_prefetch_multiplier=tally.PREFETCH // int(os.environ.get("PEERS_CONCURRENCY", "1")),
    # It makes a queue of a kind that RabbitMQ 4.3 refuses.
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="work")
def work(job):
    tally.count(job["n"])


def publish():
    # One producer for all of them: otherwise each publish takes one from a pool.
    with app.producer_pool.acquire(block=True) as producer:
        began = time.perf_counter()
        for job in tally.jobs():
            work.apply_async((job,), producer=producer)
        tally.published(time.perf_counter() - began)


if __name__ == "__main__":
    publish()
