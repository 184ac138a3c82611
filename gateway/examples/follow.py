"""Publishes a job and follows it to its end, through every loss of the connection.

    pip install "python-socketio[client]" && python3 follow.py report.render '{"id": 7}'

GATEWAY says where (default http://127.0.0.1:8090), TOKEN who we are.
"""

import json
import os
import sys
import time
import uuid

import socketio
from socketio.exceptions import ConnectionError, SocketIOError

kind, payload = (sys.argv[1:] + ["report.render", "{}"][len(sys.argv) - 1 :])[:2]
wish = {"kind": kind, "payload": json.loads(payload), "options": {"key": str(uuid.uuid4())}}
gateway, token = os.environ.get("GATEWAY", "http://127.0.0.1:8090"), os.environ.get("TOKEN")
client = socketio.Client()
here = {"job": None, "last": None, "result": None}


def end(result, words=""):
    if words:
        print(words, file=sys.stderr)
    here["result"] = result
    client.disconnect()


def ask(verb, body):
    answer = client.call(verb, body, timeout=15)
    if "error" in answer:
        end(1, f"{answer['error']['message']}; {answer['error']['remedy']}")
    return answer.get("ok")


def follow():
    """At the first connect and at each later one: with the key, to publish again is to ask again."""
    try:
        if here["job"] is None and (published := ask("publish", wish)):
            here.update(job=published["job"], last=published["token"])
        if here["job"] and (joined := ask("subscribe", {"job": here["job"], "from": here["last"]})):
            here["last"] = joined["token"]
            if not joined["recovered"]:
                print(f"some events are gone: {joined['reason']}", file=sys.stderr)
    except SocketIOError:
        pass  # The connection was lost meanwhile. The next one asks again.


@client.event
def connect():
    client.start_background_task(follow)


@client.event
def connect_error(why=None):
    if isinstance(why, dict):  # The gateway's words: it is there, and does not let us in.
        end(1, why["message"])


@client.on("event")
def happened(message):
    event, here["last"] = message["event"], message["token"]
    print(json.dumps(event), flush=True)
    if event["type"] in ("forebay.job.succeeded", "forebay.job.dead"):
        end(0 if event["type"].endswith("succeeded") else 1)


@client.on("token")
def further(message):
    here["last"] = message["token"]


@client.on("bye")
def sent_away(message):
    print(f"sent away: {message['reason']}; {message.get('remedy', '')}", file=sys.stderr)


# The client comes back by itself when its connection broke; not if it was never there, nor when the
# gateway has closed it.
while here["result"] is None:
    try:
        if not client.connected:
            client.connect(gateway, auth={"token": token} if token else {}, wait_timeout=10)
        client.wait()
    except ConnectionError as error:
        if here["result"] is None:
            print(f"{gateway}: {error}; trying again", file=sys.stderr)
    time.sleep(1)
sys.exit(here["result"])
