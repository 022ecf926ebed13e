package recipe_test

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"coffer/dedup/digest"
	. "coffer/dedup/recipe"
)

// record makes a record byte by byte, so that it may be wrong. childWords are length<<1 | node.
func record(kind Kind, level byte, totals Totals, childWords []uint64, body string) []byte {
	rec := append([]byte{Version, byte(kind), level, 0}, make([]byte, 16)...)
	rec = binary.AppendUvarint(rec, totals.Entries)
	rec = binary.AppendUvarint(rec, totals.Bytes)
	rec = binary.AppendUvarint(rec, uint64(len(childWords)))
	for range childWords {
		rec = append(rec, strings.Repeat("D", digest.Size)...)
	}
	for _, w := range childWords {
		rec = binary.AppendUvarint(rec, w)
	}
	return append(rec, body...)
}

// Parts of bodies.
const (
	regular = "\xa4\x83\x02" // mode 0100644
	dirMode = "\xed\x83\x01" // mode 040755
	link    = "\xff\xc3\x02" // mode 0120777
)

// plain is an empty regular file with this name.
func plain(name string) string { return "\x00" + string(rune(len(name))) + name + regular + "\x00" }

func TestRecordHelpersAreRight(t *testing.T) {
	for name, rec := range map[string][]byte{
		"two files": record(DirLeaf, 0, Totals{Entries: 2}, nil, plain("a")+plain("b")),
		"directory": record(DirLeaf, 0, Totals{Entries: 8, Bytes: 5}, []uint64{5<<1 | 1}, "\x03\x01d"+dirMode+"\x00\x07"),
		"link":      record(DirLeaf, 0, Totals{Entries: 1}, nil, "\x20\x01l"+link+"\x00\x01t"),
		"inner":     record(DirInner, 1, Totals{Entries: 3, Bytes: 5}, []uint64{5<<1 | 1, 1}, "\x01a\x01\x01b\x02"),
		"stream":    record(StreamLeaf, 0, Totals{Entries: 2, Bytes: 12}, []uint64{5 << 1}, "\x01\x07"),
		"image":     record(ImageLeaf, 0, Totals{Entries: 2, Bytes: 3*4096 + 5}, []uint64{4096 << 1, 5 << 1}, "\x0c\x0a"),
		"images":    record(ImageInner, 1, Totals{Entries: 3, Bytes: 128*4096 + 5}, []uint64{4096<<8 | 1, 5<<1 | 1}, "\x0c\x03\x02\x01"),
		"all hole":  record(ImageInner, 1, Totals{Bytes: 128*4096 + 5}, nil, "\x0c\x00"),
		"side":      record(SideLeaf, 0, Totals{Entries: 1}, nil, "\x03\x05\x02\x02\x00\x00\x00\x00"),
	} {
		if _, err := Parse(rec); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostileRecords(t *testing.T) {
	good := record(DirLeaf, 0, Totals{Entries: 1}, nil, plain("a"))
	with := func(at int, b byte) []byte {
		rec := append([]byte(nil), good...)
		rec[at] = b
		return rec
	}
	leaf := func(n uint64, body string, words ...uint64) []byte {
		return record(DirLeaf, 0, Totals{Entries: n}, words, body)
	}
	zeroDigest := record(DirLeaf, 0, Totals{Entries: 1, Bytes: 5}, []uint64{5 << 1}, "\x01\x01f"+regular+"\x00")
	clear(zeroDigest[23 : 23+32])
	for name, c := range map[string]struct {
		kind ErrorKind
		rec  []byte
	}{
		"nothing":           {Malformed, nil},
		"too long":          {Malformed, make([]byte, MaxRecord+1)},
		"head only":         {Malformed, good[:10]},
		"version 0":         {Malformed, with(0, 0)},
		"version 2":         {NewerVersion, with(0, 2)},
		"kind 0":            {UnknownField, with(1, 0)},
		"kind 7":            {UnknownField, with(1, 7)},
		"kind 15":           {UnknownField, with(1, 15)},
		"kind 18":           {UnknownField, with(1, 18)},
		"leaf at level 1":   {Malformed, with(2, 1)},
		"inner at level 0":  {Malformed, with(1, byte(DirInner))},
		"reserved byte":     {Malformed, with(3, 1)},
		"sealed":            {Sealed, with(4, 1)},
		"entries lie":       {Malformed, leaf(2, plain("a"))},
		"bytes lie":         {Malformed, record(DirLeaf, 0, Totals{Entries: 1, Bytes: 1}, nil, plain("a"))},
		"huge totals":       {Malformed, record(DirLeaf, 0, Totals{Entries: 1 << 63}, nil, plain("a"))},
		"level too high":    {Malformed, record(DirInner, MaxLevel+1, Totals{Entries: 1}, []uint64{1}, "\x01a\x01")},
		"children lie":      {Malformed, append(good[:22:22], "\xff\xff\xff\xff\x0f"...)},
		"digest of zeros":   {Malformed, zeroDigest},
		"unused child":      {Malformed, leaf(1, plain("a"), 5<<1)},
		"chunk of 0 bytes":  {Malformed, leaf(1, "\x01\x01f"+regular+"\x00", 0)},
		"chunk too long":    {Malformed, leaf(1, "\x01\x01f"+regular+"\x00", (MaxChunkLen+1)<<1)},
		"node as chunk":     {Malformed, leaf(1, "\x01\x01f"+regular+"\x00", 5<<1|1)},
		"chunk as node":     {Malformed, leaf(1, "\x02\x01f"+regular+"\x00", 5<<1)},
		"stream of 0 bytes": {Malformed, leaf(1, "\x02\x01f"+regular+"\x00", 1)},
		"missing child":     {Malformed, leaf(1, "\x01\x01f"+regular+"\x00")},
		"sum overflows":     {Malformed, leaf(1, plain("a"), MaxTotal<<1|1, MaxTotal<<1|1)},

		"unknown mask bit": {UnknownField, leaf(1, "\x80\x10\x01a"+regular+"\x00")},
		"image and chunk":  {UnknownField, leaf(1, "\x81\x08\x01a"+regular+"\x00", 5<<1)},
		"image is a chunk": {Malformed, leaf(1, "\x80\x08\x01a"+regular+"\x00", 5<<1)},
		"image, no child":  {Malformed, leaf(1, "\x80\x08\x01a"+regular+"\x00")},
		"image of 0 bytes": {Malformed, leaf(1, "\x80\x08\x01a"+regular+"\x00", 1)},
		"dir is an image":  {Malformed, leaf(1, "\x80\x08\x01d"+dirMode+"\x00", 5<<1|1)},
		"long number":      {Malformed, leaf(1, "\x80\x00\x01a"+regular+"\x00")},
		"empty name":       {BadName, leaf(1, plain(""))},
		"dot":              {BadName, leaf(1, plain("."))},
		"dot dot":          {BadName, leaf(1, plain(".."))},
		"traversal":        {BadName, leaf(1, plain("../../etc/passwd"))},
		"slash":            {BadName, leaf(1, plain("a/b"))},
		"nul":              {BadName, leaf(1, plain("a\x00b"))},
		"same name":        {BadOrder, leaf(2, plain("a")+plain("a"))},
		"descending":       {BadOrder, leaf(2, plain("b")+plain("a"))},
		"prefix after":     {BadOrder, leaf(2, plain("ab")+plain("a"))},
		"name too long":    {Malformed, leaf(1, "\x00\x81\x20"+strings.Repeat("n", 4097)+regular+"\x00")},
		"cut short":        {Malformed, leaf(1, plain("a")[:4])},
		"name cut short":   {Malformed, leaf(1, "\x00\x05a")},
		"no type":          {Malformed, leaf(1, "\x00\x01a\x24\x00")},
		"17 mode bits":     {Malformed, leaf(1, "\x00\x01a\xa4\x83\x06\x00")},
		"nsec of 0":        {Malformed, leaf(1, "\x04\x01a"+regular+"\x00\x00\x00\x00\x00")},
		"nsec of a second": {Malformed, leaf(1, "\x04\x01a"+regular+"\x00\x00\xca\x9a\x3b")},
		"uid of 0":         {Malformed, leaf(1, "\x08\x01a"+regular+"\x00\x00")},
		"uid of 33 bits":   {Malformed, leaf(1, "\x08\x01a"+regular+"\x00\x80\x80\x80\x80\x10")},
		"file with target": {Malformed, leaf(1, "\x20\x01a"+regular+"\x00\x01t")},
		"empty target":     {Malformed, leaf(1, "\x20\x01l"+link+"\x00\x00")},
		"target with nul":  {Malformed, leaf(1, "\x20\x01l"+link+"\x00\x01\x00")},
		"link, no target":  {Malformed, leaf(1, "\x00\x01l"+link+"\x00")},
		"file with rdev":   {Malformed, leaf(1, "\x80\x02\x01a"+regular+"\x00\x05")},
		"link group of 0":  {Malformed, leaf(1, "\x80\x01\x01a"+regular+"\x00\x00\x00\x00\x00\x00\x00\x00\x00")},
		"flags of 0":       {Malformed, leaf(1, "\x80\x04\x01a"+regular+"\x00\x00")},
		"dir, no content":  {Malformed, leaf(1, "\x00\x01d"+dirMode+"\x00")},
		"file is a dir":    {Malformed, leaf(1, "\x03\x01a"+regular+"\x00\x00", 1)},
		"dir is a chunk":   {Malformed, leaf(1, "\x01\x01d"+dirMode+"\x00", 5<<1)},
		"huge subtree":     {Malformed, leaf(1, "\x03\x01d"+dirMode+"\x00\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 1)},
		"no xattrs":        {Malformed, leaf(1, "\x40\x01a"+regular+"\x00\x00")},
		"too many xattrs":  {Malformed, leaf(1, "\x40\x01a"+regular+"\x00\xff\x01"+"\x01a\x00")},
		"xattr order":      {Malformed, leaf(1, "\x40\x01a"+regular+"\x00\x02"+"\x01b\x00\x01a\x00")},
		"xattr, no name":   {Malformed, leaf(1, "\x40\x01a"+regular+"\x00\x01"+"\x00\x00\x00")},
		"xattr cut short":  {Malformed, leaf(1, "\x40\x01a"+regular+"\x00\x01"+"\x01a\x08xx")},
		"xattr, no chunk":  {Malformed, leaf(1, "\x40\x01a"+regular+"\x00\x01"+"\x01a\x01")},
		"odd xattr":        {Malformed, leaf(1, "\x40\x01a"+regular+"\x00\x01"+"\x01a\x03x")},

		"inner, no children":  {Malformed, record(DirInner, 1, Totals{}, nil, "")},
		"inner of chunks":     {Malformed, record(DirInner, 1, Totals{Entries: 1, Bytes: 5}, []uint64{5 << 1}, "\x01a\x01")},
		"inner, bytes lie":    {Malformed, record(DirInner, 1, Totals{Entries: 1, Bytes: 6}, []uint64{5<<1 | 1}, "\x01a\x01")},
		"inner, entries lie":  {Malformed, record(DirInner, 1, Totals{Entries: 2, Bytes: 5}, []uint64{5<<1 | 1}, "\x01a\x01")},
		"inner, order":        {BadOrder, record(DirInner, 1, Totals{Entries: 2}, []uint64{1, 1}, "\x01b\x01\x01a\x01")},
		"inner, bad name":     {Malformed, record(DirInner, 1, Totals{Entries: 1}, []uint64{1}, "\x02..\x01")},
		"inner, empty child":  {Malformed, record(DirInner, 1, Totals{Entries: 1}, []uint64{1}, "\x01a\x00")},
		"inner, rest":         {Malformed, record(DirInner, 1, Totals{Entries: 1}, []uint64{1}, "\x01a\x01x")},
		"inner, cut short":    {Malformed, record(DirInner, 1, Totals{Entries: 1}, []uint64{1}, "\x01")},
		"stream of nothing":   {Malformed, record(StreamLeaf, 0, Totals{}, nil, "")},
		"stream of nodes":     {Malformed, record(StreamLeaf, 0, Totals{Entries: 1, Bytes: 5}, []uint64{5<<1 | 1}, "\x01")},
		"stream, no chunk":    {Malformed, record(StreamLeaf, 0, Totals{Entries: 2, Bytes: 5}, []uint64{5 << 1}, "\x02")},
		"stream, chunk left":  {Malformed, record(StreamLeaf, 0, Totals{Entries: 2, Bytes: 10}, []uint64{5 << 1, 5 << 1}, "\x01")},
		"stream, hole of 0":   {Malformed, record(StreamLeaf, 0, Totals{Entries: 1, Bytes: 5}, []uint64{5 << 1}, "\x01\x00")},
		"stream, two holes":   {Malformed, record(StreamLeaf, 0, Totals{Entries: 2, Bytes: 5}, nil, "\x00\x02\x00\x03")},
		"stream, huge hole":   {Malformed, record(StreamLeaf, 0, Totals{Entries: 1, Bytes: MaxTotal}, nil, "\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")},
		"stream, bytes lie":   {Malformed, record(StreamLeaf, 0, Totals{Entries: 2, Bytes: 13}, []uint64{5 << 1}, "\x01\x07")},
		"stream, empty child": {Malformed, record(StreamInner, 1, Totals{Entries: 1}, []uint64{1}, "\x01")},
		"image of nothing":    {Malformed, record(ImageLeaf, 0, Totals{}, nil, "\x0c\x00")},
		"image, no body":      {Malformed, record(ImageLeaf, 0, Totals{Bytes: 4096}, nil, "")},
		"image, no map":       {Malformed, record(ImageLeaf, 0, Totals{Bytes: 4096}, nil, "\x0c")},
		"image, rest":         {Malformed, record(ImageLeaf, 0, Totals{Bytes: 4096}, nil, "\x0c\x00\x00")},
		"image, small chunks": {Malformed, record(ImageLeaf, 0, Totals{Bytes: 4096}, nil, "\x0b\x00")},
		"image, large chunks": {Malformed, record(ImageLeaf, 0, Totals{Bytes: 4096}, nil, "\x18\x00")},
		"image of nodes":      {Malformed, record(ImageLeaf, 0, Totals{Entries: 1, Bytes: 4096}, []uint64{4096<<1 | 1}, "\x0c\x01")},
		"image, other chunk":  {Malformed, record(ImageLeaf, 0, Totals{Entries: 1, Bytes: 8192}, []uint64{4095 << 1}, "\x0c\x01")},
		"image, other tail":   {Malformed, record(ImageLeaf, 0, Totals{Entries: 1, Bytes: 4097}, []uint64{4096 << 1}, "\x0c\x02")},
		"image, map lies":     {Malformed, record(ImageLeaf, 0, Totals{Entries: 1, Bytes: 8192}, []uint64{4096 << 1}, "\x0c\x03")},
		"image, map too long": {Malformed, record(ImageLeaf, 0, Totals{Entries: 1, Bytes: 8192}, []uint64{4096 << 1}, "\x0c\x04")},
		"image, count lies":   {Malformed, record(ImageLeaf, 0, Totals{Entries: 2, Bytes: 8192}, []uint64{4096 << 1}, "\x0c\x01")},
		"image too wide":      {Malformed, record(ImageLeaf, 0, Totals{Bytes: 129 * 4096}, nil, "\x0c"+strings.Repeat("\x00", 17))},
		"image, sum too big":  {Malformed, record(ImageLeaf, 0, Totals{Entries: 1, Bytes: 4095}, []uint64{4096 << 1}, "\x0c\x01")},
		"images of chunks":    {Malformed, record(ImageInner, 1, Totals{Entries: 1, Bytes: 4096 << 7}, []uint64{4096 << 8}, "\x0c\x01\x01")},
		"images, empty":       {Malformed, record(ImageInner, 1, Totals{Entries: 0, Bytes: 4096 << 7}, []uint64{4096<<8 | 1}, "\x0c\x01\x00")},
		"images, count lies":  {Malformed, record(ImageInner, 1, Totals{Entries: 3, Bytes: 4096 << 7}, []uint64{4096<<8 | 1}, "\x0c\x01\x02")},
		"images, too many":    {Malformed, record(ImageInner, 1, Totals{Entries: 129, Bytes: 4096 << 7}, []uint64{4096<<8 | 1}, "\x0c\x01\x81\x01")},
		"images too deep":     {Malformed, record(ImageInner, 9, Totals{Bytes: 1 << 61}, nil, "\x0c\x00")},
		"images, entries":     {Malformed, record(ImageInner, 1, Totals{Entries: 5, Bytes: 4096 << 7}, nil, "\x0c\x00")},

		"side with child":  {Malformed, record(SideLeaf, 0, Totals{Entries: 1}, []uint64{1}, "\x00\x00\x00\x00\x00\x00\x00")},
		"side with bytes":  {Malformed, record(SideInner, 1, Totals{Entries: 1, Bytes: 1}, []uint64{1<<1 | 1}, "\x01")},
		"side flags":       {UnknownField, record(SideLeaf, 0, Totals{Entries: 1}, nil, "\x04\x00\x00\x00\x00\x00\x00")},
		"side cut short":   {Malformed, record(SideLeaf, 0, Totals{Entries: 1}, nil, "\x00\x00\x00\x00\x00\x00")},
		"side same device": {Malformed, record(SideLeaf, 0, Totals{Entries: 1}, nil, "\x02\x00\x00\x00\x00\x00\x00\x00")},
		"side nanoseconds": {Malformed, record(SideLeaf, 0, Totals{Entries: 1}, nil, "\x00\x00\x00\x00\xca\x9a\x3b")},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := Parse(c.rec)
			var typed *Error
			if !errors.As(err, &typed) || typed.Kind != c.kind || n.Kind != 0 {
				t.Errorf("%+v, %v; want %v", n, err, c.kind)
			}
		})
	}
}

// TestSealedNodesWalkButDoNotRead: GC, check and replication read the clear part of a sealed node.
func TestSealedNodes(t *testing.T) {
	rec := record(DirLeaf, 0, Totals{Entries: 1, Bytes: 5}, []uint64{0}, "ciphertext")
	rec[4] = 9
	n, err := ParseClear(rec)
	if err != nil || n.SealedBy[0] != 9 || len(n.Children) != 1 || n.Children[0].Length != 0 {
		t.Fatalf("%+v, %v", n, err)
	}
	if again, err := n.Encode(); err != nil || string(again) != string(rec) {
		t.Errorf("encode: %v", err)
	}
	m := newMemory()
	d := testHasher().Sum(rec)
	m.nodes[d] = rec
	var typed *Error
	if _, _, err := NewDirIter(m, d).Next(t.Context()); !errors.As(err, &typed) || typed.Kind != Sealed {
		t.Errorf("read: %v", err)
	}
}

// TestHostileSealedNodes: the clear part of a sealed node has rules of its own.
func TestHostileSealedNodes(t *testing.T) {
	for name, rec := range map[string][]byte{
		"chunk with a length":   record(DirLeaf, 0, Totals{Entries: 1, Bytes: 5}, []uint64{5 << 1}, ""),
		"nodes beyond the sum":  record(DirLeaf, 0, Totals{Entries: 1, Bytes: 5}, []uint64{6<<1 | 1}, ""),
		"more chunks than bits": record(StreamLeaf, 0, Totals{Entries: 2, Bytes: 1}, []uint64{0, 0}, ""),
		"node in a stream leaf": record(StreamLeaf, 0, Totals{Entries: 2, Bytes: 9}, []uint64{1<<1 | 1}, ""),
		"node in an image leaf": record(ImageLeaf, 0, Totals{Entries: 1, Bytes: 9}, []uint64{1<<1 | 1}, ""),
		"image of no bytes":     record(ImageLeaf, 0, Totals{Entries: 1}, []uint64{0}, ""),
		"image, other entries":  record(ImageLeaf, 0, Totals{Entries: 2, Bytes: 9}, []uint64{0}, ""),
		"chunk in image nodes":  record(ImageInner, 1, Totals{Entries: 2, Bytes: 9}, []uint64{0}, ""),
		"side leaf with bytes":  record(SideLeaf, 0, Totals{Entries: 2, Bytes: 9}, nil, ""),
		"chunk in an inner":     record(DirInner, 1, Totals{Entries: 2, Bytes: 9}, []uint64{0}, ""),
		"inner of another sum":  record(DirInner, 1, Totals{Entries: 2, Bytes: 9}, []uint64{8<<1 | 1}, ""),
	} {
		rec[4] = 9
		var typed *Error
		if _, err := ParseClear(rec); !errors.As(err, &typed) || typed.Kind != Malformed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestInnerLiesAreFound: Parse accepts each node of these trees, the readers do not accept their sum.
func TestInnerLiesAreFound(t *testing.T) {
	m := newMemory()
	put := func(rec []byte) digest.Digest {
		if _, err := Parse(rec); err != nil {
			t.Fatal(err)
		}
		d := testHasher().Sum(rec)
		m.nodes[d] = rec
		return d
	}
	inner := func(level uint8, names []string, leaves ...digest.Digest) digest.Digest {
		n := Node{Kind: DirInner, Level: level, Totals: Totals{Entries: uint64(len(leaves))}}
		for i, d := range leaves {
			n.Children = append(n.Children, Child{Digest: d, Node: true})
			n.Body = append(append(append(n.Body, byte(len(names[i]))), names[i]...), 1)
		}
		rec, err := n.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return put(rec)
	}
	a := put(record(DirLeaf, 0, Totals{Entries: 1}, nil, plain("a")))
	z := put(record(DirLeaf, 0, Totals{Entries: 1}, nil, plain("z")))
	two := put(record(DirLeaf, 0, Totals{Entries: 2}, nil, plain("b")+plain("c")))
	side := put(record(SideLeaf, 0, Totals{Entries: 1}, nil, "\x00\x00\x00\x00\x00\x00\x00"))
	for name, c := range map[string]struct {
		root digest.Digest
		kind ErrorKind
	}{
		"other first name": {inner(1, []string{"a", "b"}, a, z), Mismatch},
		"other totals":     {inner(1, []string{"a", "b"}, a, two), Mismatch},
		"other kind":       {inner(1, []string{"a", "b"}, a, side), Mismatch},
		"other level":      {inner(2, []string{"a"}, a), Mismatch},
		"same leaf twice":  {inner(1, []string{"a", "b"}, a, a), Mismatch},
	} {
		it := NewDirIter(m, c.root)
		var err error
		for err == nil {
			_, _, err = it.Next(t.Context())
		}
		var typed *Error
		if !errors.As(err, &typed) || typed.Kind != c.kind {
			t.Errorf("%s: %v", name, err)
		}
		root, _ := Parse(m.nodes[c.root])
		err = nil
		for i := range root.Children {
			child, _ := Parse(m.nodes[root.Children[i].Digest])
			err = errors.Join(err, CheckChild(&root, i, &child))
		}
		if !errors.As(err, &typed) || typed.Kind != Mismatch {
			t.Errorf("%s: CheckChild: %v", name, err)
		}
	}
}

// TestImageLiesAreFound: Parse accepts each node of these images, the readers do not accept them together.
func TestImageLiesAreFound(t *testing.T) {
	m := newMemory()
	put := func(rec []byte) digest.Digest {
		if _, err := Parse(rec); err != nil {
			t.Fatal(err)
		}
		d := testHasher().Sum(rec)
		m.nodes[d] = rec
		return d
	}
	const span = 4096 << 7
	leaf := put(record(ImageLeaf, 0, Totals{Entries: 1, Bytes: span}, []uint64{4096 << 1}, "\x0c\x01"+strings.Repeat("\x00", 15)))
	other := put(record(ImageLeaf, 0, Totals{Entries: 1, Bytes: span}, []uint64{8192 << 1}, "\x0d\x01"+strings.Repeat("\x00", 7)))
	two := put(record(ImageLeaf, 0, Totals{Entries: 2, Bytes: span}, []uint64{4096 << 1, 4096 << 1}, "\x0c\x03"+strings.Repeat("\x00", 15)))
	stream := put(record(StreamLeaf, 0, Totals{Entries: 1, Bytes: span}, nil, "\x00\x80\x80\x20"))
	over := func(d digest.Digest) (digest.Digest, uint64) {
		n := Node{Kind: ImageInner, Level: 1, Totals: Totals{Entries: 1, Bytes: span + 1},
			Children: []Child{{Digest: d, Node: true, Length: span}}, Body: []byte("\x0c\x01\x01")}
		rec, err := n.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return put(rec), span + 1
	}
	read := func(d digest.Digest, size uint64) error {
		img, err := OpenImage(t.Context(), m, Content{Kind: ImageTree, Digest: d}, size)
		if err == nil {
			_, err = img.Chunks(t.Context(), 0)
		}
		return err
	}
	if err := read(over(leaf)); err != nil {
		t.Errorf("what is right: %v", err)
	}
	tooHigh := put(record(ImageInner, 1, Totals{Entries: 1, Bytes: span}, []uint64{span<<1 | 1}, "\x0c\x01\x01"))
	for name, err := range map[string]error{
		"chunks of another size": read(over(other)),
		"another count":          read(over(two)),
		"a stream":               read(over(stream)),
		"a root too high":        read(tooHigh, span),
		"another size":           read(leaf, span-1),
	} {
		var typed *Error
		if !errors.As(err, &typed) || typed.Kind != Mismatch {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, d := range []digest.Digest{other, two, stream} {
		root, _ := over(d)
		parent, _ := Parse(m.nodes[root])
		child, _ := Parse(m.nodes[d])
		var typed *Error
		if err := CheckChild(&parent, 0, &child); !errors.As(err, &typed) || typed.Kind != Mismatch {
			t.Errorf("CheckChild of %v: %v", child.Kind, err)
		}
	}
}
