#!/bin/bash
# mkdebian.sh OUT.raw - make the disk of a minimal Debian 12: debootstrap's packages, Debian's kernel and initramfs, GRUB and
# systemd. Needs root, debootstrap, e2fsprogs and fdisk; no loop device, no mount.
#
# Layout: MBR | GRUB's image from sector 1 | p1 ext4 (/). Disk: virtio (/dev/vda); console: ttyS0.
#
# A unit of systemd says on the console, the mode being taken from the SMBIOS system serial "mode=XXX":
#   GUEST-BOOT-OK id=debian boot=N mode=XXX uptime=S   when the system is up
#   GUEST-WRITE-OK                                     it wrote and synced /var/log/boots
# and then by mode:
#   poweroff  powers off
#   ticker    writes /var/ticks/N (4 KiB, fsync) once a second, and says "GUEST-TICK N" or "GUEST-TICK-FAILED N"
#   verify    compares each file that packages brought and each tick with its checksum, and powers off:
#             GUEST-VERIFY-OK files=N ticks=N | GUEST-VERIFY-BAD and what differs
set -euo pipefail
out=$1
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
export PATH=$PATH:/usr/sbin:/sbin DEBIAN_FRONTEND=noninteractive LC_ALL=C
size=768  # MiB of the disk
gap=1     # MiB before the partition: MBR and GRUB
tmp=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf --one-file-system "$tmp"' EXIT
root=$tmp/root

debootstrap --variant=minbase \
  --include=linux-image-cloud-amd64,initramfs-tools,zstd,systemd-sysv,udev,kmod,e2fsprogs,grub-pc-bin \
  bookworm "$root" "$mirror" >"$tmp/log" 2>&1 || { tail -n 20 "$tmp/log" >&2; exit 1; }

in_root() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@" >>"$tmp/log" 2>&1 || { tail -n 20 "$tmp/log" >&2; exit 1; }; }

# The initramfs has what this machine's disk needs: unpacking all modules takes most of a boot under emulation.
printf 'MODULES=list\nCOMPRESS=zstd\n' >"$root/etc/initramfs-tools/conf.d/guest"
printf '%s\n' virtio_pci virtio_blk ext4 >>"$root/etc/initramfs-tools/modules"
in_root update-initramfs -u
echo '/dev/vda1 / ext4 errors=remount-ro 0 1' >"$root/etc/fstab"
echo guest >"$root/etc/hostname"
: >"$root/etc/machine-id" # systemd makes one
rm -f "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*Packages
ln -sf /dev/null "$root/etc/systemd/system/serial-getty@ttyS0.service" # the console is the unit's alone

cat >"$root/usr/local/sbin/guest" <<'GUEST'
#!/bin/bash
exec >/dev/ttyS0 2>&1
mode=$(cat /sys/class/dmi/id/product_serial)
mode=${mode#mode=}
n=$(($(cat /var/log/boots) + 1))
echo "GUEST-BOOT-OK id=debian boot=$n mode=$mode uptime=$(cut -d' ' -f1 /proc/uptime)"
echo $n >/var/log/boots && sync && echo GUEST-WRITE-OK
ticker() {
  local i f
  i=$(ls /var/ticks | grep -c sum)
  while :; do
    i=$((i + 1)) f=/var/ticks/$i
    dd if=/dev/urandom of=$f bs=4k count=1 conv=fsync 2>/dev/null && sha256sum $f >$f.tmp && sync && mv $f.tmp $f.sum && sync \
      && echo "GUEST-TICK $i" || echo "GUEST-TICK-FAILED $i"
    sleep 1
  done
}
verify() {
  local bad files ticks
  files=$(cat /var/lib/dpkg/info/*.md5sums | wc -l)
  ticks=$(ls /var/ticks | grep -c sum)
  bad=$(dpkg --verify | grep -v ' c '; [ "$ticks" = 0 ] || cat /var/ticks/*.sum | sha256sum -c --quiet 2>&1)
  if [ -z "$bad" ]; then echo "GUEST-VERIFY-OK files=$files ticks=$ticks"; else echo "GUEST-VERIFY-BAD" $bad; fi
}
case $mode in
  ticker) ticker ;;
  verify) verify; systemctl poweroff ;;
  *) systemctl poweroff ;;
esac
GUEST
chmod 755 "$root/usr/local/sbin/guest"
mkdir "$root/var/ticks"
echo 0 >"$root/var/log/boots"
printf '[Unit]\nDescription=what the test asks for\n[Service]\nExecStart=/usr/local/sbin/guest\n[Install]\nWantedBy=multi-user.target\n' \
  >"$root/etc/systemd/system/guest.service"
in_root systemctl enable guest.service

# GRUB's boot sector reads its image from sector 1 on, as it is made; what it is to do stands in the image. Where emulation has
# little processor time the kernel would find its timer broken: no_timer_check.
cat >"$root/boot/grub.early" <<'GRUB'
set root=(hd0,msdos1)
linux /vmlinuz root=/dev/vda1 ro console=ttyS0 quiet panic=-1 random.trust_cpu=on no_timer_check
initrd /initrd.img
boot
GRUB
in_root grub-mkimage -O i386-pc -c /boot/grub.early -p '(hd0,msdos1)/boot/grub' -o /boot/grub.img biosdisk part_msdos ext2 linux
[ "$(stat -c %s "$root/boot/grub.img")" -le $(((gap << 20) - 512)) ] || { echo "mkdebian: GRUB's image is too large" >&2; exit 1; }

raw=$tmp/disk
truncate -s ${size}M "$raw"
printf 'label: dos\nlabel-id: 0x6e626432\nstart=%d,type=83,bootable\n' $((gap * 2048)) | sfdisk -q "$raw"
dd if="$root/usr/lib/grub/i386-pc/boot.img" of="$raw" bs=440 count=1 conv=notrunc status=none
dd if="$root/boot/grub.img" of="$raw" bs=512 seek=1 conv=notrunc status=none
mke2fs -q -F -t ext4 -L root -E offset=$((gap << 20)),lazy_itable_init=0,root_owner=0:0 -d "$root" "$raw" $((size - gap))M
sync "$raw"
mv "$raw" "$out"
