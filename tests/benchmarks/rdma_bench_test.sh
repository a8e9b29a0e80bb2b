# Goal: the RDMA benchmarks run and report. Runs in the guest; the figures are not judged.
# Method: `bench m2n` with two ports, two queue pairs, each pattern and a port that does not exist; then one
# short round of the comparison with bare verbs, in each way of waiting that one CPU allows.
set -euo pipefail
root=$(cd ../.. && pwd)

m2n() { "$BUILD/bin/volley" bench m2n --fabric rdma --iterations 40 --warmup 4 --json "$RESULTS/m2n.json" "$@"; }
m2n --rdma-ports rxe0,rxe1 --bytes 2KB,128KB
m2n --rdma-ports rxe0,rxe1 --bytes 128KB --m 2 --n 2 --queue-pairs 2 --pattern both
m2n --bytes 64KB --pattern one-way
[ "$(grep -c '"dispatch_gbps"' "$RESULTS/m2n.json")" = 1 ]
if m2n --rdma-ports rxe7 2>"$TMPDIR/refusal"; then exit 1; fi
grep 'rxe7' "$TMPDIR/refusal" | grep 'rxe0:1'

# The comparison is a Python program; tests need no Python, so it is tried where there is one.
command -v python3 >/dev/null || { echo "no python3: the comparison was not tried"; exit 0; }
for wait in yield event; do
  "$root/benchmarks/rdma_compare/compare.py" --binaries "$BUILD/bin" --wait $wait --rounds 1 --run-ms 10 --sizes 64,4096
  [ "$(grep -c '"size_bytes"' "$RESULTS/rdma.json")" = 4 ]
done
