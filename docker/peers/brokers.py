"""What the two brokers are asked: how much waits, and at what price they work."""

import base64
import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import process

NOT_JSON = "{not json"
# Where Sidekiq and BullMQ keep jobs that are not done.
LISTS = "queue:{0} bull:{0}:wait bull:{0}:active bull:{0}:paused"
SETS = "retry dead bull:{0}:failed bull:{0}:delayed bull:{0}:prioritized"


class RabbitMQ:
    """By its management API."""

    def __init__(self, amqp, api, pid):
        self.environment = {"AMQP_URL": amqp}
        self.api = api.rstrip("/")
        self.pid = pid

    def cpu(self):
        return process.cpu_below(self.pid)

    def version(self):
        return f"RabbitMQ {self.ask('GET', 'overview')['rabbitmq_version']}"

    def waiting(self, system):
        """Messages that are on the system's queues, in a worker's hands or not."""
        return {name: queue["messages"] for name, queue in self.queues(system).items() if queue.get("messages")}

    def lag(self, system):
        """Seconds until a change of the counts is seen: quorum queues tell theirs every 5 s."""
        return 6 if any(queue["type"] == "quorum" for queue in self.queues(system).values()) else 0.5

    def durable(self, system):
        return self.queues(system)[system.queue]["durable"]

    def queues(self, system):
        # The counts as the queues have them now, not the statistics of some seconds ago.
        every = self.ask("GET", "queues/%2f?disable_stats=true&enable_queue_totals=true")
        root = system.queue.split(".")[0] + "." if system.family == "forebay" else system.queue
        return {queue["name"]: queue for queue in every if queue["name"].startswith(root)}

    def spoil(self, system):
        """Takes the message that waits and puts it back with a payload that is no JSON."""
        queue = urllib.parse.quote(system.queue, safe="")
        asked = {"count": 1, "ackmode": "ack_requeue_false", "encoding": "base64"}
        [message] = self.ask("POST", f"queues/%2f/{queue}/get", asked)
        again = {
            "routing_key": system.queue, "properties": message["properties"],
            "payload": base64.b64encode(NOT_JSON.encode()).decode(), "payload_encoding": "base64",
        }
        assert self.ask("POST", "exchanges/%2f/amq.default/publish", again)["routed"]
        return message["properties"].get("delivery_mode") == 2

    def forget(self, system):
        for name in self.queues(system):
            self.ask("DELETE", f"queues/%2f/{urllib.parse.quote(name, safe='')}")

    def ask(self, method, path, body=None):
        user = base64.b64encode(b"guest:guest").decode()
        request = urllib.request.Request(
            f"{self.api}/api/{path}", method=method, data=json.dumps(body).encode() if body else None,
            headers={"authorization": f"Basic {user}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None


class Redis:
    """By redis-cli."""

    def __init__(self, port, pid):
        self.environment = {"REDIS_URL": f"redis://127.0.0.1:{port}/0", "REDIS_PORT": str(port)}
        self.port = port
        self.pid = pid

    def cpu(self):
        return process.cpu_below(self.pid)

    def version(self):
        [line] = [line for line in self.ask("INFO", "server").splitlines() if line.startswith("redis_version:")]
        return f"Redis {line.split(':')[1].strip()}"

    def waiting(self, system):
        """Jobs in every list and set that the systems keep them in."""
        counts = {}
        for key in self.ask("KEYS", "*").split():
            if key in LISTS.format(system.queue).split():
                counts[key] = int(self.ask("LLEN", key))
            elif key in SETS.format(system.queue).split():
                counts[key] = int(self.ask("ZCARD", key))
        return {key: count for key, count in counts.items() if count}

    def lag(self, _system):
        return 0.5

    def durable(self, _system):
        return "appendonly yes" in " ".join(self.ask("CONFIG", "GET", "appendonly").split())

    def spoil(self, system):
        if system.name == "sidekiq":
            self.ask("DEL", f"queue:{system.queue}")
            self.ask("LPUSH", f"queue:{system.queue}", NOT_JSON)
        else:
            self.ask("HSET", f"bull:{system.queue}:1", "data", NOT_JSON)
        return self.durable(system)

    def forget(self, _system):
        self.ask("FLUSHALL")

    def ask(self, *words):
        command = ["redis-cli", "-p", str(self.port), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
