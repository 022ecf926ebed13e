package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
)

// alwaysFull is the size of all tables up to which every Open reads them whole, about a second's work: a damaged block
// is no error to badger's lookup, it just is not there.
const alwaysFull = 512 << 20

// checkTables tests badger's tables as badger would when it opens them, but where a panic can be caught; full tests the
// checksum of every block, too. dir may be missing.
func checkTables(dir string, full bool) error {
	names, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		return err
	}
	total := int64(0)
	for _, name := range names {
		if st, err := os.Stat(name); err == nil {
			total += st.Size()
		}
	}
	full = full || total <= alwaysFull
	for _, name := range names {
		if err := guard(func() error { return checkTable(name, full) }); err != nil {
			return fmt.Errorf("table %s: %w", filepath.Base(name), err)
		}
	}
	return nil
}

func checkTable(name string, full bool) error {
	if err := checkTail(name); err != nil {
		return err
	}
	opts := table.Options{BlockSize: 4 << 10, Compression: options.None, ChkMode: options.OnBlockRead}
	if !full {
		return briefly(name, opts)
	}
	// read, not mapped: a sector that cannot be read is an error here, and a signal there.
	data, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("%w: %w", errDamage, err)
	}
	id, ok := table.ParseFileID(name)
	if !ok {
		return fmt.Errorf("%w: name", errDamage)
	}
	t, err := table.OpenInMemoryTable(data, id, &opts)
	if err != nil {
		return fmt.Errorf("%w: %w", errDamage, err)
	}
	if err := t.VerifyChecksum(); err != nil {
		return fmt.Errorf("%w: %w", errDamage, err)
	}
	return nil
}

// briefly opens a table, which tests its index and its last block.
func briefly(name string, opts table.Options) error {
	mf, err := z.OpenMmapFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer mf.Close(-1)
	if _, err := table.OpenTable(mf, opts); err != nil {
		return fmt.Errorf("%w: %w", errDamage, err)
	}
	return nil
}

// maxChecksum bounds the encoded checksum at a table's end.
const maxChecksum = 64

// checkTail tests the lengths at the end of a table, with which badger would end the process: checksum, length of the
// checksum, and before them the length of the index.
func checkTail(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	size := st.Size()
	tail := make([]byte, min(size, 4+maxChecksum+4))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", errDamage, err)
	}
	if len(tail) < 8 {
		return fmt.Errorf("%w: %d bytes", errDamage, size)
	}
	sum := int(binary.BigEndian.Uint32(tail[len(tail)-4:]))
	if sum == 0 || sum > maxChecksum || sum+8 > len(tail) {
		return fmt.Errorf("%w: checksum of %d bytes", errDamage, sum)
	}
	index := int64(binary.BigEndian.Uint32(tail[len(tail)-8-sum:]))
	if index == 0 || index+int64(sum)+8 > size {
		return fmt.Errorf("%w: index of %d bytes", errDamage, index)
	}
	return nil
}
