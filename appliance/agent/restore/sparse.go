package restore

// sparseBlock is the size of the blocks of a disk image that are left out where they are zeros: that of most file systems.
const sparseBlock = 4 << 10

func (f *file) write(p []byte, off int64) error {
	_, err := f.f.WriteAt(p, off)
	return err
}

// writeSparse writes a chunk of a disk image, but for its blocks of zeros: the file is new, and has holes there. Chunks of
// images begin at multiples of a block.
func (f *file) writeSparse(p []byte, off int64) error {
	for len(p) > 0 {
		n := run(p, true)
		p, off = p[n:], off+int64(n)
		if n = run(p, false); n > 0 {
			if err := f.write(p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// run is the length of the blocks at the start of p that are all zeros, or that are not.
func run(p []byte, zeros bool) (n int) {
	for n < len(p) {
		b := p[n:min(n+sparseBlock, len(p))]
		if allZero(b) != zeros {
			return n
		}
		n += len(b)
	}
	return n
}
