#!/bin/sh
# One line for each run: the job's id and its payload.
printf '%s %s\n' "$FOREBAY_JOB_ID" "$(cat)" >>/data/notes
