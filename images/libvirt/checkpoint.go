package libvirt

import (
	"context"
	"errors"
	"strconv"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"
)

// Checkpoint is a point in the life of a domain since which libvirt tracks what changes.
type Checkpoint struct {
	Name string
	// Disks are the targets whose bitmaps it has.
	Disks []string

	ref golibvirt.DomainCheckpoint
}

// Has tells whether the checkpoint tracks a disk.
func (c *Checkpoint) Has(target string) bool {
	for _, t := range c.Disks {
		if t == target {
			return true
		}
	}
	return false
}

// checkpoints lists the names of a domain's checkpoints.
func (c *Conn) checkpoints(ctx context.Context, d *Domain) ([]golibvirt.DomainCheckpoint, error) {
	var refs []golibvirt.DomainCheckpoint
	err := c.call(ctx, "list checkpoints of "+strconv.Quote(d.Name), func(lv rpc) (err error) {
		// Parents before their children, so that the oldest is deleted first.
		refs, _, err = lv.DomainListAllCheckpoints(d.ref, 1, uint32(golibvirt.DomainCheckpointListTopological))
		return err
	})
	return refs, err
}

// Checkpoint finds a checkpoint by name. KindLost where it is not there.
func (c *Conn) Checkpoint(ctx context.Context, d *Domain, name string) (*Checkpoint, error) {
	refs, err := c.checkpoints(ctx, d)
	if err != nil {
		return nil, err
	}
	for _, ref := range refs {
		if ref.Name == name {
			return c.readCheckpoint(ctx, ref)
		}
	}
	return nil, failf(KindLost, "checkpoint "+name, "domain %s has none of this name", d.Name)
}

func (c *Conn) readCheckpoint(ctx context.Context, ref golibvirt.DomainCheckpoint) (*Checkpoint, error) {
	op := "read checkpoint " + ref.Name
	var text string
	err := c.call(ctx, op, func(lv rpc) (err error) {
		text, err = lv.DomainCheckpointGetXMLDesc(ref, uint32(golibvirt.DomainCheckpointXMLNoDomain))
		return err
	})
	if err != nil {
		return nil, err
	}
	var x libvirtxml.DomainCheckpoint
	if err := x.Unmarshal(text); err != nil {
		return nil, failure(op, err)
	}
	out := &Checkpoint{Name: ref.Name, ref: ref}
	if x.Disks != nil {
		for _, disk := range x.Disks.Disks {
			if disk.Checkpoint == "bitmap" {
				out.Disks = append(out.Disks, disk.Name)
			}
		}
	}
	return out, nil
}

// DropCheckpoints deletes the checkpoints of the task but for those to keep, and returns the names of the deleted ones. Of a
// domain that is off none can be deleted: they wait.
func (c *Conn) DropCheckpoints(ctx context.Context, d *Domain, t Tag, keep ...string) ([]string, error) {
	if !d.Active() {
		return nil, nil
	}
	refs, err := c.checkpoints(ctx, d)
	if err != nil {
		return nil, err
	}
	kept := map[string]bool{}
	for _, name := range keep {
		kept[name] = true
	}
	var dropped []string
	var faults []error
	for _, ref := range refs {
		if !strings.HasPrefix(ref.Name, t.ours()) || kept[ref.Name] {
			continue
		}
		if err := c.dropCheckpoint(ctx, ref); err != nil {
			faults = append(faults, err)
			continue
		}
		dropped = append(dropped, ref.Name)
	}
	return dropped, errors.Join(faults...)
}

// dropCheckpoint deletes a checkpoint with its bitmaps. One whose bitmaps are lost goes from libvirt's books alone.
func (c *Conn) dropCheckpoint(ctx context.Context, ref golibvirt.DomainCheckpoint) error {
	err := c.call(ctx, "delete checkpoint "+ref.Name, func(lv rpc) error { return lv.DomainCheckpointDelete(ref, 0) })
	if err == nil || codeOf(err) == golibvirt.ErrNoDomainCheckpoint {
		return nil
	}
	switch code := codeOf(err); {
	case code == 0, code == golibvirt.ErrOperationTimeout, code == golibvirt.ErrOperationInvalid, ctx.Err() != nil:
		return err // it may work another time: forgetting it now would leave its bitmaps for ever
	}
	merr := c.call(ctx, "forget checkpoint "+ref.Name, func(lv rpc) error {
		return lv.DomainCheckpointDelete(ref, golibvirt.DomainCheckpointDeleteMetadataOnly)
	})
	if merr != nil && codeOf(merr) != golibvirt.ErrNoDomainCheckpoint {
		return errors.Join(err, merr)
	}
	return nil
}

// checkpointXML describes the checkpoint of a run. Disks that are not tracked must be named, too: libvirt takes all else.
func checkpointXML(d *Domain, t Tag, tracked map[string]bool) (string, error) {
	x := libvirtxml.DomainCheckpoint{Name: t.Checkpoint(), Description: "made by Coffer for its next backup", Disks: &libvirtxml.DomainCheckpointDisks{}}
	for _, disk := range d.Disks {
		mode := "no"
		if tracked[disk.Target] {
			mode = "bitmap"
		}
		x.Disks.Disks = append(x.Disks.Disks, libvirtxml.DomainCheckpointDisk{Name: disk.Target, Checkpoint: mode})
	}
	return x.Marshal()
}
