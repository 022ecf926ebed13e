package filter

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// segment is one name of a pattern. The common forms need no backtracking.
type segment struct {
	deep bool // **
	kind kind
	text string  // of literal, prefix, suffix
	glob []token // of general
}

type kind uint8

const (
	general kind = iota
	anyText      // *
	literal
	prefix // text*
	suffix // *text
)

// token is one step of a general glob.
type token struct {
	op  op
	ch  byte   // opByte
	set []span // opSet
	not bool   // opSet
}

type op uint8

const (
	opByte op = iota
	opOne     // ?
	opMany    // *
	opSet     // […]
)

type span struct{ lo, hi rune }

func compileSegment(s string) (segment, error) {
	if s == "**" {
		return segment{deep: true}, nil
	}
	tokens, err := tokenize(s)
	if err != nil {
		return segment{}, err
	}
	return simplify(tokens), nil
}

func tokenize(s string) ([]token, error) {
	var out []token
	for i := 0; i < len(s); {
		switch s[i] {
		case '\\':
			if i+1 == len(s) {
				return nil, errors.New(`ends in a single \`)
			}
			out = append(out, token{op: opByte, ch: s[i+1]})
			i += 2
		case '?':
			out = append(out, token{op: opOne})
			i++
		case '*':
			if n := len(out); n == 0 || out[n-1].op != opMany {
				out = append(out, token{op: opMany})
			}
			i++
		case '[':
			set, n, err := parseSet(s[i:])
			if err != nil {
				return nil, err
			}
			out = append(out, set)
			i += n
		default:
			out = append(out, token{op: opByte, ch: s[i]})
			i++
		}
	}
	return out, nil
}

// parseSet reads [abc], [a-z], [!a] or [^a]; a ] right at the start is a member.
func parseSet(s string) (token, int, error) {
	t, i := token{op: opSet}, 1
	if i < len(s) && (s[i] == '!' || s[i] == '^') {
		t.not = true
		i++
	}
	for first := true; ; first = false {
		if i >= len(s) {
			return t, 0, errors.New("[ without ]")
		}
		if s[i] == ']' && !first {
			return t, i + 1, nil
		}
		lo, n := setRune(s[i:])
		i += n
		hi := lo
		if i+1 < len(s) && s[i] == '-' && s[i+1] != ']' {
			hi, n = setRune(s[i+1:])
			i += 1 + n
		}
		if hi < lo {
			return t, 0, errors.New("a range in [ ] runs backwards")
		}
		t.set = append(t.set, span{lo, hi})
	}
}

// setRune reads one member; a byte that is not UTF-8 is a number of its own below zero.
func setRune(s string) (rune, int) {
	n := 0
	if s[0] == '\\' && len(s) > 1 {
		s, n = s[1:], 1
	}
	r, size := decode(s)
	return r, n + size
}

func decode(s string) (rune, int) {
	r, size := utf8.DecodeRuneInString(s)
	if r == utf8.RuneError && size == 1 {
		return -1 - rune(s[0]), 1
	}
	return r, size
}

// simplify finds the forms that need no general matching.
func simplify(tokens []token) segment {
	var text []byte
	for _, t := range tokens {
		if t.op == opByte {
			text = append(text, t.ch)
		}
	}
	n := len(tokens)
	switch {
	case len(text) == n:
		return segment{kind: literal, text: string(text)}
	case n == 1 && tokens[0].op == opMany:
		return segment{kind: anyText}
	case len(text) == n-1 && tokens[0].op == opMany:
		return segment{kind: suffix, text: string(text)}
	case len(text) == n-1 && tokens[n-1].op == opMany:
		return segment{kind: prefix, text: string(text)}
	}
	return segment{kind: general, glob: tokens}
}

func (s *segment) match(name string) bool {
	switch s.kind {
	case anyText:
		return true
	case literal:
		return name == s.text
	case prefix:
		return strings.HasPrefix(name, s.text)
	case suffix:
		return strings.HasSuffix(name, s.text)
	}
	return matchGlob(s.glob, name)
}

// matchGlob takes time in the product of both lengths at worst: only the last * is tried again.
func matchGlob(glob []token, name string) bool {
	var retryGlob []token
	retryName := ""
	for {
		switch {
		case len(glob) == 0 && name == "":
			return true
		case len(glob) > 0 && glob[0].op == opMany:
			glob = glob[1:]
			retryGlob, retryName = glob, name
			if len(glob) == 0 {
				return true
			}
			continue
		case len(glob) > 0 && name != "":
			if n := glob[0].match(name); n > 0 {
				glob, name = glob[1:], name[n:]
				continue
			}
		}
		if retryGlob == nil || retryName == "" {
			return false
		}
		_, n := decode(retryName)
		if retryGlob[0].op == opByte {
			n = 1 // a literal may start inside of what is not quite UTF-8
		}
		retryName = retryName[n:]
		glob, name = retryGlob, retryName
	}
}

// match returns how many bytes of name the token takes, 0 for none.
func (t *token) match(name string) int {
	if t.op == opByte {
		if name[0] == t.ch {
			return 1
		}
		return 0
	}
	r, n := decode(name)
	if t.op == opOne {
		return n
	}
	for _, s := range t.set {
		if s.lo <= r && r <= s.hi {
			if t.not {
				return 0
			}
			return n
		}
	}
	if t.not {
		return n
	}
	return 0
}
