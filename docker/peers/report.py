"""From everything that was measured to the texts that are shown and kept. Pure."""

import figures
import plot

BEGIN = "<!-- measured by docker/peers/run.sh -->"
END = "<!-- end of docker/peers/run.sh -->"


def tables(run):
    """`run`: what measure.py keeps. Every system in its own order, Forebay first."""
    grouped = figures.by_system(run["measurements"])
    rows = []
    for system in run["systems"]:
        if system["name"] in grouped:
            row = figures.row(system["name"], grouped[system["name"]], run["measurements"])
            rows.append({"title": system["title"], **row})
    return rows


SAFETY = {
    "title": "system",
    "confirms": "a publish is confirmed",
    "durable": "queue durable, message persistent (seen)",
    "acks": "a job is acked",
    "prefetch": "prefetch",
    "setting": "besides",
    "bad": "a job that is no JSON (seen)",
}


def safety(run):
    rows = []
    for system in run["systems"]:
        seen = run["safety"].get(system["name"])
        if seen:
            durable = "yes" if seen["durable"] and seen["persistent"] else "**no**"
            if system["broker"] == "redis":
                durable = "append-only file, fsync once a second" if seen["durable"] else "**no**"
            rows.append({**{key: system[key] for key in SAFETY if key in system}, "durable": durable, "bad": seen["bad"]})
    return rows


def best_celery(run):
    family = [system["name"] for system in run["systems"] if system["family"] == "celery"]
    return figures.best_of(family, run["measurements"])


def facts(run):
    """Where it was measured, and how much else went on there."""
    others = sorted(m["others"] for m in run["measurements"] if m["others"] is not None)
    lines = [
        f"- {run['date']}, `{run['command']}`",
        f"- {run['machine']['processor']}, {run['machine']['cores']} cores shared by worker, broker and script, "
        f"{run['machine']['memory_gib']:.0f} GiB, Linux {run['machine']['kernel']}, everything over loopback",
        "- " + ", ".join([*run["brokers"], *(f"{title} {version}" for title, version in run["versions"].items())]),
        f"- load average before it {run['load'][0]:.2f}",
    ]
    if others:
        lines[-1] += (
            f"; other processes had {others[len(others) // 2]:.0%} of the machine during the median drain, "
            f"{others[-1]:.0%} during the worst"
        )
    best = best_celery(run)
    if best:
        title = next(system["title"] for system in run["systems"] if system["name"] == best)
        lines.append(f"- Celery's best setting here: {title.split(', ')[1]}")
    lines += [f"- left out: {name}: {reason}" for name, reason in run["left_out"].items()]
    lines += [f"- ended before its time: {name}: {' '.join(reason.split())}" for name, reason in run["failed"].items()]
    return "\n".join(lines)


def section(run, picture):
    return "\n\n".join([
        BEGIN,
        facts(run),
        figures.markdown(figures.HEADINGS, tables(run)),
        f"![drained jobs per second]({picture})",
        figures.markdown(SAFETY, safety(run)),
        END,
    ])


def svg(run):
    grouped = figures.by_system(run["measurements"])
    rows = []
    for system in run["systems"]:
        rates = [m["rate"] for m in grouped.get(system["name"], []) if m["rate"]]
        if rates:
            rate = figures.median(grouped[system["name"]], "rate")
            rows.append((system["title"], rate, min(rates), max(rates), system["family"] == "forebay"))
    rounds = len({m["round"] for m in run["measurements"]})
    subtitle = f"no-op jobs of 200 bytes, one worker, median of {rounds} rounds; the line is their range"
    return plot.bars("Drained jobs per second", subtitle, rows)


def terminal(run):
    parts = [figures.aligned(figures.HEADINGS, tables(run)), facts(run)]
    if run["safety"]:
        parts.insert(1, "\n".join(f"{row['title']}: a job that is no JSON: {row['bad']}" for row in safety(run)).replace("*", ""))
    return "\n\n".join(parts)


def put_between(text, new):
    """Raises ValueError if the text has no place for it."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"it has no lines '{BEGIN}' and '{END}'")
    return text[: text.index(BEGIN)] + new + text[text.index(END) + len(END) :]
