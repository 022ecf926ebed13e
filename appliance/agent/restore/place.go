package restore

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"coffer/appliance/agent/fsmeta"
	"coffer/appliance/sms"
)

// maxName is the longest name that file systems take, in bytes.
const maxName = 255

// errKept says that a file exists and is kept.
var errKept = errors.New("the file exists and is kept")

// slot is where a file goes: a name that is free, and the name that it gets in the end.
type slot struct {
	at    *fsmeta.Dir
	name  string
	final string // "" when name is it
}

// place calls make with a name that should be free until it is: the file's own, a new version's, or a temporary one that
// done renames. It returns errKept where an existing file stays.
func (j *job) place(at *fsmeta.Dir, name string, make func(name string) error) (slot, error) {
	err := make(name)
	if err == nil || !errors.Is(err, fs.ErrExist) {
		return slot{at: at, name: name}, explainDir(at, err)
	}
	switch j.order.Existing {
	case sms.ExistingOverwrite:
		return j.placeOver(at, name, make)
	case sms.ExistingNewVersion:
		for try := 1; ; try++ {
			s := slot{at: at, name: versionName(name, try)}
			if err := make(s.name); !errors.Is(err, fs.ErrExist) {
				return s, err
			}
		}
	}
	return slot{}, errKept
}

// explainDir adds what the directory's flags have to do with an error.
func explainDir(at *fsmeta.Dir, err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if flags, _ := at.Flags(); flags&fsmeta.FlagImmutable != 0 {
		return fmt.Errorf("%w; the directory is immutable, take the flag away with chattr -i first", err)
	}
	return err
}

// placeOver makes the file beside the one that it will replace. A directory is replaced only when it is empty.
func (j *job) placeOver(at *fsmeta.Dir, name string, make func(name string) error) (slot, error) {
	var st fsmeta.Stat
	if at.Lstat(name, &st) == nil && st.IsDir() {
		if err := at.RemoveDir(name); err != nil {
			return slot{}, fmt.Errorf("a directory has its name and is not empty, so it stays: %w", err)
		}
		return slot{at: at, name: name}, make(name)
	}
	for {
		s := slot{at: at, name: ".coffer-" + rand.Text(), final: name}
		if err := make(s.name); !errors.Is(err, fs.ErrExist) {
			return s, err
		}
	}
}

// done gives the file its name.
func (s *slot) done() error {
	if s.final == "" {
		return nil
	}
	if err := s.at.Rename(s.name, s.final); err != nil {
		err = explain(s.at, s.final, fmt.Errorf("replace the existing file: %w", err))
		_ = s.at.Remove(s.name)
		return err
	}
	s.name, s.final = s.final, ""
	return nil
}

// undo removes a file that was not completed.
func (s *slot) undo() {
	if s.at != nil {
		_ = s.at.Remove(s.name)
	}
}

// freeName returns the name of a new version that nothing has.
func (j *job) freeName(at *fsmeta.Dir, name string) string {
	for try := 1; ; try++ {
		var st fsmeta.Stat
		if free := versionName(name, try); fsmeta.Gone(at.Lstat(free, &st)) {
			return free
		}
	}
}

// versionName is the name of the n-th new version: "report.txt" becomes "report.restored.txt", then
// "report.restored-2.txt".
func versionName(name string, n int) string {
	mark := ".restored"
	if n > 1 {
		mark += "-" + strconv.Itoa(n)
	}
	stem, ext := name, ""
	if dot := strings.LastIndexByte(name, '.'); dot > 0 && len(name)-dot <= 16 {
		stem, ext = name[:dot], name[dot:]
	}
	if over := len(stem) + len(mark) + len(ext) - maxName; over > 0 {
		stem = stem[:max(0, len(stem)-over)]
	}
	return stem + mark + ext
}
