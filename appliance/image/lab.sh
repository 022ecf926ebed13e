#!/usr/bin/env bash
# The README on a bare Debian 12: a debootstrap root in a mount namespace of
# its own, a clone of the committed tree, line 0 and the commands, nothing else.
#
#   lab.sh short   line 0, make build, make install, the units' check  (about 4 minutes)
#   lab.sh full    the same, then make demo and make test
set -euo pipefail
form=${1:-full}
top=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
[ "$(id -u)" -eq 0 ] || { echo "lab.sh needs root (debootstrap, mounts)"; exit 1; }
command -v debootstrap >/dev/null || { apt-get update -q >/dev/null; apt-get install -qy debootstrap >/dev/null; }

work=$(mktemp -d "${TMPDIR:-/tmp}/coffer-lab-XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
root=$work/root
echo "debootstrap into $root"
debootstrap --variant=minbase bookworm "$root" http://deb.debian.org/debian >"$work/debootstrap.log" 2>&1 \
  || { tail "$work/debootstrap.log"; exit 1; }
cat >"$root/etc/apt/sources.list" <<'LIST'
deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian bookworm-updates main
deb http://deb.debian.org/debian-security bookworm-security main
LIST
# A machine has a resolver, loopback names, and services that stay off while packages install.
cp /etc/resolv.conf /etc/hosts "$root/etc/"
# What this machine trusts, the bare one trusts, too: a proxy on the way to the modules may need it.
[ ! -f /etc/ssl/certs/ca-certificates.crt ] || cp /etc/ssl/certs/ca-certificates.crt "$root/root/trusted.crt"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"; chmod +x "$root/usr/sbin/policy-rc.d"
git clone -q "$top" "$root/root/coffer"

cat >"$root/root/commands.sh" <<CMD
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive HOME=/root
[ ! -f /root/trusted.crt ] || export SSL_CERT_FILE=/root/trusted.crt
cd /root
apt-get update -q >/dev/null
apt-get install -qy git make >/dev/null     # line 0
cd coffer
make build
make install PREFIX=/usr
apt-get install -qy systemd >/dev/null
systemd-analyze verify /etc/systemd/system/cofferd.service /etc/systemd/system/coffer-agent.service
cofferd --help >/dev/null; coffer --help >/dev/null; coffer-agent --help >/dev/null
make uninstall PREFIX=/usr
test ! -e /usr/bin/cofferd
if [ "$form" = full ]; then make demo; make test; fi
CMD
unshare --mount --pid --fork --kill-child --propagation private bash -c '
  set -e; root=$1
  mount -t proc proc "$root/proc"; mount --rbind /sys "$root/sys"; mount --make-rslave "$root/sys"
  mount -t tmpfs tmpfs "$root/dev"; mkdir -p "$root/dev/shm" "$root/dev/pts"
  mount -t devpts devpts "$root/dev/pts"; mount -t tmpfs tmpfs "$root/dev/shm"
  for d in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229; do
    IFS=: read -r n a b <<<"$d"; mknod -m 666 "$root/dev/$n" c "$a" "$b"; done
  ln -s /proc/self/fd "$root/dev/fd"; ln -s pts/ptmx "$root/dev/ptmx"
  exec chroot "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash /root/commands.sh
' lab "$root"
echo "lab $form: the README works on a bare Debian 12"
