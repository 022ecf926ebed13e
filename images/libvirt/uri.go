package libvirt

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// DefaultURI is the libvirtd of the machine that the agent runs on.
const DefaultURI = "qemu:///system"

// URI says which libvirtd, and how it is reached. Two transports are known: the unix socket on this machine
// (qemu:///system, qemu+unix:///system?socket=PATH), and OpenSSH's client (qemu+ssh://[USER@]HOST[:PORT]/system, with
// socket=PATH on that host, keyfile=PATH and known_hosts=PATH on this machine).
type URI struct {
	Driver string // qemu:///system, as that libvirtd understands it
	SSH    bool
	User   string
	Host   string
	Port   string
	// Socket is libvirtd's, where SSH is set on the other host; empty means the usual places.
	Socket string
	// KeyFile and KnownHosts are for ssh; empty means what its configuration says.
	KeyFile, KnownHosts string
}

// usualSockets are where libvirtd listens, the modular daemon first: where both exist the other one only passes on.
var usualSockets = [...]string{"/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"}

// ParseURI reads a URI; empty means DefaultURI. What cannot be had is refused by name, above all whatever would switch off
// the check of host keys.
func ParseURI(text string) (URI, error) {
	if text == "" {
		text = DefaultURI
	}
	op := "libvirt URI " + strconv.Quote(text)
	u, err := url.Parse(text)
	if err != nil {
		return URI{}, failf(KindInvalid, "libvirt URI", "%w", err)
	}
	driver, transport, _ := strings.Cut(u.Scheme, "+")
	if driver != "qemu" {
		return URI{}, failf(KindInvalid, op, "only qemu is supported, as in %s", DefaultURI)
	}
	if u.Path != "/system" && u.Path != "/session" {
		return URI{}, failf(KindInvalid, op, "the path must be /system or /session")
	}
	out := URI{Driver: driver + "://" + u.Path}
	switch {
	case transport == "ssh":
		err = out.ssh(u)
	case (transport == "" || transport == "unix") && u.Host == "":
	default:
		err = fmt.Errorf("use the unix socket (%s), or qemu+ssh://HOST/system", DefaultURI)
	}
	if err == nil {
		err = out.options(u.Query())
	}
	if err == nil && u.Path == "/session" && out.Socket == "" {
		err = fmt.Errorf("a session's libvirtd has no usual place: give its socket=")
	}
	if err != nil {
		return URI{}, &Error{KindInvalid, op, err}
	}
	return out, nil
}

// ssh reads the destination. A name that ssh would take for an option is refused here and kept from being one at the call.
func (u *URI) ssh(from *url.URL) error {
	u.SSH, u.Host, u.Port, u.User = true, from.Hostname(), from.Port(), from.User.Username()
	if _, has := from.User.Password(); has {
		return fmt.Errorf("a password cannot be given here: use a key")
	}
	for _, s := range []string{u.Host, u.User} {
		if strings.HasPrefix(s, "-") || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return fmt.Errorf("%q cannot be a host or user", s)
		}
	}
	if u.Host == "" {
		return fmt.Errorf("the host is missing")
	}
	return nil
}

func (u *URI) options(q url.Values) error {
	for name, values := range q {
		value := values[len(values)-1]
		if strings.ContainsAny(value, "\x00\n\r") {
			return fmt.Errorf("the value of %s has a character that it cannot have", name)
		}
		switch {
		case name == "socket":
			u.Socket = value
		case name == "keyfile" && u.SSH:
			u.KeyFile = value
		case name == "known_hosts" && u.SSH:
			u.KnownHosts = value
		case name == "no_tty", name == "mode" && (value == "auto" || value == "legacy" || value == "direct"):
			// we never ask, and connect to sockets only
		case name == "no_verify" || name == "known_hosts_verify":
			return fmt.Errorf("host keys are always verified: put the host's key into known_hosts")
		default:
			return fmt.Errorf("the option %q is not known here", name)
		}
	}
	for name, path := range map[string]string{"socket": u.Socket, "keyfile": u.KeyFile, "known_hosts": u.KnownHosts} {
		if path != "" && !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%s must be an absolute path", name)
		}
	}
	if strings.ContainsRune(u.Socket, ':') && u.SSH {
		return fmt.Errorf("ssh cannot forward a socket with a colon in its path")
	}
	return nil
}

// sockets are the paths to try.
func (u URI) sockets() []string {
	if u.Socket != "" {
		return []string{u.Socket}
	}
	return usualSockets[:]
}
