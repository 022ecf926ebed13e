#!/usr/bin/env bash
# The NBD server against clients of others, the long form: libnbd, qemu and fio in plain, over TLS and with structured replies
# refused; nbd-client in a guest with Debian's kernel (mkfs, fill, trim, fsck and mount of ext4 and xfs, each in plain and over
# TLS); ten minutes of fuzzing its byte stream. Then a guest that is installed from Debian's packages boots from its saveset, is
# moved to storage, and checks its files; cofferd is killed meanwhile. The guest's disk is kept in /var/tmp/coffer-lab.
set -euo pipefail
top=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
cd "$top"
export COFFER_LONG=1 COFFER_REQUIRE_LAB=1 CGO_ENABLED=0
go=${GO:-go}
"$go" test -count=1 -timeout 60m ./nbd
"$go" test -run '^$' -fuzz '^FuzzServer$' -fuzztime "${FUZZTIME:-10m}" ./nbd
"$go" test -count=1 -timeout 60m -v -run '^TestDebianGuest$' ./appliance/internal/e2e
echo "nbd lab: passed"
