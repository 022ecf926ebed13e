package recipe

import (
	"strings"

	"coffer/dedup/digest"
)

// CheckName reports whether name can be the name of an entry: 1 to MaxName bytes, neither "." nor "..", with no
// '/' and no NUL. The error is an *Error of kind BadName.
func CheckName(name string) error {
	if nameOK(name) {
		return nil
	}
	if len(name) > 64 {
		name = name[:64] + "…"
	}
	return fail(BadName, "%q", name)
}

func nameOK[B string | []byte](name B) bool {
	if len(name) == 0 || len(name) > MaxName {
		return false
	}
	if name[0] == '.' && (len(name) == 1 || len(name) == 2 && name[1] == '.') {
		return false
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return false
		}
	}
	return true
}

// typeOK reports whether mode has one of the seven types and no bits beyond st_mode's sixteen.
func typeOK(mode uint32) bool {
	switch mode & ModeType {
	case ModeSocket, ModeSymlink, ModeRegular, ModeBlock, ModeDir, ModeChar, ModeFifo:
		return mode>>16 == 0
	}
	return false
}

// contentOK reports whether an entry of this mode may have content of this kind.
func contentOK(mode uint32, k ContentKind) bool {
	switch mode & ModeType {
	case ModeDir:
		return k == DirTree
	case ModeRegular:
		return k <= StreamTree || k == ImageTree
	}
	return k == NoContent
}

func isDevice(mode uint32) bool {
	return mode&ModeType == ModeBlock || mode&ModeType == ModeChar
}

// Validate reports what DirBuilder.Add would refuse of e itself; only its place among its neighbours and the totals
// are left to Add. A directory may be without its content yet. The error is an *Error of kind BadName, BadEntry or
// TooLong.
func (e *Entry) Validate() error {
	if err := CheckName(e.Name); err != nil {
		return err
	}
	if !typeOK(e.Mode) {
		return fail(BadEntry, "%q has mode 0%o", e.Name, e.Mode)
	}
	if !e.IsDir() || e.Content != (Content{}) {
		if err := e.checkContent(); err != nil {
			return err
		}
	}
	switch {
	case e.MTime.Nsec >= 1e9:
		return fail(BadEntry, "%q has %d nanoseconds", e.Name, e.MTime.Nsec)
	case e.Rdev != 0 && !isDevice(e.Mode):
		return fail(BadEntry, "%q with mode 0%o has a device number", e.Name, e.Mode)
	case (e.Mode&ModeType == ModeSymlink) != (e.Target != ""):
		return fail(BadEntry, "%q with mode 0%o has target %q", e.Name, e.Mode, e.Target)
	case len(e.Target) > MaxTarget || strings.IndexByte(e.Target, 0) >= 0:
		return fail(BadEntry, "%q has a target of %d bytes that is too long or has NUL in it", e.Name, len(e.Target))
	}
	return e.checkXattrs()
}

// check is Validate, and that a directory is complete.
func (e *Entry) check(below Totals) error {
	if err := e.Validate(); err != nil {
		return err
	}
	if !e.IsDir() {
		return nil
	}
	if below.tooBig() {
		return fail(TooLong, "%q has totals %d, %d", e.Name, below.Entries, below.Bytes)
	}
	return e.checkContent()
}

func (e *Entry) checkContent() error {
	switch {
	case !contentOK(e.Mode, e.Content.Kind):
		return fail(BadEntry, "%q with mode 0%o has %v as its content", e.Name, e.Mode, e.Content.Kind)
	case (e.Content.Kind == NoContent) != e.Content.Digest.IsZero():
		return fail(BadEntry, "%q has %v with digest %v", e.Name, e.Content.Kind, e.Content.Digest)
	case !e.sizeOK():
		return fail(BadEntry, "%q with mode 0%o and %v has size %d", e.Name, e.Mode, e.Content.Kind, e.Size)
	}
	return nil
}

func (e *Entry) sizeOK() bool {
	switch e.Content.Kind {
	case OneChunk:
		return e.Size > 0 && e.Size <= MaxChunkLen
	case StreamTree, ImageTree:
		return e.Size > 0 && e.Size <= MaxTotal
	}
	return e.Size == 0
}

// xattrOverhead is the most bytes that an xattr takes beside its name and value: lengths, and the child of its chunk.
const xattrOverhead = 2 + 2 + digest.Size + 4

func (e *Entry) checkXattrs() error {
	if len(e.Xattrs) > MaxXattrs {
		return fail(TooLong, "%q has %d xattrs", e.Name, len(e.Xattrs))
	}
	size := 0
	for i := range e.Xattrs {
		x := &e.Xattrs[i]
		size += len(x.Name) + len(x.Value) + xattrOverhead
		switch {
		case x.Name == "" || len(x.Name) > MaxName || strings.IndexByte(x.Name, 0) >= 0:
			return fail(BadEntry, "%q has an xattr named %q", e.Name, x.Name)
		case i > 0 && x.Name <= e.Xattrs[i-1].Name:
			return fail(BadEntry, "%q has xattr %q after %q", e.Name, x.Name, e.Xattrs[i-1].Name)
		case x.Chunk.IsZero() && (x.Size != 0 || len(x.Value) > MaxInline):
			return fail(BadEntry, "%q has xattr %q of %d bytes and size %d, but no chunk",
				e.Name, x.Name, len(x.Value), x.Size)
		case !x.Chunk.IsZero() && (x.Size == 0 || x.Size > MaxChunkLen || len(x.Value) != 0):
			return fail(BadEntry, "%q has xattr %q in a chunk of %d bytes", e.Name, x.Name, x.Size)
		}
	}
	if size > MaxXattrBytes {
		return fail(TooLong, "%q has xattrs of %d bytes outside of chunks", e.Name, size)
	}
	return nil
}
