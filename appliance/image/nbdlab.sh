#!/usr/bin/env bash
# The NBD server against clients of others, the long form: libnbd, qemu and fio over TLS, nbd-client in a guest with
# Debian's kernel (mkfs, fill, trim, fsck, mount; plain and TLS), and ten minutes of fuzzing its byte stream.
set -euo pipefail
top=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
cd "$top"
export COFFER_LONG=1 COFFER_REQUIRE_LAB=1 CGO_ENABLED=0
go=${GO:-go}
"$go" test -count=1 -timeout 30m ./nbd
"$go" test -run '^$' -fuzz '^FuzzServer$' -fuzztime "${FUZZTIME:-10m}" ./nbd
echo "nbd lab: passed"
