package overlay

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"path/filepath"

	"coffer/dedup/vfs"
)

const (
	mapName    = "map"
	mapNewName = "map.new"
	dataName   = "data"
	// compactSlack keeps short maps from being made anew all the time.
	compactSlack = 4 << 20
)

// mapLog is the map of an open overlay. Who calls holds the overlay's logging lock.
type mapLog struct {
	file      vfs.File
	header    header
	end       int64
	seq       uint64 // of the last record
	changed   uint64 // the last one that changed a state
	committed uint64 // records up to here describe synced data
	durable   uint64 // records up to here are synced
	compact   int64  // bytes after the last compaction
	buf       []byte
}

// add appends a record. On an error it is as if it had not been tried.
func (l *mapLog) add(r record) error {
	r.seq = l.seq + 1
	l.buf = r.append(l.buf[:0], l.header.salt)
	if _, err := l.file.WriteAt(l.buf, l.end); err != nil {
		_ = l.file.Truncate(l.end) // what stays of it is overwritten by the next, or is no record
		return err
	}
	l.end += int64(len(l.buf))
	l.seq = r.seq
	return nil
}

// long tells whether a compaction pays: the map has grown to more than twice of what was needed.
func (l *mapLog) long(slack int64) bool { return l.end > 2*l.compact+slack }

// contents is what a new map begins with.
type contents struct {
	header  header
	states  *states
	boot    BootID // zero: nobody writes
	unclean bool
}

// writeMap makes a new map beside the old one and puts it in the old one's place, durably. placed tells, in an error, that
// nobody knows which of the two a loss of power would leave.
func writeMap(fsys vfs.FS, dir string, c contents) (l *mapLog, placed bool, err error) {
	tmp := filepath.Join(dir, mapNewName)
	if err := fsys.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	f, err := fsys.Create(tmp)
	if err != nil {
		return nil, false, err
	}
	l = &mapLog{file: f, header: c.header}
	if err := errors.Join(l.fill(c), f.Sync()); err != nil {
		_ = f.Close()
		_ = fsys.Remove(tmp)
		return nil, false, err
	}
	if err := fsys.Rename(tmp, filepath.Join(dir, mapName)); err != nil {
		_ = f.Close()
		_ = fsys.Remove(tmp)
		return nil, false, err
	}
	l.committed, l.durable, l.compact = l.seq, l.seq, l.end
	if err := fsys.SyncDir(dir); err != nil {
		return l, true, err
	}
	return l, true, nil
}

// fill writes the first records.
func (l *mapLog) fill(c contents) error {
	head := c.header.encode()
	if _, err := l.file.WriteAt(head, 0); err != nil {
		return err
	}
	l.end = headerSize
	var err error
	entries := make([]run, 0, maxEntries)
	flush := func() bool {
		if len(entries) > 0 {
			err = l.add(record{kind: kindRuns, runs: entries})
			entries = entries[:0]
		}
		return err == nil
	}
	c.states.runs(func(i, n int64, st state) bool {
		for n > 0 {
			part := min(n, math.MaxUint32)
			entries = append(entries, run{i, part, st})
			i, n = i+part, n-part
			if len(entries) == maxEntries && !flush() {
				return false
			}
		}
		return true
	})
	if err != nil || !flush() {
		return err
	}
	if !c.boot.IsZero() {
		if err := l.add(record{kind: kindOpen, boot: c.boot}); err != nil {
			return err
		}
	}
	if c.unclean {
		return l.add(record{kind: kindUnclean})
	}
	return nil
}

// readMap replays the map of a directory and leaves it open.
func readMap(fsys vfs.FS, dir string) (vfs.File, *replayed, error) {
	f, err := fsys.OpenReadWrite(filepath.Join(dir, mapName))
	if err != nil {
		return nil, nil, err
	}
	size, err := f.Size()
	if err == nil {
		var p *replayed
		if p, err = replay(io.NewSectionReader(f, 0, size), size); err == nil {
			return f, p, nil
		}
	}
	_ = f.Close()
	return nil, nil, err
}
