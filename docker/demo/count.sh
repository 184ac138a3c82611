#!/bin/sh
# text.count: how many words a text has, and which is the most frequent.
# Job: {"path": "/usr/share/doc/bash/README"}. Result: {"path": …, "words": 4211, "frequent": "the"}.
set -eu
path=$(sed -n 's/.*"path" *: *"\([^"]*\)".*/\1/p')
if [ ! -f "$path" ]; then
    echo "there is no file '$path'" >&2
    exit 65 # it will not be there next time either: dead letter
fi

echo '{"progress": "counting words"}' >&3
words=$(wc -w <"$path" | tr -d ' ')

echo '{"progress": "looking for the most frequent word"}' >&3
export LC_ALL=C
frequent=$(tr -cs '[:alpha:]' '\n' <"$path" | tr '[:upper:]' '[:lower:]' | sort | uniq -c | sort -rn |
    awk 'length($2) > 2 { print $2; exit }')

result="{\"path\": \"$path\", \"words\": $words, \"frequent\": \"$frequent\"}"
# A job may run twice. Kept under its id, its result is there once all the same.
echo "$result" >"results/$FOREBAY_JOB_ID.new"
mv "results/$FOREBAY_JOB_ID.new" "results/$FOREBAY_JOB_ID.json"
echo "$result"
