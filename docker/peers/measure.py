"""Measures systems in interleaved rounds; docker/peers/run.sh calls it when all is installed.

Standard library only.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import brokers
import drain
import report
import safety
from systems import systems, versions

ONCE_JOBS = 2_000  # for the fastest; a twentieth and more of it for the others


def main():
    asked = arguments()
    # So that workers are ended by whoever has begun them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if asked.render:
        run = json.loads(asked.render.read_text())
    else:
        try:
            run = measured(asked)
        except (OSError, subprocess.SubprocessError) as error:
            sys.exit(f"error: a broker does not answer any more: {error}\n"
                     f"  remedy: see whether the machine has memory and disk to spare; finished rounds are in {asked.results}")
        say(f"what was measured is in {asked.results}")
    print(report.terminal(run))
    if asked.write:
        write(asked.write, run)
    if run["failed"]:
        sys.exit("error: " + "; ".join(f"{name}: {reason}" for name, reason in run["failed"].items()))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=pathlib.Path, help="where run.sh has installed everything")
    parser.add_argument("--systems", default="", help="names, with commas")
    parser.add_argument("--left-out", action="append", default=[], metavar="NAME=REASON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=50_000)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--amqp")
    parser.add_argument("--api")
    parser.add_argument("--rabbitmq-pid", type=int)
    parser.add_argument("--redis-port", type=int)
    parser.add_argument("--redis-pid", type=int)
    parser.add_argument("--command", default="docker/peers/run.sh")
    parser.add_argument("--results", type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path)
    parser.add_argument("--render", type=pathlib.Path, help="no measuring: show a file of results")
    asked = parser.parse_args()
    if asked.once:
        asked.rounds, asked.jobs = 1, ONCE_JOBS
    return asked


def measured(asked):
    names = asked.systems.split(",")
    chosen = [system for system in systems(asked.home.resolve()) if system.name in names]
    logs = asked.home.resolve() / "logs"
    logs.mkdir(exist_ok=True)
    for log in logs.glob("*.log"):
        log.unlink()
    served = {}
    if asked.amqp:
        served["rabbitmq"] = brokers.RabbitMQ(asked.amqp, asked.api, asked.rabbitmq_pid)
    if asked.redis_port:
        served["redis"] = brokers.Redis(asked.redis_port, asked.redis_pid)
    run = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": asked.command,
        "machine": machine(),
        "load": os.getloadavg(),
        "brokers": [broker.version() for broker in served.values()],
        "versions": versions(asked.home.resolve()),
        "systems": [described(system) for system in chosen],
        "left_out": dict(reason.split("=", 1) for reason in asked.left_out),
        "safety": {}, "measurements": [], "failed": {},
    }
    settings(run, chosen, served, logs)
    rounds(run, chosen, served, logs, asked)
    return run


def settings(run, chosen, served, logs):
    for system in chosen:
        broker = served[system.broker]
        broker.forget(system)
        with failing(run, system, broker):
            seen = run["safety"][system.name] = safety.look(system, broker, logs)
            say(f"{system.title:24} a job that is no JSON: {seen['bad']}")


def rounds(run, chosen, served, logs, asked):
    for turn in range(asked.rounds):
        say(f"round {turn + 1} of {asked.rounds}, load average {os.getloadavg()[0]:.2f}")
        # The other way round each time, so that nobody always comes after the same one.
        for system in chosen if turn % 2 == 0 else reversed(chosen):
            if system.name in run["failed"]:
                continue
            broker = served[system.broker]
            with failing(run, system, broker):
                jobs = max(100, round(asked.jobs * system.share))
                figures = drain.measure(system, jobs, broker, logs)
                run["measurements"].append({"round": turn, **figures})
                tell(system, figures)
        asked.results.write_text(json.dumps(run, indent=1))


@contextlib.contextmanager
def failing(run, system, broker):
    """Who fails is left out from then on, and its jobs with it; the others go on."""
    try:
        yield
    except drain.Failed as error:
        run["failed"][system.name] = str(error)
        say(f"{system.title}: {error}")
        broker.forget(system)


def described(system):
    words = ("name", "family", "title", "broker", "confirms", "acks", "prefetch", "setting")
    return {key: value for key, value in dataclasses.asdict(system).items() if key in words}


def machine():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    total = int(pathlib.Path("/proc/meminfo").read_text().split()[1])
    return {
        "processor": names[0] if names else os.uname().machine, "cores": os.cpu_count(),
        "memory_gib": total / 2**20, "kernel": os.uname().release,
    }


def tell(system, figures):
    if figures["rate"] is None:
        say(f"{system.title:24} {figures['jobs']:>7} jobs ran, too quickly to measure")
    else:
        say(
            f"{system.title:24} {figures['jobs']:>7} jobs  drained {figures['rate']:>7.0f}/s  "
            f"CPU {figures['cpu_us']:>5.0f} µs, broker {figures['broker_us']:>4.0f} µs a job  "
            f"{figures['memory_mib']:>4.0f} MiB  published {figures['publish_rate']:>6.0f}/s"
        )


def write(file, run):
    picture = file.with_suffix(".svg") if "peers" in file.stem else file.with_name(f"{file.stem}-peers.svg")
    try:
        text = report.put_between(file.read_text(), report.section(run, picture.name))
    except (OSError, ValueError) as error:
        sys.exit(f"error: '{file}' was not written: {error}\n"
                 f"  remedy: put these two lines where the figures shall stand:\n{report.BEGIN}\n{report.END}")
    file.write_text(text)
    picture.write_text(report.svg(run))
    say(f"written: {file}, {picture}")


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
