# Goal: 20,000 messages over a wire that loses packets are neither lost nor torn nor doubled. Runs in the
# guest. Method: netem drops 1 % each way under the conformance suite's random traffic, whose every byte is
# compared; packets must have been dropped.
set -euo pipefail
for end in 0 1; do tc qdisc add dev veth$end root netem loss 1%; done
"$BUILD/tests/transport/fabric_conformance_test" --gtest_color=no \
  --gtest_filter='Verbs/*RandomTraffic*/verbs'
dropped=$(tc -s qdisc show | sed -n 's/.*(dropped \([0-9]*\),.*/\1/p' | awk '{ sum += $1 } END { print sum }')
echo "dropped packets: $dropped"
[ "$dropped" -ge 200 ]
