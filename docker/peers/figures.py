"""From measured rounds to medians, ratios and a table. Pure: nothing here runs or reads anything.

A measurement is one system in one round: a dict with `system`, `round`, `jobs`, `rate`,
`publish_rate`, `cpu_us`, `broker_us` and `memory_mib`; a rate that was too short to measure is None.
"""

import random
import statistics
from collections import defaultdict

REFERENCE = "forebay"
DRAWS = 10_000


def by_system(measurements):
    """In the order in which they first come."""
    systems = defaultdict(list)
    for measurement in measurements:
        systems[measurement["system"]].append(measurement)
    return dict(systems)


def median(measurements, figure):
    values = [measurement[figure] for measurement in measurements if measurement[figure] is not None]
    return statistics.median(values) if values else None


def ratios(measurements, peer, figure="rate"):
    """Forebay ÷ peer, each from one round: what slows the machine for a while slows both."""
    rounds = defaultdict(dict)
    for measurement in measurements:
        rounds[measurement["round"]][measurement["system"]] = measurement[figure]
    return [
        round_[REFERENCE] / round_[peer]
        for round_ in rounds.values()
        if round_.get(REFERENCE) and round_.get(peer)
    ]


def interval(values, draws=DRAWS):
    """The bootstrap 95 % interval of the median; always the same for the same values."""
    if len(values) < 3:
        return None
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(draws * 0.025)], medians[int(draws * 0.975) - 1]


def best_of(family, measurements):
    """The fastest setting of a system that was measured with several, by its median rate."""
    systems = {name: median(its, "rate") for name, its in by_system(measurements).items() if name in family}
    systems = {name: rate for name, rate in systems.items() if rate}
    return max(systems, key=systems.get, default=None)


def number(value, digits=3):
    """Three digits that mean something: rates swing more than that."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    places = digits - 1
    magnitude = abs(value)
    while magnitude >= 10:
        magnitude /= 10
        places -= 1
    while magnitude < 1:
        magnitude *= 10
        places += 1
    return f"{round(value, places):,.{max(places, 0)}f}"


def row(name, measurements, everything):
    """One system's figures as texts."""
    rates = [m["rate"] for m in measurements if m["rate"]]
    against = ratios(everything, name)
    around = interval(against)
    if name == REFERENCE:
        ratio = "1"
    elif not against:
        ratio = "–"
    else:
        ratio = f"**{number(statistics.median(against))}** ({number(min(against))}–{number(max(against))})"
    return {
        "jobs": f"{measurements[0]['jobs']:,}",
        "drain": f"{number(median(measurements, 'rate'))} ({number(min(rates))}–{number(max(rates))})" if rates else "–",
        "ratio": ratio,
        "interval": "" if name == REFERENCE or not around else f"{number(around[0])}–{number(around[1])}",
        "cpu": number(median(measurements, "cpu_us")),
        "broker": number(median(measurements, "broker_us")),
        "memory": number(median(measurements, "memory_mib")),
        "publish": number(median(measurements, "publish_rate")),
    }


HEADINGS = {
    "title": "system",
    "jobs": "jobs",
    "drain": "drained per s: median (range)",
    "ratio": "Forebay ÷ it: median (range)",
    "interval": "95 % interval",
    "cpu": "worker CPU µs per job",
    "broker": "broker CPU µs per job",
    "memory": "worker memory, MiB at most",
    "publish": "published per s",
}


def markdown(headings, rows):
    """A table; every column but the first stands to the right."""
    lines = [[headings[key] for key in headings], *([row[key] for key in headings] for row in rows)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|---" + "|---:" * (len(headings) - 1) + "|")
    return "\n".join(text)


def aligned(headings, rows):
    """The same for a terminal."""
    lines = [[headings[key] for key in headings], *([row[key].replace("*", "") for key in headings] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
