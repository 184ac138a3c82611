#!/bin/sh
# Programs that fail, each in its own way.
case $1 in
    print)
        if [ "$FOREBAY_JOB_ATTEMPT" -le 2 ]; then
            echo "the printer is out of paper" >&2
            exit 1 # any other code than 0, 65 and 75: again, by the function's `retry`
        fi
        ;;
    send)
        echo "mail.example.org does not answer" >&2
        exit 1
        ;;
    check)
        echo "this invoice has no customer" >&2
        exit 65 # dead letter at once
        ;;
    draw) exec sleep 60 ;;
esac
