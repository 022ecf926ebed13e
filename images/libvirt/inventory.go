package libvirt

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Domains lists all domains of the host, running or not, by name. A domain that went while the list was made is left out;
// one whose XML cannot be read is an error that comes beside the others.
func (c *Conn) Domains(ctx context.Context) ([]*Domain, error) {
	var refs []golibvirt.Domain
	err := c.call(ctx, "list domains", func(lv rpc) (err error) {
		refs, _, err = lv.ConnectListAllDomains(1, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	var out []*Domain
	var faults []error
	for _, ref := range refs {
		d, err := c.describe(ctx, ref)
		switch {
		case KindOf(err) == KindNoDomain:
		case err != nil:
			faults = append(faults, err)
		default:
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b *Domain) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.UUID, b.UUID)) })
	return out, errors.Join(faults...)
}

// Domain finds a domain by its UUID where one is given, else by its name. KindNoDomain.
func (c *Conn) Domain(ctx context.Context, uuid, name string) (*Domain, error) {
	op := "find domain " + strconv.Quote(cmp.Or(uuid, name))
	var ref golibvirt.Domain
	err := c.call(ctx, op, func(lv rpc) (err error) {
		if uuid == "" {
			ref, err = lv.DomainLookupByName(name)
			return err
		}
		id, ok := parseUUID(uuid)
		if !ok {
			return failf(KindInvalid, "UUID", "%q is none", uuid)
		}
		ref, err = lv.DomainLookupByUUID(id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.describe(ctx, ref)
}

// describe reads what a domain is now.
func (c *Conn) describe(ctx context.Context, ref golibvirt.Domain) (*Domain, error) {
	op := "look at domain " + strconv.Quote(ref.Name)
	var text string
	var state, persistent int32
	err := c.call(ctx, op, func(lv rpc) (err error) {
		if state, _, err = lv.DomainGetState(ref, 0); err != nil {
			return err
		}
		if persistent, err = lv.DomainIsPersistent(ref); err != nil {
			return err
		}
		text, err = lv.DomainGetXMLDesc(ref, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	d, err := parseDomain(ref, text)
	if err != nil {
		return nil, failure(op, err)
	}
	d.State, d.Persistent = stateOf(state), persistent != 0
	if !d.Active() {
		d.ID = -1
	}
	return d, c.capacities(ctx, d)
}

// capacities asks for the sizes of a domain's disks. Where libvirtd does not know one it stays 0.
func (c *Conn) capacities(ctx context.Context, d *Domain) error {
	for i := range d.Disks {
		disk := &d.Disks[i]
		if ok, _ := disk.Saved(); !ok {
			continue
		}
		_ = c.call(ctx, "size of disk "+disk.Target, func(lv rpc) error {
			_, capacity, _, err := lv.DomainGetBlockInfo(d.ref, disk.Target, 0)
			if err == nil && capacity < 1<<62 {
				disk.Capacity = int64(capacity)
			}
			return err
		})
	}
	return ctx.Err()
}

// XML is what a domain can be defined from again: its definition with its secrets, or, of one that is not defined, what
// runs.
func (c *Conn) XML(ctx context.Context, d *Domain) (string, error) {
	flags := golibvirt.DomainXMLSecure
	if d.Persistent {
		flags |= golibvirt.DomainXMLInactive
	} else {
		flags |= golibvirt.DomainXMLMigratable // without what only this process has
	}
	var text string
	err := c.call(ctx, "read the XML of domain "+strconv.Quote(d.Name), func(lv rpc) (err error) {
		text, err = lv.DomainGetXMLDesc(d.ref, flags)
		return err
	})
	return text, err
}
