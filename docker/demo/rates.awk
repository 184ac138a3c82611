# How fast the burst was: jobs done, divided by the time from the first publish to the last of them.
# In: what tally.awk says; `cores` of this machine. Out: two lines.

$1 ~ /^(file\.digest|text\.count|order\.notify)$/ && $6 > 0 {
    jobs += $2
    if ($6 > seconds) seconds = $6
    rate[$1] = $2 / $6
}

END {
    if (!jobs) exit
    count = split("file.digest text.count order.notify", kinds, " ")
    for (i = 1; i <= count; i++)
        if (kinds[i] in rate) each = each (i > 1 ? ", " : "") kinds[i] " " commas(rate[kinds[i]])
    printf "  %s jobs done in %.1f s, from first publish to last job done: %s a second\n",
        commas(jobs), seconds, commas(jobs / seconds)
    printf "  %s; %d cores for everything\n", each, cores
}
