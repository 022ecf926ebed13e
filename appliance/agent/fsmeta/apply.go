package fsmeta

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"coffer/dedup/recipe"
)

// Codes of what Apply could not set; the run's log has them.
const (
	CodeOwner = "owner_not_set"
	CodeMode  = "mode_not_set"
	CodeXattr = "xattr_not_set"
	CodeTime  = "time_not_set"
	CodeFlags = "flags_not_set"
)

// Applier sets an entry's metadata on a file.
type Applier struct {
	// Report is told what could not be set and why.
	Report  func(code string, err error)
	Scratch Scratch
}

// Made tells how a file was before its metadata is set, where that is known, so that calls are saved.
type Made struct {
	// Fresh: made by this restore in a place that gives nothing by inheritance; it has no attributes.
	Fresh    bool
	UID, GID uint32 // of a fresh file
	Perm     uint32 // of a fresh file
}

// Apply sets owner, attributes, mode and time, in the order in which none undoes another: a change of owner clears the
// setuid bit and capabilities; an ACL changes the mode. The flags come later, by Flags: an immutable file takes neither
// a link nor a time. Values of long attributes must lie in e.Xattrs.
func (a *Applier) Apply(h Handle, e *recipe.Entry, made Made) {
	if !made.Fresh || made.UID != e.UID || made.GID != e.GID {
		a.owner(h, e)
	}
	if !made.Fresh || len(e.Xattrs) > 0 {
		a.xattrs(h, e, made)
	}
	symlink := e.Mode&recipe.ModeType == recipe.ModeSymlink
	if !symlink && (!made.Fresh || made.Perm != e.Mode&0o7777 || len(e.Xattrs) > 0) {
		a.note(CodeMode, h.Chmod(e.Mode))
	}
	a.time(h, e)
}

// Flags sets the inode flags, if there are any to set or to clear.
func (a *Applier) Flags(h Handle, e *recipe.Entry, made Made) {
	if made.Fresh && e.Flags == 0 {
		return
	}
	err := h.SetFlags(e.Flags)
	if err == nil || e.Flags == 0 && errors.Is(err, ErrUnsupported) {
		return
	}
	a.note(CodeFlags, fmt.Errorf("set inode flags %s: %w", FlagNames(e.Flags), err))
}

func (a *Applier) note(code string, err error) {
	if err != nil {
		a.Report(code, err)
	}
}

func (a *Applier) owner(h Handle, e *recipe.Entry) {
	err := h.Chown(e.UID, e.GID)
	if err == nil {
		return
	}
	var st Stat
	if h.Stat(&st) == nil && st.UID == e.UID && st.GID == e.GID {
		return // it has that owner already, which others than root may keep but not set
	}
	a.note(CodeOwner, fmt.Errorf("set owner %d:%d: %w", e.UID, e.GID, err))
}

// xattrs makes the file's attributes those of the entry. What it inherited goes.
func (a *Applier) xattrs(h Handle, e *recipe.Entry, made Made) {
	var have []recipe.Xattr
	if !made.Fresh {
		var err error
		if have, err = h.Xattrs(&a.Scratch); err != nil {
			a.note(CodeXattr, err)
		}
	}
	for _, x := range have {
		if _, ok := findXattr(e.Xattrs, x.Name); !ok && x.Name != "security.selinux" {
			a.note(CodeXattr, h.RemoveXattr(x.Name))
		}
	}
	for _, x := range e.Xattrs {
		if i, ok := findXattr(have, x.Name); ok && bytes.Equal(have[i].Value, x.Value) {
			continue
		}
		a.note(CodeXattr, h.SetXattr(x.Name, x.Value))
	}
}

func findXattr(list []recipe.Xattr, name string) (int, bool) {
	return slices.BinarySearchFunc(list, name, func(x recipe.Xattr, name string) int { return cmp.Compare(x.Name, name) })
}

// time sets the modification time. File systems cut silently what they cannot hold, so that unusual times are looked at
// afterwards.
func (a *Applier) time(h Handle, e *recipe.Entry) {
	if err := h.SetMTime(e.MTime); err != nil {
		a.note(CodeTime, fmt.Errorf("set modification time: %w", err))
		return
	}
	if e.MTime.Sec >= 0 && e.MTime.Sec <= math.MaxInt32 {
		return
	}
	var st Stat
	if h.Stat(&st) == nil && st.MTime != e.MTime {
		a.note(CodeTime, fmt.Errorf("set modification time: the file system made %d.%09d s of %d.%09d s",
			st.MTime.Sec, st.MTime.Nsec, e.MTime.Sec, e.MTime.Nsec))
	}
}
