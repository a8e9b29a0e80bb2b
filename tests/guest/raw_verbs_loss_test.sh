# Goal: a wire that loses packets loses no message: rxe retransmits. Runs in the guest.
# Method: netem drops 1 % each way; every byte of every message is compared; packets must have been dropped.
set -euo pipefail
for end in 0 1; do tc qdisc add dev veth$end root netem loss 1%; done

for mode in latency bandwidth; do
  "$BUILD/bin/raw_verbs" --device rxe0 --wait event --timeout-exponent 10 &
  server=$!
  "$BUILD/bin/raw_verbs" --device rxe1 --wait event --timeout-exponent 10 --connect 127.0.0.1 --check \
    --mode $mode --sizes 64,4096,65536 --messages 500 --data-mib-max 8
  wait $server
done

dropped=$(tc -s qdisc show | sed -n 's/.*(dropped \([0-9]*\),.*/\1/p' | awk '{ sum += $1 } END { print sum }')
echo "dropped packets: $dropped"
[ "$dropped" -ge 20 ]
