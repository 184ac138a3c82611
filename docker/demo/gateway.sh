# The gateway of docker/demo.sh, and a client of it that loses its network while the worker is killed.
# Sourced by it.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of demo.sh

start_gateway() {
    local deadline=$((SECONDS + 30))
    cp docker/demo/gateway.toml "$tmp"
    : >"$tmp/gateway.log"
    set -m
    # It serves the page that --keep names.
    FOREBAY_GATEWAY_PAGE=true nohup "$forebay_gateway" --config "$tmp/gateway.toml" --log-format json \
        </dev/null >"$tmp/gateway.log" 2>&1 &
    gateway=$!
    set +m
    until door=$(sed -n 's#.*"open for clients".*"address":"\([^"]*\)".*#http://\1#p' "$tmp/gateway.log") && [ "$door" ]; do
        if ! kill -0 "$gateway" 2>/dev/null || [ $SECONDS -ge $deadline ]; then
            die "the gateway does not open; the end of its log: $(tail -n 3 "$tmp/gateway.log")" "please report it"
        fi
        sleep 0.1
    done
    line gateway "forebay-gateway, process $gateway, at $door"
}

# A job as a browser publishes it, and what a browser is told of it.
publish_report() {
    local answer
    plan reports report.render 1 0 - "published and followed through the gateway"
    echo '{"kind": "report.render", "payload": {"id": 7}}' >"$tmp/jobs/report.json"
    command_line "curl $door/jobs --data @report.json" 1
    answer=$(curl --silent --noproxy '*' --max-time 30 "$door/jobs" --data "@$tmp/jobs/report.json") || true
    report=$(sed -n 's/.*"job":"\([^"]*\)".*/\1/p' <<<"$answer")
    [ "$report" ] || die "the gateway took no job: $answer" "see its log: tail $tmp/gateway.log"
    echo '{"published":1}' >"$tmp/published/report"
    command_line "curl -N '$door/events?job=$report&from=beginning'"
    follow_report beginning live
}

# follow_report TOKEN FILE: what happened to it since then, and what comes.
follow_report() {
    set -m
    nohup curl --silent --no-buffer --noproxy '*' --output "$tmp/$2" "$door/events?job=$report&from=$1" \
        </dev/null >/dev/null 2>&1 &
    follower=$!
    set +m
}

report_has_begun() { grep -qs 'forebay.job.progress' "$tmp/live"; }

# Comes back with all that a client has to keep, the newest token; what it has then is what the stream has.
make_up_for_missed() {
    local on_stream deadline=$((SECONDS + 10))
    on_stream=$( (forebay follow "$report") 2>/dev/null | ids | awk '!told_before[$0]++')
    follow_report "$(sed -n 's/^id: *//p' "$tmp/live" | tail -n 1)" missed
    until [ "$(cat "$tmp/live" "$tmp/missed" 2>/dev/null | ids)" = "$on_stream" ] || [ $SECONDS -ge $deadline ]; do
        sleep 0.1
    done
    end "$follower" 5
    if [ "$(cat "$tmp/live" "$tmp/missed" | ids)" = "$on_stream" ]; then
        verdict yes "the report's events came through the gateway: $(count_in live) live, $(count_in missed) after the network was back, as they are on the stream"
    else
        verdict no "the report's events, $(count_in live) live and $(count_in missed) later, are not those on the stream"
    fi
}

count_in() { ids <"$tmp/$1" | wc -l | tr -d ' '; }

# ids: those of the events, in their order.
ids() { grep -o '"specversion":"1.0","id":"[^"]*"' || true; }
