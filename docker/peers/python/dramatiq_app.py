"""Dramatiq. `python dramatiq_app.py` publishes; `dramatiq dramatiq_app` works."""

import os
import time

import dramatiq
import tally
from dramatiq.brokers.rabbitmq import RabbitmqBroker

# Each publish waits for the broker's confirm; off by default. Its jobs are persistent and acked when
# they have run in any case.
broker = RabbitmqBroker(url=os.environ["AMQP_URL"], confirm_delivery=True)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=tally.queue())
def work(job):
    tally.count(job["n"])


def publish():
    began = time.perf_counter()
    for job in tally.jobs():
        work.send(job)
    tally.published(time.perf_counter() - began)
    broker.close()


if __name__ == "__main__":
    publish()
