package ntfs

import (
	"errors"
	"io"
	"sort"

	"www.velocidex.com/golang/go-ntfs/parser"
)

// stream is the content of an attribute: bytes in the record itself, or runs of clusters.
type stream struct {
	r           io.ReaderAt // the volume
	record      uint64
	size        int64
	initialized int64 // bytes; what lies behind is zero
	resident    []byte
	runs        []run // nil for what is resident
	cluster     int64
	unit        int64 // clusters that are compressed together; 0 = not compressed
}

// run is clusters of a stream that lie side by side, or that are not stored.
type run struct {
	vcn, n int64 // in the stream
	lcn    int64 // on the volume; hole
}

const hole = -1

// Limits of what a record may claim.
const (
	maxClusters = 1 << 48
	maxUnit     = 1 << 20 // bytes; 64 KiB in what Windows makes
)

// stream joins the parts of an attribute, which may lie in several records. The library's own way of joining takes 21 parts at
// most, and loses clusters of compressed files.
func (r *record) stream(kind uint64, name string) (*stream, error) {
	var parts []*parser.NTFS_ATTRIBUTE
	for _, a := range r.attrs {
		if a.Type().Value == kind && a.Name() == name {
			parts = append(parts, a)
		}
	}
	if len(parts) == 0 {
		return nil, corrupt("record %d: an attribute is missing", r.attr.Ino)
	}
	first := parts[0]
	s := &stream{r: r.fs.ctx.DiskReader, record: r.attr.Ino, size: first.DataSize(), cluster: r.fs.ctx.ClusterSize}
	if first.IsResident() {
		b := make([]byte, min(s.size, maxResident))
		if n, err := first.Data(r.fs.ctx).ReadAt(b, 0); n < len(b) || s.size > maxResident {
			return nil, corrupt("record %d: %d bytes in the record: %w", r.attr.Ino, s.size, errors.Join(err, io.ErrUnexpectedEOF))
		}
		s.resident = b
		return s, nil
	}
	sort.SliceStable(parts, func(i, j int) bool { return parts[i].Runlist_vcn_start() < parts[j].Runlist_vcn_start() })
	first = parts[0]
	s.size, s.initialized = int64(first.Actual_size()), int64(first.Initialized_size())
	if parser.IsCompressed(first.Flags()) && first.Compression_unit_size() > 0 {
		if first.Compression_unit_size() > 20 || s.cluster<<first.Compression_unit_size() > maxUnit {
			return nil, corrupt("record %d: compression units of 2^%d clusters", r.attr.Ino, first.Compression_unit_size())
		}
		s.unit = 1 << first.Compression_unit_size()
	}
	return s, s.join(parts)
}

// maxResident is more than the largest record can hold.
const maxResident = 16 << 10

// join takes over the runs of all parts, which must follow each other.
func (s *stream) join(parts []*parser.NTFS_ATTRIBUTE) error {
	next := int64(0)
	for _, a := range parts {
		if start := a.Runlist_vcn_start(); a.IsResident() || start != uint64(next) {
			if start < uint64(next) {
				continue // named twice
			}
			return corrupt("record %d: clusters from %d on are missing", s.record, next)
		}
		for _, x := range a.RunList() {
			if x.Length <= 0 || x.Length > maxClusters-next || x.Offset < 0 || x.Offset > maxClusters {
				return corrupt("record %d: a run of %d clusters at %d", s.record, x.Length, x.Offset)
			}
			lcn := x.Offset
			if x.RelativeUrnOffset == 0 {
				lcn = hole
			}
			s.runs = append(s.runs, run{next, x.Length, lcn})
			next += x.Length
		}
	}
	if s.size < 0 || s.size > 1<<60 || (s.size+s.cluster-1)/s.cluster > next {
		return corrupt("record %d: %d bytes in %d clusters", s.record, uint64(s.size), next)
	}
	return nil
}

// at returns what is left of the run that a cluster lies in.
func (s *stream) at(vcn int64) run {
	i := sort.Search(len(s.runs), func(i int) bool { return s.runs[i].vcn+s.runs[i].n > vcn })
	x := s.runs[i]
	skip := vcn - x.vcn
	x.vcn, x.n = vcn, x.n-skip
	if x.lcn != hole {
		x.lcn += skip
	}
	return x
}

// ReadAt implements io.ReaderAt.
func (s *stream) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, corrupt("offset %d", off)
	}
	if off >= s.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > s.size-off {
		p, eof = p[:s.size-off], io.EOF
	}
	if err := s.readAt(p, off); err != nil {
		return 0, err
	}
	return len(p), eof
}

// readAt fills p; the range lies inside the stream.
func (s *stream) readAt(p []byte, off int64) error {
	if s.runs == nil {
		copy(p, s.resident[off:])
		return nil
	}
	if zeros := off + int64(len(p)) - max(s.initialized, off); zeros > 0 {
		clear(p[int64(len(p))-zeros:])
		p = p[:int64(len(p))-zeros]
	}
	if s.unit > 0 {
		return s.readUnits(p, off)
	}
	for len(p) > 0 {
		x := s.at(off / s.cluster)
		skip := off % s.cluster
		part := p[:min(int64(len(p)), min(x.n, 1<<32)*s.cluster-skip)]
		if err := s.readRun(part, x, skip); err != nil {
			return err
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

// readRun reads from skip bytes behind the start of a run.
func (s *stream) readRun(p []byte, x run, skip int64) error {
	if x.lcn == hole {
		clear(p)
		return nil
	}
	if n, err := s.r.ReadAt(p, x.lcn*s.cluster+skip); n < len(p) {
		return corrupt("record %d: read cluster %d: %w", s.record, x.lcn, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return nil
}

// readUnits reads what is compressed, whole units at a time.
func (s *stream) readUnits(p []byte, off int64) error {
	size := s.unit * s.cluster
	for len(p) > 0 {
		b, err := s.readUnit(off / size)
		if err != nil {
			return err
		}
		n := copy(p, b[off%size:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// readUnit returns a unit, expanded. One of which all clusters are stored is not compressed; one of which none is, is zero.
func (s *stream) readUnit(unit int64) ([]byte, error) {
	b := make([]byte, 0, s.unit*s.cluster)
	end := s.runs[len(s.runs)-1]
	last := min((unit+1)*s.unit, end.vcn+end.n)
	for vcn := unit * s.unit; vcn < last; {
		x := s.at(vcn)
		x.n = min(x.n, last-vcn)
		vcn += x.n
		if x.lcn == hole {
			continue
		}
		at := len(b)
		b = b[:at+int(x.n*s.cluster)]
		if err := s.readRun(b[at:], x, 0); err != nil {
			return nil, err
		}
	}
	whole := int(s.unit * s.cluster)
	if len(b) > 0 && len(b) < int(last-unit*s.unit)*int(s.cluster) {
		plain, err := parser.LZNT1Decompress(b)
		if err != nil {
			return nil, corrupt("record %d: compression unit %d: %w", s.record, unit, err)
		}
		b = plain
	}
	if len(b) < whole {
		b = append(b, make([]byte, whole-len(b))...)
	}
	return b[:whole], nil
}

// extents yields the extents of a range inside the stream.
func (s *stream) extents(off, n int64, yield func(n int64, hole bool) bool) {
	if s.runs == nil || s.unit > 0 {
		if n > 0 {
			yield(n, false)
		}
		return
	}
	for end := off + n; off < end; {
		x := s.at(off / s.cluster)
		to := min(end, (x.vcn+min(x.n, 1<<32))*s.cluster)
		if !yield(to-off, x.lcn == hole) {
			return
		}
		off = to
	}
}
