package libvirt

import (
	"context"
	"strconv"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// User is whom the host's QEMU processes run as.
type User struct{ UID, GID int }

// QEMUUser asks whom QEMU runs as, by libvirt's security model "dac"; ok is false where libvirt does not say: QEMU then runs as
// libvirtd does.
func (c *Conn) QEMUUser(ctx context.Context) (u User, ok bool, err error) {
	var text string
	err = c.await(ctx, func() error {
		raw, err := c.raw.ConnectGetCapabilities()
		text = raw
		return err
	})
	if err != nil {
		return u, false, failure("ask libvirt what it can do", err)
	}
	var caps libvirtxml.Caps
	if err := caps.Unmarshal(text); err != nil {
		return u, false, failf(KindOther, "read what libvirt can do", "%w", err)
	}
	for _, m := range caps.Host.SecModel {
		if m.Name != "dac" || len(m.Labels) == 0 {
			continue
		}
		if u, ok = parseLabel(m.Labels[0].Value); ok {
			return u, true, nil
		}
	}
	return User{}, false, nil
}

// parseLabel reads "+64055:+108".
func parseLabel(s string) (u User, ok bool) {
	uid, gid, ok := strings.Cut(s, ":")
	if !ok {
		return u, false
	}
	var e1, e2 error
	u.UID, e1 = strconv.Atoi(strings.TrimPrefix(uid, "+"))
	u.GID, e2 = strconv.Atoi(strings.TrimPrefix(gid, "+"))
	return u, e1 == nil && e2 == nil
}
