package server

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"path"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"

	"coffer/api"
)

// Forms of a download. Part of the API.
const (
	formatAuto = "auto" // a file as it is, anything else as tar
	formatFile = "file"
	formatTar  = "tar"
)

type contentInput struct {
	ID     string `path:"id" maxLength:"64"`
	Path   string `query:"path" default:"/" maxLength:"65536" doc:"absolute path in the saveset; bytes that are not UTF-8 percent-encoded"`
	Format string `query:"format" enum:"auto,file,tar" default:"auto" doc:"auto: a regular file as it is, anything else as tar"`
}

func (in *contentInput) audit() (object, detail string) {
	text, _ := api.Text(in.Path)
	return in.ID, clip(text)
}

// getContent streams a file or a tar. What can be answered with an error is checked before the first byte; a fault in
// the middle cuts the connection, so that the caller never takes a torn stream for a whole one.
func (s *Server) getContent(ctx context.Context, in *contentInput) (*raw, error) {
	p, err := cleanPath(in.Path)
	if err != nil {
		return nil, err
	}
	set, tree, err := s.openTree(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	in.ID = set.ID // the audit log names the whole id
	d := &download{server: s, set: set, tree: tree, path: p}
	if err := d.prepare(ctx, in.Format); err != nil {
		s.closeTree(set, tree)
		return nil, err
	}
	return &raw{d.send}, nil
}

// download is one answer to getContent.
type download struct {
	server *Server
	set    api.Saveset
	tree   Tree
	path   string
	entry  api.Entry
	file   io.ReadCloser // nil for a tar
}

func (d *download) prepare(ctx context.Context, format string) (err error) {
	if d.entry, err = d.tree.Stat(ctx, d.path); err != nil {
		return err
	}
	isFile := d.entry.Type == api.EntryFile
	if format == formatFile && !isFile {
		return api.Errorf(api.CodeBadRequest, "%s is a %s, no regular file", d.path, d.entry.Type).
			WithHint("ask for a tar of it")
	}
	if format == formatTar || !isFile {
		return nil
	}
	d.file, err = d.tree.Open(ctx, d.path)
	return err
}

func (d *download) send(c huma.Context) {
	defer d.server.closeTree(d.set, d.tree)
	w := humagin.Unwrap(c).Writer
	out := &pacedWriter{w: w, ctl: http.NewResponseController(w)}
	name := path.Base(d.path)
	if name == "/" {
		name = d.set.Task
	}
	var err error
	if d.file != nil {
		header(w, "application/octet-stream", name)
		w.Header().Set("Content-Length", strconv.FormatInt(d.entry.Size, 10))
		w.WriteHeader(http.StatusOK)
		err = copyExactly(out, d.file, d.entry.Size)
		err = errors.Join(err, d.file.Close())
	} else {
		header(w, "application/x-tar", name+".tar")
		w.WriteHeader(http.StatusOK)
		err = writeTar(c.Context(), out, d.tree, d.path, d.entry)
	}
	if err == nil {
		return
	}
	if c.Context().Err() == nil {
		d.server.log.Error("download cut off", "saveset", d.set.ID, "path", d.path, "error", err)
	}
	panic(http.ErrAbortHandler)
}

func header(w http.ResponseWriter, contentType, name string) {
	text, _ := api.Text(name)
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": text}))
}

// copyExactly copies size bytes and fails when the reader has fewer or more.
func copyExactly(w io.Writer, r io.Reader, size int64) error {
	if _, err := io.CopyN(w, r, size); err != nil {
		return err
	}
	var one [1]byte
	if n, err := io.ReadFull(r, one[:]); n > 0 || err != io.EOF {
		return errors.Join(errors.New("the content is longer than its size"), err)
	}
	return nil
}

// pacedWriter gives each write its own deadline: a download may take as long as it moves.
type pacedWriter struct {
	w   io.Writer
	ctl *http.ResponseController
}

// Write writes p within writeTimeout.
func (p *pacedWriter) Write(b []byte) (int, error) {
	if err := p.ctl.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return p.w.Write(b)
}
