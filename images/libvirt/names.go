package libvirt

import (
	"path"
	"strings"
)

// Everything that a backup makes on a host bears a Tag in its name: the checkpoint is named by it, socket and scratch files
// begin with it. So the next run of the same task finds what an earlier one left, whatever killed that, and touches nothing
// of anybody else.

// tagPrefix begins the name of all that we make on a host.
const tagPrefix = "coffer-"

// Tag names a run of a task towards a host.
type Tag struct {
	Owner string // of the task; the same in each of its runs: letters and digits
	Run   string
}

// maxTag bounds both parts: they are in the path of a socket, which has little room.
const maxTag = 40

// Validate checks that the parts can be in files' names.
func (t Tag) Validate() error {
	if strings.Contains(t.Owner, "-") { // one owner's names must never begin another's
		return failf(KindInvalid, "name of a task", "%q cannot have a dash", t.Owner)
	}
	for _, s := range []string{t.Owner, t.Run} {
		if len(s) > maxTag || s == "" || strings.ContainsFunc(s, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
		}) {
			return failf(KindInvalid, "name of a run", "%q cannot be part of a file's name", s)
		}
	}
	return nil
}

// Checkpoint is the name of the checkpoint that the run makes.
func (t Tag) Checkpoint() string { return t.ours() + t.Run }

// ours begins the names of all runs of the task.
func (t Tag) ours() string { return tagPrefix + t.Owner + "-" }

func (t Tag) socket(dir string) string { return path.Join(dir, t.Checkpoint()+".sock") }

func (t Tag) scratch(dir, target string) string {
	return path.Join(dir, t.Checkpoint()+"-"+target+".scratch")
}

// leftover tells whether a file is one that a backup of the task made.
func (t Tag) leftover(name string) bool {
	return strings.HasPrefix(name, t.ours()) && (strings.HasSuffix(name, ".sock") || strings.HasSuffix(name, ".scratch"))
}

// bitmapName is the name under which the bitmap of a disk is exported.
const bitmapName = "coffer-dirty"

// DirtyContext is the metadata context of NBD in which a Job's disks tell what changed since its reference; bit 0 is dirty
// (QEMU docs/interop/nbd.txt).
const DirtyContext = "qemu:dirty-bitmap:" + bitmapName
