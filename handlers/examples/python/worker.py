"""A worker in Python; forebay.toml beside it says how it is started."""

import time

from forebay_serve import Defer, Reject, batch, job, serve


@job("invoice.render")
def render(payload, cx):
    if "lines" not in payload:
        raise Reject("an invoice needs lines")
    for done, _ in enumerate(payload["lines"], start=1):
        if cx.cancelled.is_set():  # timeout or shutdown: nobody waits for the result
            return None
        time.sleep(0.01)
        cx.progress({"lines": done})
    print(f"rendered {cx.id}, attempt {cx.attempt}")  # becomes a log line
    return {"total": sum(line["price"] for line in payload["lines"])}


@job("invoice.send")
async def send(payload, cx):
    if payload.get("draft"):
        raise Defer(10, "still a draft")  # again in 10 s, without using an attempt
    return {"sent": payload["id"]}


@batch("invoice.book")
def book(items, cx):
    rows = []
    for item in items:
        if "id" in item.payload:
            rows.append(item.payload["id"])
        else:
            item.error = Reject("an invoice needs an id")  # this one alone
    print(f"booked {len(rows)} invoices at once")


if __name__ == "__main__":
    serve()
