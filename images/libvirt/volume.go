package libvirt

import (
	"context"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"
)

// Volume is an image in a storage pool of the host.
type Volume struct {
	Name string
	File FileDisk
	ref  golibvirt.StorageVol
}

// CreateVolume makes an empty image in a storage pool. KindBusy where there is one of that name.
func (c *Conn) CreateVolume(ctx context.Context, pool, name, format string, size int64) (*Volume, error) {
	op := fmt.Sprintf("make volume %s in storage pool %s", name, pool)
	x := libvirtxml.StorageVolume{Name: name, Capacity: &libvirtxml.StorageVolumeSize{Unit: "bytes", Value: uint64(size)},
		Allocation: &libvirtxml.StorageVolumeSize{Unit: "bytes", Value: 0},
		Target:     &libvirtxml.StorageVolumeTarget{Format: &libvirtxml.StorageVolumeTargetFormat{Type: format}}}
	text, err := x.Marshal()
	if err != nil {
		return nil, failf(KindInvalid, op, "%w", err)
	}
	v := &Volume{Name: name, File: FileDisk{Format: format}}
	err = c.await(ctx, func() error {
		p, err := c.raw.StoragePoolLookupByName(pool)
		if err != nil {
			return err
		}
		if v.ref, err = c.raw.StorageVolCreateXML(p, text, 0); err != nil {
			return err
		}
		if v.File.Path, err = c.raw.StorageVolGetPath(v.ref); err != nil {
			return err
		}
		desc, err := c.raw.StoragePoolGetXMLDesc(p, 0)
		if err != nil {
			return err
		}
		var about libvirtxml.StoragePool
		if err := about.Unmarshal(desc); err != nil {
			return err
		}
		v.File.Block = about.Type == "logical" || about.Type == "disk" || about.Type == "iscsi" || about.Type == "mpath"
		return nil
	})
	if err != nil && v.ref.Name != "" {
		err = joinDelete(ctx, c, v, err)
	}
	if codeOf(err) == golibvirt.ErrStorageVolExist {
		return nil, &Error{KindBusy, op, err}
	}
	if err != nil {
		return nil, failure(op, err)
	}
	if v.File.Block {
		v.File.Format = "raw"
	}
	return v, nil
}

func joinDelete(ctx context.Context, c *Conn, v *Volume, err error) error {
	if e := c.DeleteVolume(context.WithoutCancel(ctx), v); e != nil {
		return fmt.Errorf("%w; %w", err, e)
	}
	return err
}

// DeleteVolume removes an image. None there is no error.
func (c *Conn) DeleteVolume(ctx context.Context, v *Volume) error {
	err := c.await(ctx, func() error { return c.raw.StorageVolDelete(v.ref, 0) })
	if codeOf(err) == golibvirt.ErrNoStorageVol {
		return nil
	}
	return failure("remove volume "+v.Name, err)
}

// Volumes lists the images of a storage pool whose names ours takes. A pool that is not there has none.
func (c *Conn) Volumes(ctx context.Context, pool string, ours func(name string) bool) ([]*Volume, error) {
	op := "list the volumes of storage pool " + pool
	var out []*Volume
	err := c.await(ctx, func() error {
		p, err := c.raw.StoragePoolLookupByName(pool)
		if err != nil {
			return err
		}
		_ = c.raw.StoragePoolRefresh(p, 0) // refused while images are made there: then it is fresh
		refs, _, err := c.raw.StoragePoolListAllVolumes(p, 1, 0)
		if err != nil {
			return err
		}
		for _, ref := range refs {
			if !ours(ref.Name) {
				continue
			}
			v := &Volume{Name: ref.Name, ref: ref}
			if v.File.Path, err = c.raw.StorageVolGetPath(ref); codeOf(err) == golibvirt.ErrNoStorageVol {
				continue
			} else if err != nil {
				return err
			}
			out = append(out, v)
		}
		return nil
	})
	if codeOf(err) == golibvirt.ErrNoStoragePool {
		return nil, nil
	}
	return out, failure(op, err)
}
