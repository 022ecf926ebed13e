package libvirt

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// sftpServer starts OpenSSH's server on a pair of pipes.
func sftpServer(t *testing.T) *sftp {
	t.Helper()
	const program = "/usr/lib/openssh/sftp-server"
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("COFFER_REQUIRE_LAB") != "" {
			t.Fatalf("needs %s (openssh-sftp-server)", program)
		}
		t.Skipf("needs %s (openssh-sftp-server)", program)
	}
	cmd := exec.Command(program)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	s := newSFTP(out, in)
	t.Cleanup(func() {
		_ = in.Close()
		<-s.gone
		_ = cmd.Wait()
	})
	if err := s.hello(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSFTP(t *testing.T) {
	s, dir := sftpServer(t), t.TempDir()
	data := make([]byte, 3<<20+17)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, data, 0o640); err != nil {
		t.Fatal(err)
	}
	old := time.Unix(1700000000, 0)
	if err := os.Chtimes(name, old, old); err != nil {
		t.Fatal(err)
	}
	f, err := s.Open(t.Context(), name)
	if err != nil || f.Size() != int64(len(data)) {
		t.Fatalf("%v, %d bytes", err, f.Size())
	}
	for _, r := range [][2]int{{0, len(data)}, {1, 100}, {readPiece - 1, 2}, {readPiece, readPiece * (readAhead + 3)}, {len(data) - 5, 5}, {7, 0}} {
		p := make([]byte, r[1])
		if n, err := f.ReadAt(p, int64(r[0])); n != r[1] || err != nil || !bytes.Equal(p, data[r[0]:r[0]+r[1]]) {
			t.Errorf("read %v: %d, %v", r, n, err)
		}
	}
	p := make([]byte, 100)
	if n, err := f.ReadAt(p, int64(len(data))-50); n != 50 || err != io.EOF || !bytes.Equal(p[:50], data[len(data)-50:]) {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if n, err := f.ReadAt(p, int64(len(data))+50); n != 0 || err != io.EOF {
		t.Errorf("read behind the end: %d, %v", n, err)
	}
	if size, err := f.(*remoteFile).measure(); err != nil || size != (int64(len(data))+511)/512*512 {
		t.Errorf("measured %d bytes, %v", size, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	info, err := s.Stat(t.Context(), name)
	if err != nil || info.Size() != int64(len(data)) || info.Mode() != 0o640 || !info.ModTime().Equal(old) || info.Name() != "file" || info.IsDir() {
		t.Errorf("%+v, %v", info, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	list, err := s.ReadDir(t.Context(), dir)
	if err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	for _, gone := range []string{name, filepath.Join(dir, "sub")} {
		if err := s.Remove(t.Context(), gone); err != nil {
			t.Error(err)
		}
		if _, err := s.Stat(t.Context(), gone); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", gone, err)
		}
	}
	if _, err := s.Open(t.Context(), dir); err == nil {
		t.Error("a directory was opened as a file")
	}
	if err := s.Remove(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// serve plays a server that answers every request by what reply makes of its id.
func serve(t testing.TB, reply func(kind byte, id []byte) []byte) *sftp {
	t.Helper()
	here, there := net.Pipe()
	s := newSFTP(here, here)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer there.Close()
		for {
			kind, body, err := readPacket(there)
			if err != nil {
				return
			}
			out := []byte{0, 0, 0, 5, fxpVersion, 0, 0, 0, sftpVersion}
			if kind != fxpInit {
				out = reply(kind, body[:4])
			}
			if _, err := there.Write(out); err != nil || len(out) == 0 {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = here.Close()
		<-done
		<-s.gone
	})
	if err := s.hello(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSFTPServerThatLies(t *testing.T) {
	packet := func(kind byte, id []byte, rest ...byte) []byte {
		n := 1 + len(id) + len(rest)
		return append(append([]byte{0, 0, byte(n >> 8), byte(n), kind}, id...), rest...)
	}
	for name, reply := range map[string]func(kind byte, id []byte) []byte{
		"hangs up":           func(byte, []byte) []byte { return nil },
		"a packet too long":  func(byte, []byte) []byte { return []byte{0xff, 0, 0, 0, fxpData} },
		"an empty packet":    func(byte, []byte) []byte { return []byte{0, 0, 0, 0, 0} },
		"without an id":      func(byte, []byte) []byte { return []byte{0, 0, 0, 1, fxpData} },
		"another kind":       func(_ byte, id []byte) []byte { return packet(fxpData, id) },
		"half a status":      func(_ byte, id []byte) []byte { return packet(fxpStatus, id, 0, 0) },
		"names without end":  func(kind byte, id []byte) []byte { return answerDir(packet, kind, id, 0, 0, 0, 0) },
		"names that are not": func(kind byte, id []byte) []byte { return answerDir(packet, kind, id, 0, 0, 0, 9) },
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, reply)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := s.ReadDir(ctx, "/x"); err == nil {
				t.Error("it was believed")
			}
			if ctx.Err() != nil {
				t.Error("it was waited for")
			}
		})
	}
}

func answerDir(packet func(byte, []byte, ...byte) []byte, kind byte, id []byte, names ...byte) []byte {
	if kind == fxpOpendir {
		return packet(fxpHandle, id, 0, 0, 0, 1, 'h')
	}
	return packet(fxpName, id, names...)
}

// FuzzSFTPAnswers gives a client any answers: it returns, and takes no more memory than a packet has.
func FuzzSFTPAnswers(f *testing.F) {
	f.Add(byte(fxpStatus), []byte{0, 0, 0, 2, 0, 0, 0, 0})
	f.Add(byte(fxpName), []byte{0, 0, 0, 1, 0, 0, 0, 1, 'a', 0, 0, 0, 0, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Add(byte(fxpAttrs), []byte{0, 0, 0, 0xf, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x81, 0xa4, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(byte(fxpHandle), []byte{0, 0, 0, 1, 'h'})
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		for _, want := range []byte{fxpStatus, fxpHandle, fxpData, fxpName, fxpAttrs} {
			b, err := checkAnswer(answer{kind, body}, want)
			if err != nil {
				continue
			}
			_, _ = appendNames(nil, b)
			c := cursor{b: b}
			_ = c.attrs("x")
			c = cursor{b: b}
			_ = c.str()
		}
	})
}
