# Goal: programs of this build run on the guest's processor, which has AVX2 and no AVX-512: what a build on
# a larger machine uses is chosen at run time. Runs in the guest.
# Method: kernels of the best instruction set of the processor, and a test program with checks.
set -euo pipefail
! grep -q avx512 /proc/cpuinfo || { echo "the guest has AVX-512; nothing would be shown"; exit 1; }
"$BUILD/bin/volley" bench kernels --filter 'rms_norm' --min-time-ms 1 --repetitions 1 2>/dev/null |
  tee "$TMPDIR/kernels" | grep '^kernels: avx2' || { cat "$TMPDIR/kernels"; exit 1; }
"$BUILD/tests/protocol/link_test" --gtest_brief=1
