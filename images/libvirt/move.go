package libvirt

import (
	"context"
	"fmt"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"
)

// BlockProgress is how far the copying of a disk is, in bytes. Total grows while the machine writes.
type BlockProgress struct{ Done, Total uint64 }

// pollInterval is how often a block job is asked for.
const pollInterval = 500 * time.Millisecond

// CopyDisk copies a disk of a running machine to an image, which follows the disk from then on, and returns when it is
// level. Pivot then makes the machine use it; AbortCopy gives it up.
func (c *Conn) CopyDisk(ctx context.Context, d *Domain, target string, to FileDisk, progress func(BlockProgress)) error {
	op := fmt.Sprintf("copy disk %s of %s to %s", target, d.Name, to.Path)
	x := libvirtxml.DomainDisk{Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: to.Format},
		Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: to.Path}}}
	if to.Block {
		x.Source = &libvirtxml.DomainDiskSource{Block: &libvirtxml.DomainDiskSourceBlock{Dev: to.Path}}
	}
	text, err := x.Marshal()
	if err != nil {
		return failf(KindInvalid, op, "%w", err)
	}
	// The image is there; a job of a transient machine must be transient, too.
	flags := golibvirt.DomainBlockCopyReuseExt | golibvirt.DomainBlockCopyTransientJob
	if err := c.await(ctx, func() error { return c.raw.DomainBlockCopy(d.ref, target, text, nil, flags) }); err != nil {
		return failure(op, err)
	}
	for {
		p, found, err := c.blockJob(ctx, d, target)
		switch {
		case err != nil:
			return failure(op, err)
		case !found:
			return failf(KindOther, op, "the job ended before the copy was whole: the disk, or the room for the copy, failed")
		}
		progress(p)
		if p.Total > 0 && p.Done == p.Total {
			return nil
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return failure(op, context.Cause(ctx))
		}
	}
}

func (c *Conn) blockJob(ctx context.Context, d *Domain, target string) (p BlockProgress, found bool, err error) {
	err = c.await(ctx, func() error {
		n, _, _, cur, end, err := c.raw.DomainGetBlockJobInfo(d.ref, target, 0)
		p, found = BlockProgress{cur, end}, n > 0
		return err
	})
	return p, found, err
}

// pivotTries: right after a copy says that it is level, QEMU may still not be ready to change over.
const pivotTries = 20

// Pivot makes a machine use the copy of a disk that is level.
func (c *Conn) Pivot(ctx context.Context, d *Domain, target string) error {
	var err error
	for range pivotTries {
		if err = c.await(ctx, func() error { return c.raw.DomainBlockJobAbort(d.ref, target, golibvirt.DomainBlockJobAbortPivot) }); err == nil {
			return nil
		}
		if codeOf(err) != golibvirt.ErrBlockCopyActive {
			break
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return failure(fmt.Sprintf("change disk %s of %s over to its copy", target, d.Name), err)
}

// AbortCopy ends the copying of a disk: the machine goes on with the one that it has. No job, or no
// machine, is no error.
func (c *Conn) AbortCopy(ctx context.Context, d *Domain, target string) error {
	_, found, err := c.blockJob(ctx, d, target)
	if n := codeOf(err); err == nil && !found || n == golibvirt.ErrNoDomain || n == golibvirt.ErrOperationInvalid { // it stopped
		return nil
	}
	return failure(fmt.Sprintf("end the copying of disk %s of %s", target, d.Name), c.await(ctx, func() error {
		return c.raw.DomainBlockJobAbort(d.ref, target, 0)
	}))
}
