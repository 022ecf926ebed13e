package fsmeta

import "golang.org/x/sys/unix"

const errNoAttr = unix.ENODATA
