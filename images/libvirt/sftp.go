package libvirt

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sync"
	"time"
)

// sftp is a client of the SSH File Transfer Protocol, version 3 (draft-ietf-secsh-filexfer-02), as far as files are read
// and removed by it. Many requests are in flight at once. The host is trusted no further than its packets' lengths.
type sftp struct {
	in   *bufio.Reader
	gone chan struct{} // closed when nothing can be read any more

	out sync.Mutex // guards w
	w   io.Writer

	mu   sync.Mutex // guards all below
	next uint32
	wait map[uint32]chan answer
	err  error // why it is gone
}

var _ Files = (*sftp)(nil)

// answer is a packet that answers a request.
type answer struct {
	kind byte
	body []byte
}

// Types of packets (section 3).
const (
	fxpInit     = 1
	fxpVersion  = 2
	fxpOpen     = 3
	fxpClose    = 4
	fxpRead     = 5
	fxpFstat    = 8
	fxpOpendir  = 11
	fxpReaddir  = 12
	fxpRemove   = 13
	fxpRmdir    = 15
	fxpStat     = 17
	fxpStatus   = 101
	fxpHandle   = 102
	fxpData     = 103
	fxpName     = 104
	fxpAttrs    = 105
	fxfRead     = 1
	sftpVersion = 3
)

// Codes of a status (section 7).
const (
	fxOK         = 0
	fxEOF        = 1
	fxNoSuchFile = 2
	fxDenied     = 3
	fxBadMessage = 5 // OpenSSH's word for EINVAL, which seeking beyond the end of a device is
)

const (
	maxSFTP     = 256 << 10 // bytes of a packet, as OpenSSH's server has it
	readPiece   = 32 << 10  // bytes of one read: every server has to give so many (section 6.4)
	readAhead   = 16        // reads in flight of one ReadAt
	maxListed   = 100_000   // names of a directory
	sftpTimeout = 2 * time.Minute
)

func newSFTP(r io.Reader, w io.Writer) *sftp {
	return &sftp{in: bufio.NewReaderSize(r, 64<<10), w: w, gone: make(chan struct{}), wait: map[uint32]chan answer{}}
}

// hello exchanges versions and starts to take answers.
func (s *sftp) hello() error {
	err := s.write(append(begin(fxpInit), 0, 0, 0, sftpVersion))
	var kind byte
	var body []byte
	if err == nil {
		kind, body, err = readPacket(s.in)
	}
	if err == nil && (kind != fxpVersion || len(body) < 4 || binary.BigEndian.Uint32(body) < sftpVersion) {
		err = errors.New("the host does not speak SFTP 3: is its subsystem sftp configured?")
	}
	if err != nil {
		s.end(err)
		return err
	}
	go s.take()
	return nil
}

// take hands the answers out.
func (s *sftp) take() {
	for {
		kind, body, err := readPacket(s.in)
		if err == nil && len(body) < 4 {
			err = errors.New("a packet of SFTP is too short")
		}
		if err != nil {
			s.end(fmt.Errorf("the connection is lost: %w", err))
			return
		}
		id := binary.BigEndian.Uint32(body)
		s.mu.Lock()
		c := s.wait[id]
		delete(s.wait, id)
		s.mu.Unlock()
		if c != nil {
			c <- answer{kind, body[4:]}
		}
	}
}

// end gives up: all that wait are told.
func (s *sftp) end(err error) {
	s.mu.Lock()
	s.err = err
	s.mu.Unlock()
	close(s.gone)
}

func readPacket(r io.Reader) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 1 || n > maxSFTP {
		return 0, nil, fmt.Errorf("a packet of SFTP has %d bytes", n)
	}
	body = make([]byte, n-1)
	_, err = io.ReadFull(r, body)
	return head[4], body, err
}

// begin begins a packet; write fills in its length.
func begin(kind byte) []byte { return []byte{0, 0, 0, 0, kind} }

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

func (s *sftp) write(packet []byte) error {
	binary.BigEndian.PutUint32(packet, uint32(len(packet)-4))
	s.out.Lock()
	defer s.out.Unlock()
	_, err := s.w.Write(packet)
	return err
}

// send sends a request; fill appends what follows its id.
func (s *sftp) send(kind byte, fill func(b []byte) []byte) (chan answer, error) {
	c := make(chan answer, 1)
	s.mu.Lock()
	if err := s.err; err != nil {
		s.mu.Unlock()
		return nil, err
	}
	s.next++
	id := s.next
	s.wait[id] = c
	s.mu.Unlock()
	err := s.write(fill(binary.BigEndian.AppendUint32(begin(kind), id)))
	if err != nil {
		s.mu.Lock()
		delete(s.wait, id)
		s.mu.Unlock()
	}
	return c, err
}

// result waits for an answer of the kind want. A status is an error, but for OK where that is what is wanted.
func (s *sftp) result(ctx context.Context, c chan answer, want byte) ([]byte, error) {
	select {
	case a := <-c:
		return checkAnswer(a, want)
	case <-s.gone:
		s.mu.Lock()
		defer s.mu.Unlock()
		return nil, s.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func checkAnswer(a answer, want byte) ([]byte, error) {
	if a.kind == fxpStatus {
		cur := cursor{b: a.body}
		code, text := cur.u32(), cur.str()
		switch {
		case cur.bad:
			return nil, errMalformed
		case code == fxOK && want == fxpStatus:
			return nil, nil
		case code == fxEOF:
			return nil, io.EOF
		case code == fxNoSuchFile:
			return nil, fs.ErrNotExist
		case code == fxDenied:
			return nil, fs.ErrPermission
		}
		return nil, errStatus{code, text}
	}
	if a.kind != want {
		return nil, errMalformed
	}
	return a.body, nil
}

// errStatus is a failure that the host names.
type errStatus struct {
	code uint32
	text string
}

func (e errStatus) Error() string { return fmt.Sprintf("the host says: %q (code %d)", e.text, e.code) }

var errMalformed = errors.New("the host's answer breaks the rules of SFTP")

// ask sends a request and waits for the answer.
func (s *sftp) ask(ctx context.Context, kind, want byte, fill func(b []byte) []byte) ([]byte, error) {
	c, err := s.send(kind, fill)
	if err != nil {
		return nil, err
	}
	return s.result(ctx, c, want)
}

// askPath is ask about a path, with the error that package os would give.
func (s *sftp) askPath(ctx context.Context, op string, kind, want byte, name string, more ...byte) ([]byte, error) {
	b, err := s.ask(ctx, kind, want, func(b []byte) []byte { return append(appendString(b, name), more...) })
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return b, nil
}

// Stat implements Files.
func (s *sftp) Stat(ctx context.Context, name string) (fs.FileInfo, error) {
	b, err := s.askPath(ctx, "stat", fxpStat, fxpAttrs, name)
	if err != nil {
		return nil, err
	}
	cur := cursor{b: b}
	info := cur.attrs(path.Base(name))
	if cur.bad {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: errMalformed}
	}
	return info, nil
}

// Remove implements Files.
func (s *sftp) Remove(ctx context.Context, name string) error {
	_, err := s.askPath(ctx, "remove", fxpRemove, fxpStatus, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if _, derr := s.askPath(ctx, "remove", fxpRmdir, fxpStatus, name); derr == nil {
			return nil
		}
	}
	return err
}

// handle opens a file or directory.
func (s *sftp) handle(ctx context.Context, kind byte, name string, more ...byte) (string, error) {
	b, err := s.askPath(ctx, "open", kind, fxpHandle, name, more...)
	if err != nil {
		return "", err
	}
	cur := cursor{b: b}
	h := cur.str()
	if cur.bad {
		return "", &fs.PathError{Op: "open", Path: name, Err: errMalformed}
	}
	return h, nil
}

// release closes a handle; nobody waits for it.
func (s *sftp) release(handle string) error {
	_, err := s.send(fxpClose, func(b []byte) []byte { return appendString(b, handle) })
	return err
}

// ReadDir implements Files.
func (s *sftp) ReadDir(ctx context.Context, name string) ([]fs.FileInfo, error) {
	h, err := s.handle(ctx, fxpOpendir, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.release(h) }()
	var out []fs.FileInfo
	for {
		b, err := s.ask(ctx, fxpReaddir, fxpName, func(b []byte) []byte { return appendString(b, h) })
		if err == io.EOF {
			return out, nil
		}
		if err == nil {
			out, err = appendNames(out, b)
		}
		if err != nil {
			return nil, &fs.PathError{Op: "list", Path: name, Err: err}
		}
	}
}

func appendNames(out []fs.FileInfo, b []byte) ([]fs.FileInfo, error) {
	cur := cursor{b: b}
	n := cur.u32()
	if n == 0 {
		return nil, errMalformed // it would never end
	}
	for range n {
		name := cur.str()
		_ = cur.str() // a line as ls prints it
		info := cur.attrs(name)
		if cur.bad || len(out) >= maxListed {
			return nil, errMalformed
		}
		if name != "." && name != ".." && name != "" && path.Base(name) == name {
			out = append(out, info)
		}
	}
	return out, nil
}

// Open implements Files. The size of a block device is found by reading, for SFTP does not tell it.
func (s *sftp) Open(ctx context.Context, name string) (File, error) {
	h, err := s.handle(ctx, fxpOpen, name, 0, 0, 0, fxfRead, 0, 0, 0, 0)
	if err != nil {
		return nil, err
	}
	f := &remoteFile{s: s, name: name, handle: h}
	b, err := s.ask(ctx, fxpFstat, fxpAttrs, func(b []byte) []byte { return appendString(b, h) })
	if err == nil {
		cur := cursor{b: b}
		info := cur.attrs("")
		switch {
		case cur.bad:
			err = errMalformed
		case info.mode.IsRegular():
			f.size = info.size
		case info.mode&fs.ModeDevice != 0 && info.mode&fs.ModeCharDevice == 0:
			f.size, err = f.measure()
		default:
			err = errors.New("neither a file nor a block device")
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return f, nil
}

// remoteFile is a file of the host.
type remoteFile struct {
	s            *sftp
	name, handle string
	size         int64
}

var _ File = (*remoteFile)(nil)

// Size implements File.
func (f *remoteFile) Size() int64 { return f.size }

// Close implements File.
func (f *remoteFile) Close() error { return f.s.release(f.handle) }

// measure finds the end of a device by halving, in sectors.
func (f *remoteFile) measure() (int64, error) {
	const sector = 512
	low, high := int64(0), int64(1)<<52 // sectors that are there, and that are not
	for low < high {
		mid := low + (high-low)/2
		n, err := f.ReadAt(make([]byte, 1), mid*sector)
		status, _ := errors.AsType[errStatus](err)
		if n == 0 && err != io.EOF && status.code != fxBadMessage {
			return 0, err
		}
		if n == 1 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low * sector, nil
}

// ReadAt implements io.ReaderAt, with many reads in flight.
func (f *remoteFile) ReadAt(p []byte, off int64) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), sftpTimeout)
	defer cancel()
	n, err := 0, error(nil)
	for n < len(p) && err == nil {
		var got int
		got, err = f.burst(ctx, p[n:], off+int64(n))
		n += got
	}
	if err != nil && err != io.EOF {
		err = &fs.PathError{Op: "read", Path: f.name, Err: err}
	}
	return n, err
}

// burst reads up to readAhead pieces; it returns what lies together from the start.
func (f *remoteFile) burst(ctx context.Context, p []byte, off int64) (int, error) {
	var pieces []chan answer
	var fault error
	for at := 0; at < len(p) && len(pieces) < readAhead; at += readPiece {
		c, err := f.s.send(fxpRead, func(b []byte) []byte {
			b = binary.BigEndian.AppendUint64(appendString(b, f.handle), uint64(off)+uint64(at))
			return binary.BigEndian.AppendUint32(b, uint32(min(readPiece, len(p)-at)))
		})
		if err != nil {
			fault = err
			break
		}
		pieces = append(pieces, c)
	}
	n, short := 0, false
	for i, c := range pieces {
		b, err := f.s.result(ctx, c, fxpData)
		if short || err != nil {
			if !short {
				fault, short = err, true
			}
			continue // the others are waited for: their answers are on the way
		}
		cur := cursor{b: b}
		data := cur.str()
		want := min(readPiece, len(p)-i*readPiece)
		if cur.bad || len(data) > want || len(data) == 0 {
			return n, errMalformed
		}
		n += copy(p[n:], data)
		short = len(data) < want
	}
	if fault != nil && n > 0 && fault != io.EOF {
		fault = nil // told by the next read, if it is so still
	}
	return n, fault
}

// cursor reads the fields of a packet; after a bad one all are empty.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.b, c.bad = nil, true
		return nil
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) str() string { return string(c.take(int(c.u32()))) }

// attrs reads the attributes of a file (section 5).
func (c *cursor) attrs(name string) fileInfo {
	const hasSize, hasOwner, hasMode, hasTimes, hasMore = 1, 2, 4, 8, 1 << 31
	info := fileInfo{name: name}
	flags := c.u32()
	if flags&hasSize != 0 {
		info.size = int64(c.u64())
		c.bad = c.bad || info.size < 0
	}
	if flags&hasOwner != 0 {
		c.take(8)
	}
	if flags&hasMode != 0 {
		info.mode = modeOf(c.u32())
	}
	if flags&hasTimes != 0 {
		c.take(4)
		info.mtime = time.Unix(int64(c.u32()), 0)
	}
	if flags&hasMore != 0 {
		for range c.u32() {
			_, _ = c.str(), c.str()
			if c.bad {
				break
			}
		}
	}
	return info
}

// modeOf translates st_mode.
func modeOf(m uint32) fs.FileMode {
	out := fs.FileMode(m & 0o777)
	switch m & 0o170000 {
	case 0o040000:
		out |= fs.ModeDir
	case 0o120000:
		out |= fs.ModeSymlink
	case 0o060000:
		out |= fs.ModeDevice
	case 0o020000:
		out |= fs.ModeDevice | fs.ModeCharDevice
	case 0o010000:
		out |= fs.ModeNamedPipe
	case 0o140000:
		out |= fs.ModeSocket
	}
	return out
}

// fileInfo are the attributes of a file.
type fileInfo struct {
	name  string
	size  int64
	mode  fs.FileMode
	mtime time.Time
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.size }
func (i fileInfo) Mode() fs.FileMode  { return i.mode }
func (i fileInfo) ModTime() time.Time { return i.mtime }
func (i fileInfo) IsDir() bool        { return i.mode.IsDir() }
func (i fileInfo) Sys() any           { return nil }
