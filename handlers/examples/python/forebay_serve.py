"""Functions in Python for `serve` in forebay.toml: one process takes one job after another.

    from forebay_serve import Reject, job, serve

    @job("invoice.render")
    def render(payload, cx):
        if "id" not in payload:
            raise Reject("an invoice needs an id")  # can never succeed: dead letter
        cx.progress("half way")
        return {"pages": 3}                         # any other exception: tried again

    serve()

Copy this file beside yours; it needs nothing but Python 3.8. The protocol is docs/serve.md.
"""

import asyncio
import inspect
import json
import os
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

LARGEST_RESULT = 16 * 1024 * 1024
functions = {}
batches = {}


def batch(kind):
    """Registers a function(items, cx), plain or async, for jobs that come in batches: the
    function in forebay.toml has `batch = { size = 100 }`. All are done when it returns, but those
    whose `error` it has set; an exception fails them all."""

    def register(function):
        batches[kind] = function
        return function

    return register


def job(kind):
    """Registers a function(payload, cx), plain or async, for jobs of a kind."""

    def register(function):
        functions[kind] = function
        return function

    return register


class Reject(Exception):
    """The job can never succeed: it becomes a dead letter now."""


class RetryAfter(Exception):
    """Try again after so many seconds, as long as attempts are left."""

    def __init__(self, seconds, why="to be tried again later"):
        super().__init__(why)
        self.seconds = seconds


class Defer(RetryAfter):
    """Put the job off by so many seconds without using an attempt, at most 20 times in a row."""


class Item:
    """One job of a batch. Set `error`, an exception or a text, if it has failed; Reject,
    RetryAfter and Defer mean what they mean when they are raised. Set `result` to answer a caller."""

    def __init__(self, message):
        self.payload, self.id, self.attempt = message["payload"], message["id"], message["attempt"]
        self.redelivered, self.crashes = message["redelivered"], message["crashes"]
        self.idempotency_key = message.get("idempotency_key")
        self.traceparent = message.get("traceparent")
        self.error = self.result = None


class Context:
    """What a function is told besides the payload; of a batch, what all of it have in common."""

    def __init__(self, message, answers):
        self.run, self.kind, self.queue = message["run"], message["kind"], message["queue"]
        if message["type"] == "job":
            self.id, self.attempt = message["id"], message["attempt"]
            self.redelivered, self.crashes = message["redelivered"], message["crashes"]
            self.idempotency_key = message.get("idempotency_key")
            self.traceparent = message.get("traceparent")
        self.deadline = message["deadline_ms"] / 1000  # seconds since the epoch
        self.cancelled = threading.Event()  # set when the result no longer matters
        self._answers = answers

    def remaining(self):
        """Seconds until the deadline."""
        return max(0.0, self.deadline - time.time())

    def progress(self, value):
        """Notes how far the job is."""
        self._answers.send({"run": self.run, "progress": value})

    def emit(self, channel, event, data=None):
        """Tells a channel something, for whoever follows it."""
        told = {"channel": channel, "event": event, "data": data}
        self._answers.send({"run": self.run, "emit": told})


class Answers:
    """Descriptor 3. Lines from several threads must not mix."""

    def __init__(self):
        os.set_inheritable(3, False)
        self._pipe, self._lock = os.fdopen(3, "wb"), threading.Lock()

    def send(self, message):
        line = json.dumps(message, allow_nan=False, ensure_ascii=False).encode()
        if len(line) > LARGEST_RESULT:
            raise Reject(f"a result of {len(line)} bytes is larger than 16 MiB")
        with self._lock:
            self._pipe.write(line + b"\n")
            self._pipe.flush()


def serve():
    """Takes jobs until the worker closes standard input, then finishes what is running."""
    jobs, answers, running = int(os.environ["FOREBAY_SERVE_JOBS"]), Answers(), {}
    # What a function starts must not read the jobs, and what it prints is to be seen at once.
    lines = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout.reconfigure(line_buffering=True)
    with ThreadPoolExecutor(jobs) as threads:
        answers.send({"type": "ready", "protocol": 1, "jobs": jobs})
        for line in lines:
            message = json.loads(line)
            run = message["run"]
            if message["type"] == "job":
                running[run] = Context(message, answers)
                threads.submit(_run, message["payload"], running[run], answers, running)
            elif message["type"] == "batch":
                running[run] = Context(message, answers)
                items = [Item(job) for job in message["jobs"]]
                threads.submit(_run, items, running[run], answers, running, _answer_batch)
            elif message["type"] == "cancel" and run in running:
                running[run].cancelled.set()


def _run(payload, cx, answers, running, work=None):
    try:
        answer = (work or _answer)(payload, cx)
        answers.send({"run": cx.run, **answer})
    except BaseException as error:  # the result is no JSON, or too large
        answers.send({"run": cx.run, "error": _why(error), "reject": isinstance(error, Reject)})
    finally:
        running.pop(cx.run, None)


def _answer(payload, cx):
    if cx.kind not in functions:
        return {"error": f"this program has no function for kind {cx.kind}"}
    return _called(functions[cx.kind], payload, cx)


def _answer_batch(items, cx):
    if cx.kind not in batches:
        return {"error": f"this program has no function for batches of kind {cx.kind}"}
    answer = _called(batches[cx.kind], items, cx)
    if "ok" not in answer:
        return answer
    failures = [
        {"itemIdentifier": item.id, **_failure(item.error)}
        for item in items
        if item.error is not None
    ]
    results = {item.id: item.result for item in items if item.result is not None}
    return {"ok": {"batchItemFailures": failures, "results": results}}


def _called(function, payload, cx):
    try:
        result = function(payload, cx)
        return {"ok": asyncio.run(result) if inspect.iscoroutine(result) else result}
    except BaseException as error:  # sys.exit() ends the job, not this process
        if not isinstance(error, (Reject, RetryAfter)):
            traceback.print_exc()
        return _failure(error)


def _failure(error):
    if isinstance(error, Reject):
        return {"error": _why(error), "reject": True}
    if isinstance(error, Defer):
        return {"error": str(error), "defer": error.seconds}
    if isinstance(error, RetryAfter):
        return {"error": str(error), "retry_after": error.seconds}
    return {"error": _why(error) if isinstance(error, BaseException) else str(error)}


def _why(error):
    return f"{type(error).__name__}: {error}"
