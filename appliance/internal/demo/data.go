package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// copyTree copies the tree below from, in the order of its names, until limit
// bytes of file content are reached. Files that cannot be read are left out.
func copyTree(ctx context.Context, from, to string, limit int64) (int64, error) {
	var list strings.Builder
	var size int64
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(from, path)
		if err != nil || relErr != nil {
			if d != nil && d.IsDir() {
				return filepath.SkipDir
			}
			return relErr
		}
		if d.Type().IsRegular() {
			info, err := d.Info()
			if err != nil || size+info.Size() > limit {
				return nil
			}
			size += info.Size()
		}
		list.WriteString("./" + rel + "\x00")
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("list %s: %w", from, err)
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return 0, err
	}
	const script = `set -o pipefail; tar -C "$1" -c --format=posix --xattrs --no-recursion --ignore-failed-read --null -T - | tar -C "$2" -x -p --xattrs`
	cmd := exec.CommandContext(ctx, "bash", "-c", script, "copy", from, to)
	cmd.Stdin = strings.NewReader(list.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("copy %s: %w: %s", from, err, bytes.TrimSpace(out))
	}
	return size, nil
}

// change does to a tree what a day of work does: every hundredth file gets a
// new line, every two hundredth goes, a few come, one directory gets a new name.
func change(root string) (string, error) {
	var files []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	changed, removed := 0, 0
	for i, path := range files {
		switch {
		case i%200 == 100:
			err = os.Remove(path)
			removed++
		case i%100 == 0:
			err = appendLine(path)
			changed++
		}
		if err != nil {
			return "", err
		}
	}
	if err := addFiles(filepath.Join(root, "new")); err != nil {
		return "", err
	}
	renamed, err := renameFirstDir(root)
	return fmt.Sprintf("%d files changed, %d removed, 20 new, %s", changed, removed, renamed), err
}

func appendLine(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("one more line\n")
	return err
}

func addFiles(dir string) error {
	if err := os.Mkdir(dir, 0o750); err != nil {
		return err
	}
	for i := range 20 {
		data := bytes.Repeat(fmt.Appendf(nil, "file %d, new since the first backup\n", i), 1000*(i+1))
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%02d", i)), data, 0o640); err != nil {
			return err
		}
	}
	return nil
}

func renameFirstDir(root string) (string, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if e.IsDir() && e.Name() != "new" {
			return fmt.Sprintf("%s renamed to %[1]s.moved", e.Name()),
				os.Rename(filepath.Join(root, e.Name()), filepath.Join(root, e.Name()+".moved"))
		}
	}
	return "no directory to rename", nil
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
