"""A stock Socket.IO client that does what it is told, a line of JSON at a time, and tells what it
sees. Arguments: address, library (always python), transports."""

import json
import sys
import threading

import socketio

ADDRESS, _, TRANSPORTS = sys.argv[1:4]
client = socketio.Client(reconnection_delay=0.05, reconnection_delay_max=0.2)
writing = threading.Lock()


def say(*line):
    with writing:
        print(json.dumps(line), flush=True)


client.on("connect", lambda: say("connect", client.transport()))
client.on("disconnect", lambda *_: say("disconnect"))
for name in ("event", "gap", "bye"):
    client.on(name, lambda *values, name=name: say(name, *values))

for line in sys.stdin:
    order, *values = json.loads(line)
    if order == "connect":
        try:
            client.connect(ADDRESS, auth=values[0], transports=TRANSPORTS.split(","))
        except socketio.exceptions.ConnectionError as error:
            say("connect_error", str(error))
    elif order == "cut":
        client.eio.disconnect()
    else:
        client.emit(order, values[0], callback=lambda *answer: say("ack", *answer))
client.disconnect()
