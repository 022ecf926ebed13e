package server

import (
	"context"
	"strings"

	"coffer/api"
)

type vmListInput struct {
	Name string `path:"name" maxLength:"64"`
	URI  string `query:"uri" maxLength:"4096" doc:"of the libvirtd, as the client's agent reaches it; default qemu:///system"`
}

func (s *Server) listVMs(ctx context.Context, in *vmListInput) (*body[api.VMList], error) {
	if err := reach(ctx, in.Name); err != nil {
		return nil, err
	}
	list, err := s.backend.VMs(ctx, in.Name, in.URI)
	if list.Items == nil {
		list.Items = []api.VM{}
	}
	return bodyOf(list, err)
}

type vmSyncInput struct {
	Name string `path:"name" maxLength:"64"`
	Body api.VMSync
}

func (in *vmSyncInput) audit() (object, detail string) {
	detail = in.Body.URI
	if in.Body.DryRun {
		detail += " (dry run)"
	}
	return in.Name, strings.TrimSpace(clip(detail))
}

func (s *Server) syncVMs(ctx context.Context, in *vmSyncInput) (*body[api.VMSyncReport], error) {
	report, err := s.backend.SyncVMs(ctx, in.Name, in.Body)
	if report.Items == nil {
		report.Items = []api.VMSynced{}
	}
	return bodyOf(report, err)
}

// checkMachine holds the fields of a task of type libvirt against each other.
func checkMachine(t *api.TaskSpec, fault func(field, msg string)) {
	if t.Machine == nil || t.Machine.Domain == "" && t.Machine.UUID == "" {
		fault("libvirt.domain", "a task of type libvirt needs the domain that it backs up")
	}
	if len(t.Sources)+len(t.Excludes)+len(t.Images)+len(t.Command) > 0 || t.OneFileSystem || t.StreamName != "" {
		fault("sources", "a task of type libvirt has a domain: neither sources and excludes nor a command")
	}
}
