// Package qemuimg converts disk images by qemu-img, as a subprocess. The format of every image is said, never guessed: a guest
// could write the head of another format into a raw disk.
//
// It knows neither what the images are for nor where they come from.
package qemuimg

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os/exec"
	"strconv"
	"strings"

	"coffer/images"
)

// ErrMissing is wrapped where there is no qemu-img on the machine that is to convert.
var ErrMissing = errors.New("qemu-img is missing on the machine that is to convert: install it (Debian: qemu-utils; RHEL, SUSE: qemu-img)")

// notFound is the exit status by which a shell says that there is no such program.
const notFound = 127

// Image is an image's place and format.
type Image struct {
	Path   string // a file, a block device, or an NBD export as NBD returns it
	Format images.Format
}

// NBD is an export of a server that listens on a unix socket, as a raw image.
func NBD(socket, export string) Image {
	return Image{"nbd+unix:///" + url.PathEscape(export) + "?socket=" + url.QueryEscape(socket), images.Raw}
}

// Options of Convert.
type Options struct {
	// Existing writes into an image that is there, instead of making one.
	Existing bool
	// Compress makes small clusters, where the format knows compression.
	Compress bool
	// Progress is told the share that is done, from 0 to 1, some times.
	Progress func(float64)
	// Command makes the subprocess, which may run on another host: the images' paths are those there. nil: exec.CommandContext.
	Command func(ctx context.Context, name string, args ...string) *exec.Cmd
}

// formats are those that Convert takes.
var formats = map[images.Format]bool{images.Raw: true, images.Qcow2: true, images.VMDK: true, images.VHD: true, images.VHDX: true}

// Convert copies an image into another one, whose format may be another; holes stay holes. When ctx ends, so does the program,
// and the target is worth nothing.
func Convert(ctx context.Context, from, to Image, o Options) error {
	for _, i := range []Image{from, to} {
		if !formats[i.Format] {
			return fmt.Errorf("convert %s: images of format %q are not known; known are raw, qcow2, vmdk, vpc (VHD) and vhdx", i.Path, i.Format)
		}
	}
	args := []string{"convert", "-p", "-f", string(from.Format), "-O", string(to.Format)}
	if o.Existing {
		args = append(args, "-n")
	}
	if o.Compress {
		args = append(args, "-c")
	}
	// A path of a file must not be taken for an option, nor for a protocol.
	args = append(args, "--", place(from.Path), place(to.Path))
	command := o.Command
	if command == nil {
		command = exec.CommandContext
	}
	cmd := command(ctx, "qemu-img", args...)
	var faults bytes.Buffer
	cmd.Stderr = &faults
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("convert %s: %w", from.Path, ErrMissing)
		}
		return fmt.Errorf("convert %s: %w", from.Path, err)
	}
	follow(out, o.Progress)
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if cmd.ProcessState.ExitCode() == notFound {
			err = ErrMissing
		}
		if said := strings.TrimSpace(faults.String()); said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
		return fmt.Errorf("convert %s to %s: %w", from.Path, to.Path, err)
	}
	return nil
}

func place(path string) string {
	if strings.HasPrefix(path, "nbd+unix:///") || strings.HasPrefix(path, "/") {
		return path
	}
	return "file:" + path
}

// follow reads "    (12.34/100%)" until the program ends.
func follow(out io.Reader, progress func(float64)) {
	r := bufio.NewReader(out)
	for {
		text, err := r.ReadString(')')
		if progress != nil {
			if share, ok := parseProgress(text); ok {
				progress(share)
			}
		}
		if err != nil {
			return
		}
	}
}

func parseProgress(text string) (float64, bool) {
	_, text, ok := strings.Cut(text, "(")
	text, _, of := strings.Cut(text, "/100%")
	share, err := strconv.ParseFloat(text, 64)
	return share / 100, ok && of && err == nil && share >= 0 && share <= 100
}
