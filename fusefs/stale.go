//go:build linux

package fusefs

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// aliveWait is how long a mount may take to show that somebody serves it.
const aliveWait = 3 * time.Second

// ErrMounted is returned where a living mount is in the way.
var ErrMounted = errors.New("a file system is mounted there already, and in service")

// ClearStale takes mounts of ours off dir that nobody serves any more, as a killed process leaves them; there may be
// several on top of each other. A directory without one is left as it is; ErrMounted if one is in service. dir need not
// exist.
func ClearStale(ctx context.Context, dir string) error {
	dir, err := resolve(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for {
		ours, err := mountedHere(dir)
		if err != nil || !ours {
			return err
		}
		if alive, err := isAlive(ctx, dir); err != nil || alive {
			return fmt.Errorf("%s: %w", dir, cmp.Or(err, ErrMounted))
		}
		if err := detach(dir); err != nil {
			return fmt.Errorf("clear the stale mount on %s: %w", dir, err)
		}
	}
}

// resolve returns the path of dir as the kernel's table has it, without touching dir itself.
func resolve(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(dir)), nil
}

// mountedHere reports whether the topmost mount on dir is one of ours. It reads the kernel's table, because touching a
// dead mount may hang.
func mountedHere(dir string) (bool, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	defer f.Close()
	ours, err := topIsOurs(f, dir)
	if err != nil {
		return false, fmt.Errorf("read /proc/self/mountinfo: %w", err)
	}
	return ours, nil
}

// topIsOurs reads a mountinfo table (proc(5)): later lines of the same mount point lie on top of earlier ones.
func topIsOurs(r io.Reader, dir string) (ours bool, err error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		before, after, ok := strings.Cut(sc.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || unescape(fields[4]) != dir {
			continue
		}
		kind, _, _ := strings.Cut(after, " ")
		ours = kind == fsType
	}
	return ours, sc.Err()
}

// unescape undoes mountinfo's \040 for bytes that would break its lines.
func unescape(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		if s[0] == '\\' && len(s) >= 4 {
			if c, err := strconv.ParseUint(s[1:4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				s = s[4:]
				continue
			}
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
	return b.String()
}

// isAlive asks the server of a mount for its root's attributes. A dead one answers ENOTCONN; one whose server was killed
// while a child of it holds the connection answers nothing, and is as dead.
func isAlive(ctx context.Context, dir string) (bool, error) {
	answer := make(chan error, 1)
	go func() { // ends at the latest when detach cuts the connection
		var st unix.Statx_t
		answer <- unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
	}()
	select {
	case err := <-answer:
		return err == nil, nil
	case <-time.After(aliveWait):
		return false, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

func mustBeEmpty(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return errors.New("directory is not empty")
	}
	return nil
}
