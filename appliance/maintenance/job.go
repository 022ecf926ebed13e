package maintenance

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"coffer/appliance/catalog"
)

// Kind is what a job does. Part of the catalog's format.
type Kind string

// Kinds of maintenance.
const (
	GC      Kind = "gc"      // small objects to the current key, then garbage collection
	Check   Kind = "check"   // references resolve, stored bytes are what was stored
	Repair  Kind = "repair"  // salvage torn containers, heal from other stores
	Reindex Kind = "reindex" // the index anew, from the containers
	Usage   Kind = "usage"   // what savesets use and share
	Purge   Kind = "purge"   // savesets whose time is over
)

// Halves of a check.
const (
	BothHalves  = "both"
	ObjectsHalf = "objects"
	PagesHalf   = "pages"
)

// Settings change what a job does; zero fields mean what the configuration says. It is the JSON in the catalog's column
// `options`; part of its format, and of the API's.
type Settings struct {
	Sparse  float64  `json:"sparse,omitempty"`  // gc: live share of bytes below which a container is rewritten
	Budget  float64  `json:"budget,omitempty"`  // gc: seconds
	Rate    int64    `json:"rate,omitempty"`    // gc, check: bytes a second
	Half    string   `json:"half,omitempty"`    // check: BothHalves (also ""), ObjectsHalf, PagesHalf
	Shallow bool     `json:"shallow,omitempty"` // check: checksums only
	Share   float64  `json:"share,omitempty"`   // check: of all containers; 0: all
	From    []Source `json:"from,omitempty"`    // repair
}

// Source is another store that chunks are fetched from.
type Source struct {
	Path    string `json:"path"`
	KeyFile string `json:"key_file,omitempty"` // empty: the appliance's own
}

// validate reports every setting that the kind does not take.
func (s Settings) validate(kind Kind) error {
	var faults []string
	only := func(set bool, name string, kinds ...Kind) {
		for _, k := range kinds {
			set = set && k != kind
		}
		if set {
			faults = append(faults, name)
		}
	}
	only(s.Sparse != 0, "sparse", GC)
	only(s.Budget != 0, "budget", GC)
	only(s.Rate != 0, "rate", GC, Check)
	only(s.Half != "", "half", Check)
	only(s.Shallow, "shallow", Check)
	only(s.Share != 0, "share", Check)
	only(len(s.From) > 0, "from", Repair)
	if len(faults) > 0 {
		return refuse(KindInvalid, "", "a job of kind %s takes no %s", kind, strings.Join(faults, ", "))
	}
	if s.Half == ObjectsHalf && (s.Share != 0 || s.Shallow || s.Rate != 0) {
		return refuse(KindInvalid, "", "share, shallow and rate are about stored bytes, which a check of half objects does not read")
	}
	return nil
}

// Info is a job as it is now.
type Info struct {
	ID                     string
	Kind                   Kind
	State                  catalog.RunState
	Trigger, User          string
	Settings               Settings
	Queued, Started, Ended time.Time // zero: not yet
	Reason, Hint           string
	Progress               Progress
	Report                 Report
}

// Progress says how far a job is. It is the JSON in the catalog's column `progress`; part of its format, and of the API's.
type Progress struct {
	Phase string  `json:"phase,omitempty"`
	Done  int64   `json:"done"`
	Total int64   `json:"total,omitempty"` // 0: not known
	Unit  string  `json:"unit,omitempty"`
	Rate  float64 `json:"rate,omitempty"`         // units a second, in this phase
	Left  float64 `json:"seconds_left,omitempty"` // of this phase; 0: not known
}

// record is the job as the catalog keeps it.
func (i Info) record() (catalog.Maintenance, error) {
	m := catalog.Maintenance{ID: i.ID, Kind: string(i.Kind), State: i.State, Trigger: i.Trigger, User: i.User,
		Queued: i.Queued, Started: i.Started, Ended: i.Ended, Reason: i.Reason, Hint: i.Hint}
	var errs [3]error
	m.Options, errs[0] = json.Marshal(i.Settings)
	m.Progress, errs[1] = json.Marshal(i.Progress)
	m.Report, errs[2] = json.Marshal(i.Report)
	if err := errors.Join(errs[:]...); err != nil {
		return m, fmt.Errorf("record maintenance job %s: %w", i.ID, err)
	}
	return m, nil
}

// info is a recorded job. JSON that cannot be read is left out: it is no reason to hide a job.
func info(m catalog.Maintenance) Info {
	i := Info{ID: m.ID, Kind: Kind(m.Kind), State: m.State, Trigger: m.Trigger, User: m.User,
		Queued: m.Queued, Started: m.Started, Ended: m.Ended, Reason: m.Reason, Hint: m.Hint}
	_ = json.Unmarshal(m.Options, &i.Settings)
	_ = json.Unmarshal(m.Progress, &i.Progress)
	_ = json.Unmarshal(m.Report, &i.Report)
	return i
}
