package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"coffer/api"
)

// Limits of a client.
const (
	dialTimeout   = 15 * time.Second
	answerTimeout = 90 * time.Second // for the head of an answer: longer than the server takes at most
	maxAnswer     = 256 << 20        // bytes of a JSON document: a page of large entries
	maxProblem    = 1 << 20
)

// Options configure a client.
type Options struct {
	// Server is the appliance: https://host:port. Required.
	Server string
	// Fingerprint is the SHA-256 of the certificate that is trusted, in hex, with or without colons: the CA's, so that
	// a renewed server certificate stays trusted, or the server's own. Required.
	Fingerprint string
	// Token is the bearer token; empty for calls that need none.
	Token string
	// UserAgent names the program in the appliance's log.
	UserAgent string
	// Lost is told when a stream of events breaks off, once until it is there again, that it is tried again and until when,
	// and why. Nil: nobody is.
	Lost func(until time.Time, err error)
}

// Client calls the REST API of one appliance. Its methods may be called concurrently.
type Client struct {
	base  *url.URL
	http  *http.Client
	token string
	agent string
	lost  func(until time.Time, err error)
	// patience is how long streams of events are tried again.
	patience time.Duration
}

// New makes a client. It does not connect.
func New(o Options) (*Client, error) {
	base, err := ParseServer(o.Server)
	if err != nil {
		return nil, err
	}
	pin, err := ParseFingerprint(o.Fingerprint)
	if err != nil {
		return nil, err
	}
	tr := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:       pinned(pin),
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: answerTimeout,
		IdleConnTimeout:       time.Minute,
		DisableCompression:    true,
		ReadBufferSize:        256 << 10,
	}
	return &Client{base: base, token: o.Token, agent: o.UserAgent, lost: o.Lost, patience: giveUp,
		http: &http.Client{Transport: tr, CheckRedirect: noRedirect}}, nil
}

// noRedirect keeps the token from going elsewhere: the API never redirects.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// ParseServer reads an appliance's address: https://host:port, host:port or host; the port defaults to api.DefaultPort.
func ParseServer(s string) (*url.URL, error) {
	bad := func(why string) error {
		return api.Errorf(api.CodeBadRequest, "server address %q: %s", s, why).WithHint("it reads like https://backup1:%d", api.DefaultPort)
	}
	text := s
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, bad("it is not a URL")
	case u.Scheme != "https":
		return nil, bad("the API speaks https only")
	case u.Hostname() == "":
		return nil, bad("the host is missing")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return nil, bad("it takes a host and a port, nothing else")
	}
	port := u.Port()
	if port == "" {
		port = fmt.Sprint(api.DefaultPort)
	}
	return &url.URL{Scheme: "https", Host: net.JoinHostPort(u.Hostname(), port)}, nil
}

// Server returns the appliance's address.
func (c *Client) Server() string { return c.base.String() }

// WithToken returns a client of the same appliance with another token; it shares the connections.
func (c *Client) WithToken(token string) *Client {
	n := *c
	n.token = token
	return &n
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request is one call: its path below api.Prefix, escaped already, its query and its JSON body.
type request struct {
	method string
	path   string
	query  url.Values
	body   any
	accept string
}

// open sends a request and returns the answer when it is a success; every other answer becomes an *api.Error.
func (c *Client) open(ctx context.Context, r request) (*http.Response, error) {
	var body io.Reader
	if r.body != nil {
		b, err := json.Marshal(r.body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	target := c.base.String() + api.Prefix + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.accept != "" {
		req.Header.Set("Accept", r.accept)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.agent != "" {
		req.Header.Set("User-Agent", c.agent)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	if res.StatusCode/100 != 2 {
		defer res.Body.Close()
		return nil, problem(res)
	}
	return res, nil
}

// call sends a request and decodes the JSON answer into out (nil: none is expected).
func (c *Client) call(ctx context.Context, r request, out any) error {
	r.accept = "application/json"
	res, err := c.open(ctx, r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		_, err := io.Copy(io.Discard, io.LimitReader(res.Body, maxProblem))
		return c.transportError(ctx, err)
	}
	err = json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(out)
	if err != nil {
		return api.Errorf(api.CodeUnexpectedResponse, "the answer of %s to %s %s is not understood: %v", c.base.Host, r.method, r.path, err).
			WithHint("is it a Coffer appliance, and of a version that fits?")
	}
	return nil
}

// transportError says what kept a call from being answered.
func (c *Client) transportError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if e, ok := errors.AsType[*api.Error](err); ok { // the pin's verdict, from inside the handshake
		return e
	}
	reason := err
	if u, ok := errors.AsType[*url.Error](err); ok {
		reason = u.Err
	}
	e := api.Errorf(api.CodeUnreachable, "the appliance at %s does not answer: %v", c.base.Host, reason)
	return e.WithHint("is cofferd running there, and is the port open?")
}

// problem decodes an answer that is no success.
func problem(res *http.Response) error {
	e := &api.Error{Status: res.StatusCode}
	data, err := io.ReadAll(io.LimitReader(res.Body, maxProblem))
	isProblem := strings.HasPrefix(res.Header.Get("Content-Type"), "application/problem+json")
	if err != nil || !isProblem || json.Unmarshal(data, e) != nil || e.Code == "" {
		return &api.Error{Code: api.CodeUnexpectedResponse, Status: res.StatusCode,
			Message: "the answer is no answer of the API: HTTP status " + res.Status, Hint: "is it a Coffer appliance?"}
	}
	return e
}

// seg escapes one segment of a path.
func seg(s string) string { return "/" + url.PathEscape(s) }
