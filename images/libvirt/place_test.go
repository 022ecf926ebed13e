package libvirt

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// hostFiles are both kinds of a host's files.
type hostFiles interface {
	Files
	Placer
}

// eachHost runs a test on files of this machine, and on the same through OpenSSH's SFTP server.
func eachHost(t *testing.T, test func(t *testing.T, files hostFiles, dir string)) {
	t.Run("local", func(t *testing.T) { test(t, Local{}, t.TempDir()) })
	t.Run("sftp", func(t *testing.T) { test(t, sftpServer(t), t.TempDir()) })
}

func TestPlacer(t *testing.T) {
	eachHost(t, func(t *testing.T, files hostFiles, dir string) {
		ctx, name, me := t.Context(), filepath.Join(dir, "file"), &User{os.Getuid(), os.Getgid()}
		data := bytes.Repeat([]byte("0123456789"), 10_000)
		for _, content := range [][]byte{data, data[:7], nil} {
			if err := files.WriteFile(ctx, name, content, 0o640, me); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(name)
			info, serr := os.Stat(name)
			if err != nil || serr != nil || !bytes.Equal(got, content) || info.Mode() != 0o640 {
				t.Fatalf("%d bytes, want %d; %v, %v, %v", len(got), len(content), info.Mode(), err, serr)
			}
		}
		sub := filepath.Join(dir, "sub")
		for _, mode := range []fs.FileMode{0o700, 0o711} { // the second time it is there
			if err := files.MakeDir(ctx, sub, mode, nil); err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(sub); err != nil || info.Mode() != fs.ModeDir|mode {
				t.Errorf("%v, %v", info, err)
			}
		}
		if err := files.MakeDir(ctx, name, 0o700, nil); err == nil {
			t.Error("a file was taken for a directory")
		}
		if err := files.Rename(ctx, name, sub); err == nil {
			t.Error("a rename replaced a directory")
		}
		if err := files.WriteFile(ctx, filepath.Join(sub, "below"), data, 0o600, nil); err != nil {
			t.Fatal(err)
		}
		if err := files.Rename(ctx, sub, sub+"2"); err != nil {
			t.Fatal(err)
		}
		if err := removeDir(ctx, files, sub+"2", 1); err != nil {
			t.Fatal(err)
		}
		if err := removeDir(ctx, files, sub+"2", 1); err != nil {
			t.Fatalf("one that is gone: %v", err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("%v, %v", left, err)
		}
		if err := files.WriteFile(ctx, filepath.Join(dir, "none", "x"), nil, 0o600, nil); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v", err)
		}
	})
}

// The state of a TPM is placed; one that was cut off goes, and what was set aside for it comes back.
func TestTPMs(t *testing.T) {
	eachHost(t, func(t *testing.T, files hostFiles, dir string) {
		ctx := t.Context()
		tpms := TPMs{files, files, filepath.Join(dir, "swtpm")}
		saved := []TPMFile{{"tpm2/tpm2-00.permall", []byte("saved")}, {"note", nil}}
		holds := func(uuid, want string) {
			t.Helper()
			b, err := os.ReadFile(filepath.Join(tpms.dir, uuid, "tpm2/tpm2-00.permall"))
			if string(b) != want || want == "" != errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s has %q, want %q; %v", uuid, b, want, err)
			}
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(tpms.Sweep(ctx, "one")) // there is not even the directory
		must(tpms.SetAside(ctx, "u1", "one"))
		must(tpms.Place(ctx, "u1", "one", saved))
		must(tpms.Settle(ctx, "u1", "one"))
		must(tpms.Settle(ctx, "u1", "one"))
		must(tpms.Sweep(ctx, "one"))
		holds("u1", "saved")
		if err := tpms.Place(ctx, "u1", "two", saved); KindOf(err) != KindBusy {
			t.Errorf("over another one's: %v", err)
		}
		holds("u1", "saved")

		must(tpms.SetAside(ctx, "u1", "two"))
		must(tpms.Place(ctx, "u1", "two", []TPMFile{{"tpm2/tpm2-00.permall", []byte("other")}}))
		must(tpms.Sweep(ctx, "three"))
		holds("u1", "other")
		must(tpms.Sweep(ctx, "two"))
		holds("u1", "saved")

		for _, bad := range []string{"", "/x", "../x", "a/../../x", "a//b", "a/b/c/d", "x/", ".", "..", "a\nb"} {
			if err := tpms.Place(ctx, "u2", "one", []TPMFile{saved[0], {bad, nil}}); KindOf(err) != KindInvalid {
				t.Errorf("%q: %v", bad, err)
			}
		}
		// What fails half way leaves nothing.
		if err := tpms.Place(ctx, "u3", "one", []TPMFile{{"a", nil}, {"a/b", nil}}); err == nil {
			t.Error("a file was taken for a directory")
		}
		list, err := os.ReadDir(tpms.dir)
		must(err)
		var names []string
		for _, e := range list {
			names = append(names, e.Name())
		}
		if !slices.Equal(names, []string{"u1"}) {
			t.Errorf("left are %v", names)
		}
	})
}

func TestHasTPM(t *testing.T) {
	for xml, want := range map[string]bool{
		"<domain/>": false,
		"<domain><devices><tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm></devices></domain>": false,
		"<domain><devices><tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>":                         true,
	} {
		if got, err := HasTPM(xml); got != want || err != nil {
			t.Errorf("%s: %v, %v", xml, got, err)
		}
	}
	if _, err := HasTPM("<domain"); KindOf(err) != KindInvalid {
		t.Error(err)
	}
}
