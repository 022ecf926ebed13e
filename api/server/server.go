package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"runtime/debug"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"
	"github.com/gin-gonic/gin"

	"coffer/api"
)

// Limits of connections. A caller that is slower than these is cut off; streams extend their deadlines as they go.
const (
	headerTimeout = 10 * time.Second // to send the request's header
	readTimeout   = 30 * time.Second // to send the whole request
	idleTimeout   = 2 * time.Minute  // between requests of a connection
	callTimeout   = 60 * time.Second // of one call that is no stream
	writeTimeout  = 90 * time.Second // of an answer, and of each piece of a stream
	stopTimeout   = 10 * time.Second // for calls to finish at the end
	maxHeader     = 64 << 10
)

// Options configure a server.
type Options struct {
	// TLS is the server's certificate and its chain up to the CA, which clients pin. GetCertificate may be used for
	// renewal without a restart. Required: there is no plain HTTP.
	TLS *tls.Config
	// Logger takes a line per failed call, and per call at debug level. Nil discards.
	Logger *slog.Logger
}

// Server serves the REST API of one backend.
type Server struct {
	backend  Backend
	log      *slog.Logger
	tls      *tls.Config
	gin      *gin.Engine
	api      huma.API
	table    map[string]operation
	handled  map[string]bool
	logins   *limiter
	document []byte
	stopping chan struct{} // closed when Serve's context ends: event streams end
}

// New makes a server of the backend.
func New(b Backend, o Options) (*Server, error) {
	if o.TLS == nil {
		return nil, errors.New("new API server: a TLS configuration is required")
	}
	s := &Server{backend: b, log: o.Logger, tls: o.TLS, table: map[string]operation{}, handled: map[string]bool{},
		logins: newLimiter(), stopping: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, op := range operations() {
		s.table[op.id] = op
	}
	s.gin = s.router()
	s.api = humagin.New(s.gin, documentConfig())
	s.api.UseMiddleware(s.authorize)
	s.routes()
	for id := range s.table {
		if !s.handled[id] {
			return nil, fmt.Errorf("new API server: operation %s has no handler", id)
		}
	}
	doc, err := json.MarshalIndent(s.api.OpenAPI(), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("new API server: make the OpenAPI document: %w", err)
	}
	s.document = append(doc, '\n')
	return s, nil
}

// documentConfig is huma without its extras: our error documents, no other formats, no pages that load foreign scripts.
func documentConfig() huma.Config {
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{Title: "Coffer", Version: api.APIVersion,
				Description: "REST API of a Coffer backup appliance. Times are RFC 3339, sizes bytes, durations seconds. " +
					"Errors are problem+json with a code. TLS is always on, under the appliance's own CA."},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"bearer": {Type: "http", Scheme: "bearer", Description: "a session's token (login) or an API token"},
				},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{transformProblem},
	}
}

// router is gin with what is true for every call.
func (s *Server) router() *gin.Engine {
	gin.SetMode(gin.ReleaseMode) // process-wide in gin; the only other mode prints routes on stdout
	g := gin.New()
	g.HandleMethodNotAllowed = true
	g.RedirectTrailingSlash = false
	_ = g.SetTrustedProxies(nil) // the peer's address is the caller's; nil cannot fail
	g.Use(s.wrap)
	g.NoRoute(func(c *gin.Context) {
		writeProblem(c.Writer, newProblem(api.Errorf(api.CodeNotFound, "there is no %s %s in this API", c.Request.Method, c.Request.URL.Path).
			WithHint("the routes are listed in %s/openapi.json", api.Prefix)))
	})
	g.NoMethod(func(c *gin.Context) {
		e := api.Errorf(api.CodeBadRequest, "%s does not take %s", c.Request.URL.Path, c.Request.Method)
		e.Status = http.StatusMethodNotAllowed
		writeProblem(c.Writer, newProblem(e))
	})
	return g
}

// wrap sets headers and deadlines, keeps a panic from taking the process, and logs.
func (s *Server) wrap(c *gin.Context) {
	start := time.Now()
	h := c.Writer.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(start.Add(writeTimeout)) // of the connections we serve, all can
	defer func() {
		switch r := recover(); {
		case r == nil:
		case r == http.ErrAbortHandler: //nolint:errorlint // a panic value, compared as net/http does
			panic(r)
		default:
			s.log.Error("API call panicked", "method", c.Request.Method, "path", c.Request.URL.Path, "panic", r, "stack", string(debug.Stack()))
			if c.Writer.Written() {
				panic(http.ErrAbortHandler)
			}
			writeProblem(c.Writer, problemOf(errors.New("panic")))
		}
		s.log.Debug("API call", "method", c.Request.Method, "path", c.Request.URL.Path, "status", c.Writer.Status(),
			"remote", remoteOf(c.Request.RemoteAddr), "took", time.Since(start))
	}()
	c.Next()
}

// handle registers the handler of an operation of the table: it documents it, times it out, records it in the audit log
// and maps its errors.
func handle[I, O any](s *Server, id string, h func(context.Context, *I) (*O, error)) {
	op, ok := s.table[id]
	if !ok || s.handled[id] {
		panic("handle: operation " + id + " is not in the table, or twice") // a programming error, met by every test
	}
	s.handled[id] = true
	doc := huma.Operation{
		OperationID: op.id, Method: op.method, Path: op.route(), DefaultStatus: op.status,
		Summary: op.summary, Description: op.describe(), Tags: []string{op.tag}, MaxBodyBytes: api.MaxBody, BodyReadTimeout: readTimeout,
		Responses: map[string]*huma.Response{"default": s.errorResponse()},
	}
	if op.roles != nil {
		doc.Security = []map[string][]string{{"bearer": {}}}
	}
	if op.streams || op.id == "openapi" || op.id == "metrics" {
		doc.Responses["200"] = streamResponse(s.api, op.id)
	}
	huma.Register(s.api, doc, func(ctx context.Context, in *I) (*O, error) {
		bodyRead(ctx)
		call := ctx
		if !op.streams {
			var cancel context.CancelFunc
			call, cancel = context.WithTimeout(ctx, callTimeout)
			defer cancel()
		}
		out, err := h(call, in)
		if rerr := s.record(ctx, op, in, err); rerr != nil && err == nil {
			err = rerr
		}
		if err == nil {
			return out, nil
		}
		p := problemOf(err)
		if p.Code == api.CodeInternal {
			s.log.Error("API call failed", "operation", op.id, "error", err)
		}
		return nil, p
	})
}

// errorResponse documents the answer of every call that fails.
func (s *Server) errorResponse() *huma.Response {
	schema := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[problem](), true, "Problem")
	return &huma.Response{Description: "Error", Content: map[string]*huma.MediaType{"application/problem+json": {Schema: schema}}}
}

// Document returns the OpenAPI document.
func (s *Server) Document() []byte { return s.document }

// Serve answers calls on the listener, wrapping it in TLS, until ctx ends; then it ends event streams, lets calls finish
// for a while, and returns nil. It closes the listener. It can be called once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler: s.gin, TLSConfig: s.tls.Clone(), MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, IdleTimeout: idleTimeout,
		ErrorLog: slog.NewLogLogger(quietTLS{s.log.Handler()}, slog.LevelWarn),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.ServeTLS(ln, "", "") }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve the API on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	close(s.stopping)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		_ = srv.Close() // what has not finished by now is cut off; Shutdown's error says no more
	}
	<-failed
	return nil
}

// quietTLS lowers the lines about failed TLS handshakes to debug: port scans and unpinned clients make many of them.
type quietTLS struct{ slog.Handler }

// Handle passes a record on, handshake noise at debug level.
func (q quietTLS) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "TLS handshake error") {
		r.Level = slog.LevelDebug
		if !q.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return q.Handler.Handle(ctx, r)
}

// WithAttrs keeps the wrapper.
func (q quietTLS) WithAttrs(a []slog.Attr) slog.Handler { return quietTLS{q.Handler.WithAttrs(a)} }

// WithGroup keeps the wrapper.
func (q quietTLS) WithGroup(n string) slog.Handler { return quietTLS{q.Handler.WithGroup(n)} }

// remoteOf returns the address without the port.
func remoteOf(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return hostport
}
