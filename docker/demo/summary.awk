# What became of each kind, beside what should have become of it.
# In:  the files `plan`, `tally` and `letters`, each announced by what=NAME before it.
#      plan:    queue, kind, jobs, how many of them should die, of which reason, and a remark
#      tally:   what tally.awk says
#      letters: kind, dead letters of that reason on the broker
# Out: a table. Exit code 1 if a job fared otherwise than it should.

what == "plan" {
    if ($2 in jobs) {
        jobs[$2] += $3
        next
    }
    kinds[++count] = $2
    jobs[$2] = $3
    to_die[$2] = $4
    reason[$2] = $5
    remark[$2] = $0
    sub(/^([^ ]+ +)([^ ]+ +)([^ ]+ +)([^ ]+ +)[^ ]+ */, "", remark[$2])
}

what == "tally" {
    done[$1] = $2
    retried[$1] = $4
}

what == "letters" { letters[$1] = $2 }

END {
    row("kind", "jobs", "done", "retried", "dead", "why")
    for (i = 1; i <= count; i++) {
        kind = kinds[i]
        why = (to_die[kind] ? reason[kind] (remark[kind] ? ": " : "") : "") remark[kind]
        row(kind, commas(jobs[kind]), commas(done[kind]), commas(retried[kind]), commas(letters[kind]), why)
        if (letters[kind] + 0 != to_die[kind] || done[kind] + 0 != jobs[kind] - to_die[kind]) {
            printf "  %-14s should be: %s done, %s dead (%s)\n", "", commas(jobs[kind] - to_die[kind]),
                commas(to_die[kind]), reason[kind]
            wrong = 1
        }
    }
    exit wrong
}

function row(kind, jobs, done, retried, dead, why) {
    printf "  %-14s%7s%7s%9s%5s%s\n", kind, jobs, done, retried, dead, why ? "  " why : ""
}
