# How far the demo is: a table for a terminal, a line for a pipe.
# In:  the files `plan`, `tally` and `queues`, each announced by what=NAME before it;
#      `queues`, as they are to stand; `seconds` since the first publish; `as`, table or line;
#      `utf8`, 1 or empty.
#      plan:   queue kind jobs …
#      tally:  what tally.awk says
#      queues: what `forebay queues --output json` says
# Out: the same number of lines every time.

what == "plan" {
    queue_of[$2] = $1
    total += $3
}

what == "tally" && $1 == "-" {
    settled = $2 + $3
    all_done = $2; all_dead = $3; all_retried = $4
}

what == "tally" && $1 in queue_of {
    done[queue_of[$1]] += $2
    dead[queue_of[$1]] += $3
    retried[queue_of[$1]] += $4
}

what == "queues" {
    count = split($0, part, "{")
    for (i = 1; i <= count; i++) {
        if (part[i] ~ /"queue":"/) {
            name = part[i]
            sub(/.*"queue":"/, "", name)
            sub(/".*/, "", name)
            ready[name] = number(part[i], "ready")
            all_ready += ready[name]
        }
    }
    delayed = number($0, "total")
}

END {
    if (as == "line") {
        printf "%4d s  %s of %s jobs settled: done %s, dead %s, retried %s; ready %s, delayed %s\n",
            seconds, commas(settled), commas(total), commas(all_done), commas(all_dead),
            commas(all_retried), commas(all_ready), commas(delayed)
        exit
    }
    printf "  %s %3d %%   %s of %s jobs settled   %d s\n", bar(settled, total, 24),
        total ? int(100 * settled / total) : 0, commas(settled), commas(total), seconds
    printf "  %-10s %9s %9s %9s %9s\n", "queue", "ready", "done", "retried", "dead"
    count = split(queues, order, " ")
    for (i = 1; i <= count; i++) {
        name = order[i]
        printf "  %-10s %9s %9s %9s %9s\n", name, commas(ready[name]), commas(done[name]),
            commas(retried[name]), commas(dead[name])
    }
    printf "  on the delay ladder, until their next attempt: %s\n", commas(delayed)
}

function number(text, name) {
    if (!match(text, "\"" name "\":[0-9]+")) return 0
    return substr(text, RSTART + length(name) + 3, RLENGTH - length(name) - 3) + 0
}

function bar(part, whole, width,    full, i, text) {
    full = whole ? int(width * part / whole) : 0
    for (i = 1; i <= width; i++) text = text (i <= full ? (utf8 ? "█" : "#") : (utf8 ? "░" : "."))
    return text
}
