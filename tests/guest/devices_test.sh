# Goal: the guest is what tests over RDMA rely on. Runs in the guest.
# Method: looks at the devices, sends through them and counts the packets on the wire between them.
set -euo pipefail
failed=0
holds() {  # name command...
  local name=$1
  shift
  if "$@"; then echo "ok      $name"; else echo "FAILED  $name"; failed=1; fi
}
received() { cat "/sys/class/net/veth$1/statistics/rx_packets"; }

for device in rxe0 rxe1; do
  holds "$device is active" grep -q ACTIVE "/sys/class/infiniband/$device/ports/1/state"
done
holds "the addresses" test "$RXE0_ADDRESS $RXE1_ADDRESS" = "10.77.0.1 10.77.1.1"
holds "any amount of memory may be locked" test "$(ulimit -l)" = unlimited
holds "the build is here" test -x "$BUILD/bin/volley"
holds "TMPDIR is empty and writable" test -z "$(ls -A "$TMPDIR")" -a -w "$TMPDIR"
holds "the results folder is writable" touch "$RESULTS/touched"
holds "shared memory is empty and writable" test -z "$(ls -A /dev/shm)" -a -w /dev/shm
holds "loopback is up" grep -q LOOPBACK,UP <(ip link show lo)

before=$(received 1)
before_back=$(received 0)
ib_send_lat -d rxe0 -x 1 -n 100 -F >"$TMPDIR/server" 2>&1 &
server=$!
for _ in {1..100}; do
  ss -Hltn 'sport = :18515' | grep -q . && break
  sleep 0.1
done
status=0
ib_send_lat -e -d rxe1 -x 1 -n 100 -F 127.0.0.1 >"$TMPDIR/client" 2>&1 || status=$?
holds "perftest runs between the devices" test $status = 0
wait $server || failed=1
[ $status = 0 ] || cat "$TMPDIR/server" "$TMPDIR/client"
holds "100 packets crossed to rxe1" test $(($(received 1) - before)) -ge 100
holds "100 packets crossed to rxe0" test $(($(received 0) - before_back)) -ge 100
exit $failed
