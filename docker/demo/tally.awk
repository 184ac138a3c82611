# What became of the jobs, by the worker's log: who is done and who is dead, counted by job id.
# In:  lines of JSON as forebay-run logs them with forebay_worker::telemetry=debug;
#      `start`, seconds since midnight UTC.
# Out: for each kind, and at the end for all (`-`):
#      kind, jobs done, dead, runs that will be retried, runs of jobs that were done before,
#      seconds from `start` to the last job done

{
    what = text("message")
    if (what == "done") {
        kind = text("job.kind")
        if (done_before[text("job.id")]++) again[kind]++
        else done[kind]++
        last[kind] = after_start()
    } else if (what == "job will be retried") {
        kind = text("job.kind")
        retried[kind]++
    } else if (what == "job is a dead letter now") {
        kind = text("job.kind")
        if (!dead_before[text("job.id")]++) dead[kind]++
    } else next
    kinds[kind]
}

END {
    for (kind in kinds) {
        line(kind, done[kind], dead[kind], retried[kind], again[kind], last[kind])
        d += done[kind]; x += dead[kind]; r += retried[kind]; a += again[kind]
        if (last[kind] > l) l = last[kind]
    }
    line("-", d, x, r, a, l)
}

function line(kind, done, dead, retried, again, last) {
    printf "%s %d %d %d %d %.3f\n", kind, done, dead, retried, again, last
}

# The value of a field that is a text. Texts inside of texts have their quotes escaped, so the
# first match is the field itself.
function text(name,    at, rest) {
    name = "\"" name "\":\""
    at = index($0, name)
    if (!at) return ""
    rest = substr($0, at + length(name))
    return substr(rest, 1, index(rest, "\"") - 1)
}

# 2026-11-21T22:25:50.149990Z, with midnight perhaps in between.
function after_start(    time, passed) {
    time = text("timestamp")
    passed = substr(time, 12, 2) * 3600 + substr(time, 15, 2) * 60 + substr(time, 18, 9) - start
    return passed < -43200 ? passed + 86400 : passed
}
