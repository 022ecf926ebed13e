package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// frameCounts are what the appliance counts of its cache of decoded frames since it started.
type frameCounts struct{ hits, decoded float64 }

// frames reads the appliance's metrics.
func (c *coffer) frames(ctx context.Context) (n frameCounts, err error) {
	if c.token.Secret == "" {
		if err := c.a.JSON(ctx, &c.token, "token", "add", "bench"); err != nil {
			return n, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.a.REST+"/metrics", nil)
	if err != nil {
		return n, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token.Secret)
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // it is ours, on loopback
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return n, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return n, fmt.Errorf("GET /metrics: %s", res.Status)
	}
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		v, _ := strconv.ParseFloat(value, 64) // only of the lines below
		switch name {
		case `coffer_store_cache_hits_total{cache="frames"}`:
			n.hits = v
		case `coffer_store_cache_misses_total{cache="frames"}`:
			n.decoded = v
		}
	}
	return n, lines.Err()
}

var _ counter = (*coffer)(nil)

// counter is a server that tells how many frames it decoded.
type counter interface {
	frames(context.Context) (frameCounts, error)
}

// countFrames returns a function that says what was counted since.
func countFrames(ctx context.Context, s server) (func() (string, error), error) {
	c, ok := s.(counter)
	if !ok {
		return func() (string, error) { return "", nil }, nil
	}
	before, err := c.frames(ctx)
	return func() (string, error) {
		after, err := c.frames(ctx)
		return fmt.Sprintf("; %.0f frames decoded, %.0f times found in the cache", after.decoded-before.decoded, after.hits-before.hits), err
	}, err
}
