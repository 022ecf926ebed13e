package agent

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"coffer/appliance/agent/fsmeta"
	"coffer/appliance/sms"
	"coffer/dedup/recipe"
)

// maxBrowse is the most entries of one answer.
const maxBrowse = 1000

// stat answers what lies at some paths. A symlink is told as what it is.
func stat(ctx context.Context, o sms.StatOrder) *sms.StatReply {
	reply := &sms.StatReply{}
	for _, p := range o.Paths {
		info := sms.FileInfo{Path: p}
		if err := ctx.Err(); err != nil {
			info.Error = err.Error()
		} else {
			look(&info, fsmeta.SavesetPath(string(p)))
		}
		reply.Files = append(reply.Files, info)
	}
	return reply
}

func look(info *sms.FileInfo, p string) {
	if !strings.HasPrefix(p, "/") {
		info.Error = "not an absolute path"
		return
	}
	dir, name := path.Split(path.Clean(p))
	d, err := fsmeta.OpenPath(dir)
	if err != nil {
		failed(info, err)
		return
	}
	defer d.Close()
	fill(info, d, name)
}

// failed says why there is nothing to tell; something that may exist but cannot be reached says so by the error alone.
func failed(info *sms.FileInfo, err error) {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fsmeta.ErrNotDir) {
		err = fs.ErrNotExist
	}
	info.Error = err.Error()
}

// fill looks at a name in a directory; an empty name is the directory itself.
func fill(info *sms.FileInfo, d *fsmeta.Dir, name string) {
	var st fsmeta.Stat
	var err error
	if name == "" {
		err = d.Stat(&st)
	} else {
		err = d.Lstat(name, &st)
	}
	if err != nil {
		failed(info, err)
		return
	}
	info.Exists, info.Mode, info.UID, info.GID, info.Size = true, st.Mode, st.UID, st.GID, st.Size
	info.MTime = time.Unix(st.MTime.Sec, int64(st.MTime.Nsec)).UTC()
	if st.Type() == recipe.ModeSymlink {
		target, err := d.Readlink(name)
		if err != nil {
			info.Error = err.Error()
		}
		info.Target = sms.Path(target)
	}
}

// browse lists a part of a directory.
func browse(o sms.BrowseOrder) (*sms.BrowseReply, error) {
	d, err := fsmeta.OpenPath(fsmeta.SavesetPath(string(o.Path)))
	if fsmeta.Gone(err) || errors.Is(err, fsmeta.ErrNotDir) {
		return nil, sms.Errorf(sms.CodeNotFound, "%s: no such directory", string(o.Path))
	}
	if err != nil {
		return nil, sms.Errorf(sms.CodeRefused, "open directory %s: %w", string(o.Path), err)
	}
	defer d.Close()
	names, err := d.Names(&fsmeta.Scratch{}, nil)
	if err != nil {
		return nil, sms.Errorf(sms.CodeRefused, "list directory %s: %w", string(o.Path), err)
	}
	names = slices.DeleteFunc(names, func(n fsmeta.Named) bool { return n.Name <= string(o.After) })
	slices.SortFunc(names, func(a, b fsmeta.Named) int { return strings.Compare(a.Name, b.Name) })
	limit := o.Limit
	if limit <= 0 || limit > maxBrowse {
		limit = maxBrowse
	}
	reply := &sms.BrowseReply{More: len(names) > limit}
	for _, n := range names[:min(limit, len(names))] {
		info := sms.FileInfo{Path: sms.Path(n.Name)}
		fill(&info, d, n.Name)
		reply.Files = append(reply.Files, info)
	}
	return reply, nil
}
