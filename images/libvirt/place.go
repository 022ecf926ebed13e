package libvirt

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path"
)

// Placer writes the files of the host on which libvirtd runs. Paths are absolute. A nil owner leaves a file to whom this program,
// or the user of ssh, is.
type Placer interface {
	// WriteFile makes a file, or replaces the content of one.
	WriteFile(ctx context.Context, name string, data []byte, mode fs.FileMode, owner *User) error
	// MakeDir makes a directory. One that is there is no error, and gets the mode and owner.
	MakeDir(ctx context.Context, name string, mode fs.FileMode, owner *User) error
	// Own gives a file, directory or socket a mode and an owner.
	Own(ctx context.Context, name string, mode fs.FileMode, owner *User) error
	// Rename gives a file or directory another name, which nothing has yet.
	Rename(ctx context.Context, from, to string) error
}

var (
	_ Placer = Local{}
	_ Placer = (*sftp)(nil)
)

// Placer writes files of the host.
func (c *Conn) Placer() Placer { return c.placer }

// WriteFile implements Placer.
func (l Local) WriteFile(ctx context.Context, name string, data []byte, mode fs.FileMode, owner *User) error {
	if err := os.WriteFile(name, data, mode.Perm()); err != nil {
		return err
	}
	return l.Own(ctx, name, mode, owner)
}

// MakeDir implements Placer.
func (l Local) MakeDir(ctx context.Context, name string, mode fs.FileMode, owner *User) error {
	if err := os.Mkdir(name, mode.Perm()); err != nil {
		if info, serr := os.Stat(name); serr != nil || !info.IsDir() {
			return err
		}
	}
	return l.Own(ctx, name, mode, owner)
}

// Own implements Placer.
func (Local) Own(_ context.Context, name string, mode fs.FileMode, owner *User) error {
	if err := os.Chmod(name, mode.Perm()); err != nil || owner == nil {
		return err
	}
	return os.Lchown(name, owner.UID, owner.GID)
}

// Rename implements Placer.
func (Local) Rename(_ context.Context, from, to string) error {
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: errors.Join(err, fs.ErrExist)}
	}
	return os.Rename(from, to)
}

// Types of packets, and flags, of what writes (draft-ietf-secsh-filexfer-02, sections 3, 5 and 6.3).
const (
	fxpWrite   = 6
	fxpSetstat = 9
	fxpMkdir   = 14
	fxpRename  = 18
	fxfWrite   = 0x02
	fxfCreate  = 0x08
	fxfTrunc   = 0x10

	attrOwner = 2
	attrMode  = 4
)

// attributes are the packet's form of a mode and an owner.
func attributes(mode fs.FileMode, owner *User) []byte {
	flags := uint32(attrMode)
	if owner != nil {
		flags |= attrOwner
	}
	b := binary.BigEndian.AppendUint32(nil, flags)
	if owner != nil {
		b = binary.BigEndian.AppendUint32(b, uint32(owner.UID))
		b = binary.BigEndian.AppendUint32(b, uint32(owner.GID))
	}
	return binary.BigEndian.AppendUint32(b, uint32(mode.Perm()))
}

// WriteFile implements Placer.
func (s *sftp) WriteFile(ctx context.Context, name string, data []byte, mode fs.FileMode, owner *User) (err error) {
	h, err := s.handle(ctx, fxpOpen, name, append([]byte{0, 0, 0, fxfWrite | fxfCreate | fxfTrunc}, attributes(mode, nil)...)...)
	if err != nil {
		return err
	}
	for off := 0; off < len(data) && err == nil; off += readPiece {
		_, err = s.ask(ctx, fxpWrite, fxpStatus, func(b []byte) []byte {
			b = binary.BigEndian.AppendUint64(appendString(b, h), uint64(off))
			return appendString(b, string(data[off:min(off+readPiece, len(data))]))
		})
	}
	if cerr := s.closed(ctx, h); err == nil {
		err = cerr
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: name, Err: err}
	}
	return s.Own(ctx, name, mode, owner)
}

// closed closes a handle that was written to: the host may tell only now that it could not.
func (s *sftp) closed(ctx context.Context, handle string) error {
	_, err := s.ask(ctx, fxpClose, fxpStatus, func(b []byte) []byte { return appendString(b, handle) })
	return err
}

// MakeDir implements Placer.
func (s *sftp) MakeDir(ctx context.Context, name string, mode fs.FileMode, owner *User) error {
	_, err := s.askPath(ctx, "make", fxpMkdir, fxpStatus, name, attributes(mode, nil)...)
	if err != nil { // version 3 has no word for "is there"
		if info, serr := s.Stat(ctx, name); serr != nil || !info.IsDir() {
			return err
		}
	}
	return s.Own(ctx, name, mode, owner)
}

// Own implements Placer.
func (s *sftp) Own(ctx context.Context, name string, mode fs.FileMode, owner *User) error {
	_, err := s.askPath(ctx, "set the owner of", fxpSetstat, fxpStatus, name, attributes(mode, owner)...)
	return err
}

// Rename implements Placer; SFTP 3 never replaces (section 6.5).
func (s *sftp) Rename(ctx context.Context, from, to string) error {
	_, err := s.askPath(ctx, "rename", fxpRename, fxpStatus, from, appendString(nil, to)...)
	return err
}

// MakeDirs makes a directory of the host and those above it that are not there.
func (c *Conn) MakeDirs(ctx context.Context, dir string, mode fs.FileMode) error {
	if _, err := c.files.Stat(ctx, dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := c.MakeDirs(ctx, path.Dir(dir), mode); err != nil {
		return err
	}
	return c.placer.MakeDir(ctx, dir, mode, nil)
}

// removeDir removes a directory with all below it, to a depth that no directory of ours has. None is no error.
func removeDir(ctx context.Context, files Files, dir string, depth int) error {
	list, err := files.ReadDir(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, info := range list {
		name := path.Join(dir, info.Name())
		if info.IsDir() && depth > 0 {
			err = removeDir(ctx, files, name, depth-1)
		} else {
			err = files.Remove(ctx, name)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := files.Remove(ctx, dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
