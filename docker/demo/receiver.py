"""A web server as the demo needs one: it mostly answers well.

usage: receiver.py FOLDER

It listens on a free port of this machine, writes the port to FOLDER/port, and appends to
FOLDER/answers a line for each request: status and idempotency key.
"""

import json
import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open

    def do_POST(self):
        order = json.loads(self.rfile.read(int(self.headers["content-length"])))["order"]
        status = answer(order, int(self.headers["forebay-job-attempt"]))
        os.write(answers, f"{status} {self.headers['idempotency-key']}\n".encode())
        self.send_response_only(status)
        if status == 503:
            self.send_header("retry-after", "1")
        self.send_header("content-length", "0")
        self.end_headers()


def answer(order, attempt):
    if order % 100 == 13:
        return 404  # there is no such order, and never will be
    if order % 10 == 0 and attempt == 1:
        return 503  # too busy just now
    return 200


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


folder = sys.argv[1]
answers = os.open(os.path.join(folder, "answers"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
with Server(("127.0.0.1", 0), Receiver) as server:
    # Renamed into place, so that whoever waits for it never reads half a number.
    with open(os.path.join(folder, "port.new"), "w") as file:
        file.write(str(server.server_address[1]))
    os.rename(os.path.join(folder, "port.new"), os.path.join(folder, "port"))
    server.serve_forever()
