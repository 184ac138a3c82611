# The worker of docker/demo.sh and the web server it calls. Sourced by it.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of demo.sh

write_manifest() {
    local hooks=''
    cp docker/demo/count.sh docker/demo/trouble.sh "$tmp"
    [ "$receiver" ] || hooks='/^\[queues.hooks\]/,/^timeout/d'
    sed -e "s|@files@|$(printf '%s' "$files" | sed 's/[\|&"]/\\&/g')|" -e "s|@port@|$port|" -e "$hooks" \
        docker/demo/forebay.toml >"$tmp/forebay.toml"
}

start_receiver() {
    local deadline=$((SECONDS + 20))
    port=''
    if ! python3 -c 'import http.server' 2>/dev/null; then
        line "web server" "none: python3 is not here; so there are no order.notify jobs"
        return
    fi
    cp docker/demo/receiver.py "$tmp"
    set -m # a process group of its own, so that Ctrl-C does not reach it before us
    nohup python3 "$tmp/receiver.py" "$tmp" </dev/null >"$tmp/receiver.log" 2>&1 &
    receiver=$!
    set +m
    until [ -f "$tmp/port" ]; do
        if ! kill -0 "$receiver" 2>/dev/null || [ $SECONDS -ge $deadline ]; then
            die "the web server for order.notify does not start: $(tail -n 1 "$tmp/receiver.log")" "see docker/demo/receiver.py"
        fi
        sleep 0.1
    done
    port=$(<"$tmp/port")
    line "web server" "python3 on 127.0.0.1:$port, for order.notify"
}

start_worker() {
    local deadline=$((SECONDS + 30)) queues
    workers=$((workers + 1))
    log=$tmp/worker-$workers.log
    : >"$log"
    queues=$(grep -c '^\[queues' "$tmp/forebay.toml")
    set -m
    # The log says of each job that it is done: that is what is counted here.
    nohup "$forebay_run" --config "$tmp/forebay.toml" --log info,lapin=off,forebay_worker::telemetry=debug \
        </dev/null >"$tmp/worker.out" 2>"$log" &
    worker=$!
    set +m
    until [ "$(grep -c '"message":"consuming"' "$log")" -ge "$queues" ]; do
        worker_lives
        if [ $SECONDS -ge $deadline ]; then
            die "the worker does not consume; the end of its log: $(tail -n 3 "$log")" "see what the broker logs"
        fi
        sleep 0.1
    done
    line worker "forebay-run, process $worker, consumes $queues queues"
    line "its log" "$log"
}

# The broker does not count what a worker has in its hands. A worker that ends gives it back.
give_back() {
    end "$worker" 30
    take_stock
}

worker_lives() {
    kill -0 "$worker" 2>/dev/null ||
        die "the worker has ended by itself; the end of its log: $(tail -n 5 "$log")" "please report it"
}

# While it works, with its hands full, and its client loses the network. Nothing may be lost by that.
kill_worker() {
    publish_report
    tail -n 200 "$tmp/texts" >"$tmp/last"
    take 200 "$tmp/last" >"$tmp/jobs/more.txt"
    plan texts text.count 200 0 - ""
    command_line "forebay publish text.count --lines more.txt" 200
    publish text.count --lines "$tmp/jobs/more.txt"
    until take_stock; [ "$(left text.count)" -le 150 ] && report_has_begun; do
        if is_late; then return; fi
        worker_lives
        sleep 0.1
    done
    kill -USR1 "$worker" # it logs what is running
    sleep 0.2
    command_line "kill -9 $worker $follower"
    kill -KILL "$worker" "$follower"
    { wait "$worker" "$follower"; } 2>/dev/null || true
    take_stock
    remark "$(grep -c '"message":"running"' "$log" || true) jobs were running, $(left text.count) were still to do"
    start_worker
}
