package index

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"strings"

	"coffer/dedup/vfs"
)

// META is one line of text and its checksum. Part of the format.
const (
	metaName    = "META"
	metaMagic   = "coffer-index"
	metaVersion = 2
	maxMeta     = 512
)

// state is how an index was left.
type state string

const (
	stateClosed  state = "closed"  // cleanly: badger's files are as they should be
	stateOpen    state = "open"    // in use, or the process died
	stateOpening state = "opening" // in Open, or the process died in there
	stateSuspect state = "suspect" // damage was met
)

// meta is what META says.
type meta struct {
	store    [16]byte
	memtable int64 // badger replays a log only into a memtable as large as the one it was written beside
	state    state
	deaths   int // how often in a row the process died in Open
}

func (m meta) encode() []byte {
	line := fmt.Sprintf("%s %d %x %d %s %d", metaMagic, metaVersion, m.store, m.memtable, m.state, m.deaths)
	return fmt.Appendf(nil, "%s %08x\n", line, metaSum(line))
}

func metaSum(line string) uint32 {
	return crc32.Checksum([]byte(line), crc32.MakeTable(crc32.Castagnoli))
}

var errNewer = errors.New("newer format")

// parseMeta decodes META.
func parseMeta(b []byte) (meta, error) {
	line, sum, ok := cutLast(strings.TrimSuffix(string(b), "\n"))
	if !ok || !strings.HasPrefix(line, metaMagic+" ") {
		return meta{}, fmt.Errorf("%w: %s", errDamage, metaName)
	}
	var m meta
	var version int
	var magic, store, st string
	n, _ := fmt.Sscanf(line, "%s %d %s %d %s %d", &magic, &version, &store, &m.memtable, &st, &m.deaths)
	if n >= 2 && version > metaVersion {
		return meta{}, fmt.Errorf("%w: version %d", errNewer, version)
	}
	if n >= 2 && version < metaVersion {
		return meta{}, fmt.Errorf("%w: %s is of version %d, which is not read any more", errDamage, metaName, version)
	}
	id, err := hex.DecodeString(store)
	if n != 6 || err != nil || len(id) != len(m.store) || fmt.Sprintf("%08x", metaSum(line)) != sum {
		return meta{}, fmt.Errorf("%w: %s", errDamage, metaName)
	}
	m.state = state(st)
	copy(m.store[:], id)
	if string(m.encode()) != string(b) || m.memtable < minMemtable || m.memtable > maxMemtable {
		return meta{}, fmt.Errorf("%w: %s", errDamage, metaName)
	}
	return m, nil
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, ' ')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// readMeta reads META; ok is false when there is none.
func readMeta(path string) (m meta, ok bool, err error) {
	f, err := vfs.OS().Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return meta{}, false, nil
	}
	if err != nil {
		return meta{}, false, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMeta))
	if err != nil {
		return meta{}, false, err
	}
	m, err = parseMeta(b)
	return m, err == nil, err
}
