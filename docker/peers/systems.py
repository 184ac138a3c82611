"""The systems that are compared: how each is called, and what it was told about safety.

Each works as one worker process would be run in production at its best, and as safely as it can be:
confirmed publishes, durable queues, persistent messages, an ack after the job has run. Where it
cannot, its settings say so.
"""

import dataclasses
import json
import pathlib
import subprocess

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class System:
    name: str
    title: str
    broker: str  # "rabbitmq" or "redis"
    queue: str
    folder: pathlib.Path
    publish: tuple
    work: tuple
    share: float  # of the jobs: who is slower gets fewer, so that each drains for some seconds
    confirms: str
    acks: str
    prefetch: str
    setting: str  # what else was chosen
    environment: dict = dataclasses.field(default_factory=dict)
    family: str = ""  # one system with several settings

    def called(self, word):
        return word in (self.name, self.family)


def systems(home):
    """All of them, with programs from `home`."""
    rust = home / "cargo" / "release"
    python = home / "venv" / "bin"
    return [
        forebay("classic", rust),
        forebay("quorum", rust),
        System(
            name="lapin", title="lapin, bare", broker="rabbitmq", queue="peers.lapin", folder=HERE / "rust",
            publish=(rust / "lapin", "publish"), work=(rust / "lapin", "work"), share=1,
            confirms="yes, 1,000 on their way", acks="after the job, those at hand as one", prefetch="200",
            setting="the client library without a framework: no retries, no dead letters, no reconnect",
        ),
        System(
            name="apalis", title="apalis-amqp", broker="rabbitmq", queue="peers.apalis", folder=HERE / "rust",
            publish=(rust / "apalis", "publish"), work=(rust / "apalis", "work"), share=1,
            confirms="**no**: it has no setting for it", acks="after the job", prefetch="200",
            setting="retries and spans on; each job told to be persistent, which is not its default; its consumer "
                    "opened beforehand, since 1.0.0 panics at its start otherwise",
        ),
        celery("solo", 1, python),
        celery("threads", 8, python),
        celery("prefork", 2, python),
        System(
            name="dramatiq", title="Dramatiq", broker="rabbitmq", queue="peers.dramatiq", folder=HERE / "python",
            publish=(python / "python", "dramatiq_app.py"),
            work=(python / "dramatiq", "dramatiq_app", "--processes", "1", "--threads", "8"),
            environment={"dramatiq_queue_prefetch": "200"}, share=0.1,
            confirms="yes, one at a time; not its default", acks="after the job", prefetch="200",
            setting="1 process, 8 threads",
        ),
        System(
            name="taskiq", title="taskiq", broker="rabbitmq", queue="peers.taskiq", folder=HERE / "python",
            publish=(python / "python", "taskiq_app.py"),
            work=(python / "taskiq", "worker", "taskiq_app:broker", "--workers", "1",
                  "--max-async-tasks", "200", "--log-level", "WARNING"),
            share=0.1,
            confirms="yes, 1,000 on their way", acks="after the job", prefetch="200",
            setting="1 worker, 200 tasks at once",
        ),
        System(
            name="sidekiq", title="Sidekiq", broker="redis", queue="peers-sidekiq", folder=HERE / "ruby",
            publish=("ruby", "sidekiq_app.rb"),
            work=("sidekiq", "-r", "./sidekiq_app.rb", "-c", "10", "-q", "peers-sidekiq"),
            share=0.2,
            confirms="Redis answers, 1,000 jobs at a time", acks="**before the job**: it is lost if the process dies",
            prefetch="–", setting="10 threads, its default; in bulk",
        ),
        System(
            name="bullmq", title="BullMQ", broker="redis", queue="peers-bullmq", folder=HERE / "node",
            publish=("node", "bullmq.mjs", "publish"), work=("node", "bullmq.mjs", "work"),
            environment={"PEERS_CONCURRENCY": "100"}, share=0.2,
            confirms="Redis answers, 1,000 jobs at a time", acks="after the job, under a lock", prefetch="–",
            setting="100 jobs at once, retries on; in bulk",
        ),
    ]


def forebay(queue_type, rust):
    name = "forebay" if queue_type == "classic" else "forebay-quorum"
    return System(
        name=name, family="forebay",
        title="Forebay" if queue_type == "classic" else "Forebay, quorum queue",
        broker="rabbitmq", queue=f"peers-{queue_type}.work", folder=HERE / "rust",
        publish=(rust / "forebay", "publish"), work=(rust / "forebay", "work"),
        environment={"FOREBAY_NAMESPACE": f"peers-{queue_type}", "PEERS_QUEUE_TYPE": queue_type}, share=1,
        confirms="yes, 1,000 on their way", acks="after the job, those at hand as one", prefetch="200",
        setting="64 jobs at once; retries, dead letters, metrics, spans and logs on",
    )


def celery(pool, concurrency, python):
    return System(
        name=f"celery-{pool}", family="celery", title=f"Celery, {pool}", broker="rabbitmq",
        queue=f"peers.celery-{pool}", folder=HERE / "python",
        publish=(python / "python", "celery_app.py"),
        work=(python / "celery", "--app", "celery_app", "worker", "--pool", pool,
              "--concurrency", str(concurrency), "--loglevel", "WARNING",
              # Talk among workers, of which there is one.
              "--without-gossip", "--without-mingle", "--without-heartbeat"),
        environment={"PEERS_CONCURRENCY": str(concurrency)}, share=0.1,
        confirms="yes, one at a time; not its default", acks="after the job; not its default",
        prefetch="200 in all", setting=f"{concurrency} at once" if concurrency > 1 else "one job at a time",
    )


def versions(home):
    """What was measured, by the words of the packages themselves."""
    root = HERE.parent.parent
    asked = {
        "Forebay": ("git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12"),
        "Python": (home / "venv" / "bin" / "python", "--version"),
        "Node": ("node", "--version"),
        "Ruby": ("ruby", "-e", "puts RUBY_VERSION"),
        "Sidekiq": ("ruby", "-e", "require 'sidekiq/version'; puts Sidekiq::VERSION"),
    }
    script = "import importlib.metadata as m; print(m.version('{}'))"
    for title in ("celery", "dramatiq", "taskiq", "taskiq-aio-pika"):
        asked[title] = (home / "venv" / "bin" / "python", "-c", script.format(title))
    known = {title: answer(command) for title, command in asked.items()}
    for crate in ("lapin", "apalis", "apalis-amqp"):
        known[crate] = locked(HERE / "rust" / "Cargo.lock", crate)
    package = HERE / "node" / "node_modules" / "bullmq" / "package.json"
    known["BullMQ"] = json.loads(package.read_text())["version"] if package.exists() else None
    return {title: version.removeprefix("Python ") for title, version in known.items() if version}


def answer(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def locked(file, crate):
    lines = file.read_text().splitlines() if file.exists() else []
    for name, version in zip(lines, lines[1:]):
        if name == f'name = "{crate}"':
            return version.split('"')[1]
    return None
