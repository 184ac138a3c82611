"""Publishes jobs by the wire contract alone: publish.py NAMESPACE QUEUE, broker in AMQP_URL.

Needs pika (apt-get install python3-pika). Knows nothing of Forebay but docs/wire.md: the exchange
is the namespace, the routing key the queue, the property `type` the kind, the body JSON.
"""

import hashlib
import hmac
import json
import os
import sys

import pika


def ladder(namespace, queue, milliseconds):
    """Exchange and routing key of a delay: its tenths of a second in 28 binary digits."""
    ticks = -(-milliseconds // 100)
    digits = format(ticks, "028b")
    level = ticks.bit_length() - 1
    return f"{namespace}.delay.{level:02d}", ".".join(digits) + "." + queue


def properties(job_id, **more):
    return pika.BasicProperties(
        message_id=job_id,
        type="note.take",
        content_type="application/json",
        delivery_mode=2,
        **more,
    )


def signature(name, secret, namespace, queue, body, about):
    """The header `forebay-signature`: every part with its length before it, absent ones as `-:`."""
    parts = ["forebay-job-v1", namespace, queue, about.type, about.message_id, about.content_type]
    parts += [None] * 6 + [body]  # Nothing else is used here.
    for header in sorted(about.headers):
        if not header.startswith(("forebay-", "x-")):
            parts += [header, about.headers[header]]
    mac = hmac.new(secret.encode(), digestmod=hashlib.sha256)
    for part in parts:
        part = None if part is None else str(part).encode()
        mac.update(b"-:" if part is None else b"%d:%b" % (len(part), part))
    return f"v1;{name};{mac.hexdigest()}"


def main(namespace, queue):
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    channel = connection.channel()
    channel.confirm_delivery()

    def publish(exchange, key, body, about):
        # Mandatory and confirmed: returns when it is stored, raises when no queue is bound.
        channel.basic_publish(exchange, key, json.dumps(body), about, mandatory=True)
        print(exchange, key, flush=True)

    about = properties("from-python-1", headers={"forebay-attempt": 1, "tenant": "acme"})
    secret = "0123456789abcdef0123456789abcdef"
    signed = signature("test", secret, namespace, queue, json.dumps({"n": 1}), about)
    about.headers["forebay-signature"] = signed
    publish(namespace, queue, {"n": 1}, about)

    exchange, key = ladder(namespace, queue, 700)
    publish(exchange, key, {"n": 2}, properties("from-python-2-later"))

    bare = pika.BasicProperties(message_id="from-python-3-bare")
    publish(namespace, queue, {"n": 3}, bare)

    try:
        publish(namespace, "nowhere", {"n": 4}, properties("from-python-4-lost"))
    except pika.exceptions.UnroutableError:
        print("unroutable: nowhere")
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
