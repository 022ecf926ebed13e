package recipe

// Parse reads a record and checks all of it, the body with every entry too, against the rules of the format. It
// stands between a hostile record and everyone who reads nodes; it needs no key, and it allocates nothing beyond
// the list of children (and of 128 numbers for an image node). The error is an *Error; a sealed body is refused with kind Sealed.
//
// What Parse cannot know is whether the children are what the node says of them: CheckChild does.
func Parse(rec []byte) (Node, error) {
	p, err := takeApart(rec)
	if err != nil {
		return Node{}, err
	}
	if err := p.checkBody(); err != nil {
		return Node{}, err
	}
	return p.node(), nil
}

// open refuses a sealed body.
func (p *clearPart) open() error {
	if p.sealed() {
		return fail(Sealed, "%v, sealed by key %x", p.kind, p.sealedBy)
	}
	return nil
}

func (p *clearPart) checkBody() error {
	if err := p.open(); err != nil {
		return err
	}
	var t Totals
	var err error
	switch p.kind {
	case DirLeaf:
		t, err = p.checkEntries()
	case StreamLeaf:
		t, err = p.checkExtents()
	case SideLeaf:
		t, err = p.checkRows()
	case ImageLeaf, ImageInner:
		t, err = p.checkImage()
	default:
		t, err = p.checkBranches()
	}
	if err == nil && t != p.totals {
		err = fail(Malformed, "%v has totals %d, %d, its body gives %d, %d",
			p.kind, p.totals.Entries, p.totals.Bytes, t.Entries, t.Bytes)
	}
	return err
}

func (p *clearPart) checkEntries() (Totals, error) {
	r := newEntryReader(p)
	var sum, below Totals
	var e Entry
	for r.more() {
		if err := r.next(&e, &below); err != nil {
			return sum, err
		}
		sum = sum.plus(e.totals(below))
	}
	if r.body.bad || r.children.left() != 0 {
		return sum, fail(Malformed, "directory leaf has %d children that no entry has", r.children.left())
	}
	return sum, nil
}

func (p *clearPart) checkExtents() (Totals, error) {
	r := newExtentReader(p, 0)
	var sum Totals
	var x Extent
	for {
		more, err := r.next(&x)
		if err != nil || !more {
			return sum, err
		}
		sum = sum.plus(Totals{Entries: 1, Bytes: x.Length})
	}
}

func (p *clearPart) checkRows() (Totals, error) {
	r := newRowReader(p)
	var sum Totals
	for r.more() {
		if err := r.next(); err != nil {
			return sum, err
		}
		sum.Entries++
	}
	return sum, nil
}

func (p *clearPart) checkBranches() (Totals, error) {
	r := newInnerReader(p)
	var sum Totals
	var b branch
	for {
		more, err := r.next(&b)
		if err != nil || !more {
			return sum, err
		}
		sum = sum.plus(b.totals)
	}
}

// CheckChild reports whether child can be child i of parent: its kind, its level and its totals against what the
// parent says of it, as far as the parent's body is open. Both nodes come from Parse, or from ParseClear if they
// are sealed. The error is an *Error of kind Mismatch.
func CheckChild(parent *Node, i int, child *Node) error {
	if i < 0 || i >= len(parent.Children) || !parent.Children[i].Node {
		return fail(Mismatch, "child %d of a %v is not a node", i, parent.Kind)
	}
	if !mayHold(parent, child) || child.Totals.Bytes != parent.Children[i].Length {
		return fail(Mismatch, "child %d of a %v at level %d has %d bytes, and is a %v at level %d of %d bytes", i,
			parent.Kind, parent.Level, parent.Children[i].Length, child.Kind, child.Level, child.Totals.Bytes)
	}
	if parent.SealedBy != [16]byte{} {
		return nil
	}
	p := clearOf(parent)
	switch parent.Kind {
	case DirLeaf:
		return p.checkSubtree(i, child)
	case ImageInner:
		return p.checkImageChild(i, child)
	}
	return p.checkBranch(i, child)
}

func mayHold(parent, child *Node) bool {
	if parent.Kind.Inner() {
		return child.Kind.leaf() == parent.Kind.leaf() && child.Level+1 == parent.Level
	}
	return parent.Kind == DirLeaf && child.Kind.leaf() != SideLeaf
}

// clearOf makes a clearPart of a parsed node again.
func clearOf(n *Node) clearPart {
	p := clearPart{kind: n.Kind, level: n.Level, sealedBy: n.SealedBy, totals: n.Totals, body: n.Body}
	for i := range n.Children {
		p.children.digests = append(p.children.digests, n.Children[i].Digest[:]...)
		p.children.lengths.b = appendUvarint(p.children.lengths.b, childWord(&n.Children[i]))
	}
	return p
}

// checkBranch holds a child of an inner node against its branch.
func (p *clearPart) checkBranch(i int, child *Node) error {
	r := newInnerReader(p)
	var b branch
	for range i + 1 {
		if more, err := r.next(&b); err != nil || !more {
			return fail(Mismatch, "child %d of a %v has no branch: %v", i, p.kind, err)
		}
	}
	if b.totals != child.Totals {
		return fail(Mismatch, "child %d of a %v has %d entries, and not %d",
			i, p.kind, child.Totals.Entries, b.totals.Entries)
	}
	if p.kind != DirInner || child.SealedBy != [16]byte{} {
		return nil
	}
	first, err := firstName(child)
	if err != nil || first != string(b.first) {
		return fail(Mismatch, "child %d of a %v begins with %q, and not %q", i, p.kind, first, b.first)
	}
	return nil
}

// firstName returns the first name in a directory's node; "" in an empty one.
func firstName(n *Node) (string, error) {
	p := clearOf(n)
	if n.Kind == DirInner {
		r := newInnerReader(&p)
		var b branch
		_, err := r.next(&b)
		return string(b.first), err
	}
	r := newEntryReader(&p)
	if !r.more() {
		return "", nil
	}
	var e Entry
	var below Totals
	err := r.next(&e, &below)
	return string(r.name), err
}

// checkSubtree holds the root node of an entry's content against the entry.
func (p *clearPart) checkSubtree(i int, child *Node) error {
	r := newEntryReader(p)
	var e Entry
	var below Totals
	n := r.children.left()
	for r.more() {
		at := n - r.children.left()
		if err := r.next(&e, &below); err != nil {
			return err
		}
		if at != i || e.Content.Kind < StreamTree {
			continue
		}
		want := e.Content.Kind.root()
		if child.Kind.leaf() != want || e.Content.Kind == DirTree && child.Totals != below {
			return fail(Mismatch, "%q is %v of %d entries, its node is a %v of %d",
				r.name, e.Content.Kind, below.Entries, child.Kind, child.Totals.Entries)
		}
		return nil
	}
	return fail(Mismatch, "child %d of a directory leaf is no entry's content", i)
}
