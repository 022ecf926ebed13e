package main

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"time"

	"coffer/api"
	"coffer/appliance/internal/harness"
)

// coffer is an appliance with one enrolled agent. Its processes run between
// the steps, as they do in life; a step's CPU is what they use during it.
type coffer struct {
	appliance *harness.Appliance
	agent     *harness.Agent
	task      string
}

func newCoffer(ctx context.Context, bin, dir, src string, flags []string) (*coffer, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	a, err := harness.Start(ctx, harness.Options{Bin: bin, Dir: dir, Flags: flags})
	if err != nil {
		return nil, err
	}
	c := &coffer{appliance: a, task: "bench"}
	if c.agent, err = a.Agent(ctx, "client"); err != nil {
		return nil, errors.Join(err, a.Stop())
	}
	if _, err := a.Coffer(ctx, "task", "add", c.task, "--client", "client", "--source", src); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *coffer) name() string { return "coffer" }
func (c *coffer) pids() []int  { return []int{c.appliance.PID(), c.agent.PID()} }
func (c *coffer) close() error { return errors.Join(c.agent.Stop(), c.appliance.Stop()) }

func (c *coffer) full(ctx context.Context, _ string) (*exec.Cmd, error) {
	return c.appliance.Command(ctx, "backup", c.task, "--level", "full", "--json"), nil
}

func (c *coffer) incr(ctx context.Context, _ string) (*exec.Cmd, error) {
	return c.appliance.Command(ctx, "backup", c.task, "--json"), nil
}

func (c *coffer) newest(ctx context.Context) (api.Saveset, error) {
	var page api.Page[api.Saveset]
	if err := c.appliance.JSON(ctx, &page, "saveset", "list"); err != nil {
		return api.Saveset{}, err
	}
	if len(page.Items) == 0 {
		return api.Saveset{}, errors.New("no saveset is listed")
	}
	return page.Items[0], nil
}

func (c *coffer) restore(ctx context.Context, path, to string) (*exec.Cmd, error) {
	s, err := c.newest(ctx)
	if err != nil {
		return nil, err
	}
	return c.appliance.Command(ctx, "restore", s.ID, path, "--client", "client", "--to", to, "--json"), nil
}

func (c *coffer) stored() (int64, error) {
	return diskUsage(filepath.Join(c.appliance.Data, "store"), filepath.Join(c.appliance.Data, "index"))
}

func (c *coffer) mount(ctx context.Context) (string, func() error, error) {
	var m api.Mount
	if err := c.appliance.JSON(ctx, &m, "mount", "on"); err != nil {
		return "", nil, err
	}
	unmount := func() error {
		_, err := c.appliance.Coffer(ctx, "mount", "off")
		return err
	}
	return filepath.Join(m.Path, "client", c.task, "latest") + "/", unmount, nil
}
