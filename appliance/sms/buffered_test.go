package sms

import (
	"net"
	"testing"
)

// TestWriteThrough: what a protocol writes that never flushes arrives.
func TestWriteThrough(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	b := Buffered(here)
	if _, err := b.Write([]byte("early ")); err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() {
		var text string
		for p := make([]byte, 100); len(text) < len("early late"); {
			n, err := there.Read(p)
			if err != nil {
				break
			}
			text += string(p[:n])
		}
		got <- text
	}()
	if err := WriteThrough(b); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	if text := <-got; text != "early late" {
		t.Fatalf("got %q", text)
	}
	if err := WriteThrough(here); err != nil {
		t.Fatalf("of another connection: %v", err)
	}
}
