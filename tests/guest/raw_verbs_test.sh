# Goal: raw_verbs moves every byte of every message, in both modes and at every size. Runs in the guest.
# Method: --check, one process on each device; then both on one device, where rxe takes another path.
set -euo pipefail

both() {  # device-of-the-passive device-of-the-active option...
  local passive=$1 active=$2 server status=0
  shift 2
  "$BUILD/bin/raw_verbs" --device "$passive" --wait event &
  server=$!
  "$BUILD/bin/raw_verbs" --device "$active" --wait event --connect 127.0.0.1 --check "$@" || status=$?
  wait $server
  return $status
}

both rxe0 rxe1 --mode latency --messages 100 --data-mib-max 4 --json "$RESULTS/latency.json"
both rxe0 rxe1 --mode bandwidth --messages 200 --data-mib-max 4 --json "$RESULTS/bandwidth.json"
both rxe0 rxe0 --mode bandwidth --sizes 1,7,4095,4097 --messages 50 --window 3
for mode in latency bandwidth; do
  [ "$(grep -c '"size_bytes"' "$RESULTS/$mode.json")" = 8 ]
done

# A check that cannot fail shows nothing: too few retries on a dead wire must end both with an error.
tc qdisc add dev veth0 root netem loss 100%
"$BUILD/bin/raw_verbs" --device rxe0 --wait event --deadline-s 3 2>"$TMPDIR/passive" &
server=$!
status=0
"$BUILD/bin/raw_verbs" --device rxe1 --wait event --connect 127.0.0.1 --retries 1 --timeout-exponent 10 \
  --deadline-s 3 2>"$TMPDIR/active" || status=$?
wait $server && exit 1
[ $status = 1 ] && grep 'transport retry counter exceeded' "$TMPDIR/active"
