package nbd_test

import (
	"encoding/hex"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"coffer/nbd"
	"coffer/nbd/nbdtest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// Whole conversations, byte by byte: what a client says, and what the server answers to it.
func TestGolden(t *testing.T) {
	read := func(off uint64, n uint32) []byte { return pack(reqMagic, uint16(0), cmdRead, uint64(0xa1), off, n) }
	option := func(o uint32, data []byte) []byte { return pack(optMagic, o, uint32(len(data)), data) }
	disc := pack(reqMagic, uint16(0), cmdDisc, make([]byte, 20))
	for name, says := range map[string][]string{
		"exportname": {hex.EncodeToString(pack(uint32(0))), hex.EncodeToString(option(optExport, []byte("disk"))),
			hex.EncodeToString(read(16, 16)), hex.EncodeToString(disc)},
		"structured": {hex.EncodeToString(pack(uint32(3))), hex.EncodeToString(option(optList, nil)),
			hex.EncodeToString(option(optStruct, nil)), hex.EncodeToString(option(optSetMeta, metaOf("disk", "base:allocation"))),
			hex.EncodeToString(option(optInfo, infoOf("none"))), hex.EncodeToString(option(optGo, infoOf("disk", 1, 2, 3))),
			hex.EncodeToString(read(16, 16)), hex.EncodeToString(read(1<<20, 1)), hex.EncodeToString(read(0, 1<<17)),
			hex.EncodeToString(pack(reqMagic, uint16(0), cmdStatus, uint64(0xa2), uint64(0), uint32(1<<18))),
			hex.EncodeToString(pack(reqMagic, flagFUA, cmdWrite, uint64(0xa3), uint64(64), uint32(4), "text")),
			hex.EncodeToString(read(60, 12)), hex.EncodeToString(disc)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := nbdtest.NewMem(1 << 18)
				if err := d.WriteAt(t.Context(), []byte("0123456789abcdefghijklmnopqrstuvwxyz"), 0); err != nil {
					t.Fatal(err)
				}
				r, _ := piped(t, nbdtest.Of("disk", d), nbd.ServerOptions{MaxInFlight: 1})
				got := converse(t, r.c, says)
				path := filepath.Join("testdata", name+".hex")
				if *update {
					if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if got != string(want) {
					t.Errorf("%s:\n%s", path, got)
				}
			})
		})
	}
}

// converse sends each line when the server has nothing more to say to the one before. It runs in a bubble, where that
// can be known.
func converse(t *testing.T, c net.Conn, says []string) string {
	t.Helper()
	var b strings.Builder
	var mu sync.Mutex
	var said []byte
	go func() {
		p := make([]byte, 1<<18)
		for {
			n, err := c.Read(p)
			mu.Lock()
			said = append(said, p[:n]...)
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	listen := func() {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(said) > 0 {
			fmt.Fprintf(&b, "S %s\n", cut(said))
		}
		said = nil
	}
	listen()
	for _, s := range says {
		fmt.Fprintf(&b, "C %s\n", s)
		p, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
		listen()
	}
	return b.String()
}

func cut(p []byte) string {
	if len(p) > 512 {
		return fmt.Sprintf("%x… (%d bytes)", p[:512], len(p))
	}
	return hex.EncodeToString(p)
}
