package catalog

import (
	"database/sql"
	"encoding/json"
	"strings"
	"time"
)

// micros is how a time is kept: microseconds since 1970, which reach 290,000 years either way.
func micros(t time.Time) int64 { return t.UnixMicro() }

// microsOrNull keeps the zero time as NULL.
func microsOrNull(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: !t.IsZero()}
}

func fromMicros(n int64) time.Time { return time.UnixMicro(n).UTC() }

// when scans a time that may be NULL.
type when struct{ t *time.Time }

// Scan implements sql.Scanner.
func (w when) Scan(v any) error {
	var n sql.NullInt64
	if err := n.Scan(v); err != nil {
		return err
	}
	*w.t = time.Time{}
	if n.Valid {
		*w.t = fromMicros(n.Int64)
	}
	return nil
}

// asJSON scans a column that holds JSON.
type asJSON struct{ v any }

// Scan implements sql.Scanner.
func (j asJSON) Scan(v any) error {
	var s sql.NullString
	if err := s.Scan(v); err != nil {
		return err
	}
	if s.String == "" {
		return nil
	}
	return json.Unmarshal([]byte(s.String), j.v)
}

// toJSON is the text of a value that always has one.
func toJSON(v any) (string, error) {
	raw, err := json.Marshal(v)
	return string(raw), err
}

// inList makes "(?, ?, …)" and the arguments.
func inList(values []string) (string, []any) {
	args := make([]any, len(values))
	for i, v := range values {
		args[i] = v
	}
	return "(" + strings.TrimSuffix(strings.Repeat("?, ", len(values)), ", ") + ")", args
}

// where collects the conditions of a query.
type where struct {
	conds []string
	args  []any
}

func (w *where) add(cond string, args ...any) {
	w.conds = append(w.conds, cond)
	w.args = append(w.args, args...)
}

// in limits a column to some values; an empty list selects nothing.
func (w *where) in(column string, values []string) {
	if len(values) == 0 {
		w.add("0")
		return
	}
	marks, args := inList(values)
	w.add(column+" IN "+marks, args...)
}

// equal limits a column unless the value is empty.
func (w *where) equal(column, value string) {
	if value != "" {
		w.add(column+" = ?", value)
	}
}

func (w *where) String() string {
	if len(w.conds) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.conds, " AND ")
}
