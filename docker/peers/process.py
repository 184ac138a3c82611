"""Processes that are measured: a program and all that it starts, and the machine around them."""

import os
import pathlib
import signal
import subprocess
import time

TICKS = os.sysconf("SC_CLK_TCK")
PROC = pathlib.Path("/proc")


class Running:
    """A program in a session of its own, by which its children are known whatever becomes of it."""

    def __init__(self, command, environment, folder, log):
        self.log = log
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                command, env={**os.environ, **environment}, cwd=folder, stdin=subprocess.DEVNULL,
                stdout=file, stderr=file, start_new_session=True,
            )

    @property
    def session(self):
        return self.process.pid

    def alive(self):
        return self.process.poll() is None

    def tree(self):
        return [pid for pid, stat in stats() if stat["session"] == self.session]

    def cpu(self):
        """Seconds, of children that have ended too."""
        return sum(stat["cpu"] for _, stat in stats() if stat["session"] == self.session)

    def memory(self):
        """Bytes; what forked processes share counts once."""
        return sum(map(memory, self.tree()))

    def stop(self, patience=20):
        """Asks, waits, and then insists. Says whether asking was enough."""
        gentle = True
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                gentle = False
        for pid in self.tree():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        return gentle

    def last_words(self, lines=5):
        with open(self.log, errors="replace") as file:
            return "".join(file.readlines()[-lines:]).strip()


def stats():
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), parse_stat((entry / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                pass  # it has ended meanwhile


def parse_stat(text):
    # The name, in parentheses, may hold anything.
    fields = text[text.rindex(")") + 2 :].split()
    user, system, children_user, children_system = map(int, fields[11:15])
    return {
        "parent": int(fields[1]),
        "session": int(fields[3]),
        "cpu": (user + system + children_user + children_system) / TICKS,
    }


def cpu_below(root):
    """Seconds of a process and its descendants: the broker, whatever sessions it has."""
    all_stats = dict(stats())
    below = {root}
    grown = True
    while grown:
        more = {pid for pid, stat in all_stats.items() if stat["parent"] in below} - below
        below |= more
        grown = bool(more)
    return sum(all_stats[pid]["cpu"] for pid in below if pid in all_stats)


def memory(pid):
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def machine():
    """Seconds that all cores together have worked, and those that have passed for them."""
    user, nice, system, idle, wait, irq, softirq, steal = map(
        int, (PROC / "stat").read_text().splitlines()[0].split()[1:9]
    )
    busy = user + nice + system + irq + softirq + steal
    return busy / TICKS, (busy + idle + wait) / TICKS


def wait_until(condition, seconds, pause=0.05):
    deadline = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < deadline:
        time.sleep(pause)
    return answer
