# What setup and run share: where the guest's kernel is kept, and what a machine must have. Sourced.

# Kept outside the build: the kernel depends on no checkout, and a clean one must not fetch it again.
# The last part changes when setup lays the files out in another way.
guest_cache=${VOLLEY_GUEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/volley/guest}/v1

# The one line of a skipped test, and the exit status that ctest takes for one.
skip() {
  echo "SKIPPED: the RDMA guest cannot run here: $*" >&2
  exit 77
}

require_machine() {
  [ "$(uname -sm)" = "Linux x86_64" ] || skip "this is $(uname -sm); its kernel and QEMU are for Linux x86_64"
  local program
  for program in qemu-system-x86_64:qemu-system-x86 busybox:busybox-static ip:iproute2 rdma:iproute2 \
    tc:iproute2 setpriv:util-linux flock:util-linux; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${program%:*}" >/dev/null ||
      skip "${program%:*} is missing; install ${program#*:} (scripts/install-deps does)"
  done
  # It runs before there is a C library.
  ! ldd "$(command -v busybox)" >/dev/null 2>&1 ||
    skip "busybox is linked dynamically; install busybox-static (scripts/install-deps does)"
}
