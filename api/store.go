package api

import "time"

// StoreState is the health of a store, as DOMAIN's "Store" rule 2.
type StoreState string

// States of a store.
const (
	StoreGreen      StoreState = "green"
	StoreYellow     StoreState = "yellow"     // a check is overdue
	StoreRed        StoreState = "red"        // the damage list is not empty; it takes backups, and they heal it
	StoreUnwritable StoreState = "unwritable" // it takes no writes: reserve reached, I/O error
	StoreLocked     StoreState = "locked"     // not open: wrong or missing key, or damaged so that it cannot open
)

// Store is the state of the deduplicating store.
type Store struct {
	Name           string        `json:"name"`
	State          StoreState    `json:"state" enum:"green,yellow,red,unwritable,locked"`
	Reason         string        `json:"reason,omitempty" doc:"why it is not green: the first of the reasons"`
	Reasons        []StoreReason `json:"reasons,omitempty" doc:"all that keeps it from being green, the gravest first"`
	Path           string        `json:"path" doc:"where it lies on the appliance"`
	Domain         string        `json:"domain" doc:"id of its dedup domain"`
	Encrypted      bool          `json:"encrypted"`
	Savesets       int64         `json:"savesets"`
	Containers     int64         `json:"containers"`
	Chunks         int64         `json:"chunks" doc:"distinct chunks and nodes in use at the last garbage collection"`
	LogicalBytes   int64         `json:"logical_bytes" doc:"sum of the sizes of all savesets"`
	StoredBytes    int64         `json:"stored_bytes" doc:"bytes of all containers"`
	FreeBytes      int64         `json:"free_bytes" doc:"free space of its file system"`
	CapacityBytes  int64         `json:"capacity_bytes" doc:"size of its file system"`
	ReserveBytes   int64         `json:"reserve_bytes" doc:"free space that no write may use up"`
	Watermarks     Watermarks    `json:"watermarks"`
	ActiveRuns     int64         `json:"active_runs"`
	IndexBytes     int64         `json:"index_bytes,omitempty" doc:"bytes of the index on disk"`
	DamagedObjects int64         `json:"damaged_objects" doc:"length of the damage list"`

	Usage           *StoreUsage   `json:"usage,omitempty" doc:"what the last count found; absent before the first"`
	Check           StoreCheck    `json:"check" doc:"how far checking is"`
	Maintenance     *Maintenance  `json:"maintenance,omitempty" doc:"the maintenance job that works now"`
	Last            []Maintenance `json:"last,omitempty" doc:"the last ended maintenance job of each kind"`
	NextMaintenance *time.Time    `json:"next_maintenance,omitempty" doc:"when the daily maintenance starts next; absent when it is off"`
}

// Watermarks say how full a store may become, in percent of its file system.
type Watermarks struct {
	High int64 `json:"high,omitempty" doc:"from here on expired savesets are purged; absent: none"`
	Low  int64 `json:"low,omitempty" doc:"down to here"`
	Used int64 `json:"used" doc:"what is in use"`
}

// StoreReason is one thing that keeps a store from being green.
type StoreReason struct {
	State   StoreState `json:"state" enum:"yellow,red,unwritable,locked" doc:"what it makes the store at least"`
	Message string     `json:"message"`
	Hint    string     `json:"hint,omitempty" doc:"what to do about it"`
}

// StoreUsage are the figures of a store, counted by a maintenance job. Plain bytes are those of chunks before compression,
// each once; stored bytes their share of what lies on disk.
type StoreUsage struct {
	At               time.Time `json:"at" doc:"when they were counted"`
	LogicalBytes     int64     `json:"logical_bytes" doc:"sum of the sizes of all savesets"`
	PlainBytes       int64     `json:"plain_bytes" doc:"chunks that savesets use, before compression"`
	StoredBytes      int64     `json:"stored_bytes" doc:"the same, as they are stored"`
	SharedBytes      int64     `json:"shared_bytes" doc:"of the plain bytes, those that several savesets use"`
	GarbageBytes     int64     `json:"garbage_bytes" doc:"stored bytes that no saveset uses"`
	ContainerBytes   int64     `json:"container_bytes" doc:"size of all containers"`
	DedupRatio       float64   `json:"dedup_ratio" doc:"logical to plain bytes"`
	CompressionRatio float64   `json:"compression_ratio" doc:"plain to stored bytes"`
}

// StoreCheck says how far the checking of a store is.
type StoreCheck struct {
	Objects   *time.Time `json:"objects,omitempty" doc:"when the last complete check of all references ended"`
	Pages     *time.Time `json:"pages,omitempty" doc:"when the last complete round over all stored bytes ended"`
	RoundDone float64    `json:"round_done" doc:"share of the containers that the present round has checked, 0 to 1" example:"0.25"`
	DueAt     *time.Time `json:"due_at,omitempty" doc:"when the check becomes, or became, overdue; absent for an empty store"`
}

// DismissRequest gives up a damaged record of a saveset that nothing heals.
type DismissRequest struct {
	Object string `json:"object" minLength:"1" maxLength:"512" doc:"its name on the damage list" example:"manifests/01a20205eab0e2aedcf231c1e320f42c"`
}

// MaintenanceKind is what a maintenance job does.
type MaintenanceKind string

// Kinds of maintenance.
const (
	MaintenanceGC      MaintenanceKind = "gc"      // give back what no saveset needs
	MaintenanceCheck   MaintenanceKind = "check"   // references resolve, stored bytes are what was stored
	MaintenanceRepair  MaintenanceKind = "repair"  // salvage torn containers, heal from other stores
	MaintenanceReindex MaintenanceKind = "reindex" // make the index anew from the containers
	MaintenanceUsage   MaintenanceKind = "usage"   // count what savesets use and share
	MaintenancePurge   MaintenanceKind = "purge"   // delete savesets whose time is over
)

// MaintenanceTrigger says what started a maintenance job.
type MaintenanceTrigger string

// Triggers of maintenance.
const (
	TriggerManual MaintenanceTrigger = "manual"
	TriggerDaily  MaintenanceTrigger = "daily"
	TriggerSpace  MaintenanceTrigger = "watermark" // the high watermark was reached
)

// MaintenanceRequest starts maintenance at once, or as soon as the job before it has ended.
type MaintenanceRequest struct {
	Kind    MaintenanceKind    `json:"kind" enum:"gc,check,repair,reindex,usage"`
	Options MaintenanceOptions `json:"options,omitzero"`
}

// MaintenanceOptions change what a job does; zero fields mean what the configuration says.
type MaintenanceOptions struct {
	Sparse  float64        `json:"sparse,omitempty" minimum:"0" maximum:"1" doc:"gc: live share of bytes below which a container is rewritten"`
	Budget  float64        `json:"budget,omitempty" minimum:"0" maximum:"864000" doc:"gc: seconds after which sweeping stops; the next gc goes on"`
	Rate    int64          `json:"rate,omitempty" minimum:"0" doc:"gc, check: bytes a second; 0 means what the configuration says"`
	Half    CheckHalf      `json:"half,omitempty" enum:"both,objects,pages" doc:"check: both (the default), references only, or stored bytes only"`
	Shallow bool           `json:"shallow,omitempty" doc:"check: hold stored bytes against checksums only, without decrypting them"`
	Share   float64        `json:"share,omitempty" minimum:"0" maximum:"1" doc:"check: share of all containers, from where the last check stopped; 0 means all"`
	From    []RepairSource `json:"from,omitempty" maxItems:"16" doc:"repair: other stores of the same dedup domain, on the appliance's file system"`
}

// CheckHalf says which half of a check is done.
type CheckHalf string

// Halves of a check.
const (
	CheckBoth    CheckHalf = "both"
	CheckObjects CheckHalf = "objects"
	CheckPages   CheckHalf = "pages"
)

// RepairSource is another store that damaged chunks are fetched from; nothing is written to it.
type RepairSource struct {
	Path    string `json:"path" minLength:"1" maxLength:"4096" doc:"directory of the store"`
	KeyFile string `json:"key_file,omitempty" maxLength:"4096" doc:"its key file; empty: the key file of the appliance's own store"`
}

// Maintenance is a maintenance job of the store. Its states are those of runs.
type Maintenance struct {
	ID        string              `json:"id"`
	Kind      MaintenanceKind     `json:"kind" enum:"gc,check,repair,reindex,usage,purge"`
	State     RunState            `json:"state" enum:"queued,active,success,warning,error,cancelled"`
	Trigger   MaintenanceTrigger  `json:"trigger" enum:"manual,daily,watermark"`
	User      string              `json:"user,omitempty" doc:"who started it; empty for the daily one"`
	Options   MaintenanceOptions  `json:"options,omitzero"`
	QueuedAt  time.Time           `json:"queued_at"`
	StartedAt *time.Time          `json:"started_at,omitempty"`
	EndedAt   *time.Time          `json:"ended_at,omitempty"`
	Reason    string              `json:"reason,omitempty" doc:"why it ended as it did"`
	Hint      string              `json:"hint,omitempty" doc:"what to do about it"`
	Progress  MaintenanceProgress `json:"progress" doc:"live while active, the last word afterwards"`
	Report    MaintenanceReport   `json:"report,omitzero" doc:"what it brought, once it has ended"`
}

// MaintenanceProgress says how far a job is.
type MaintenanceProgress struct {
	Phase       string  `json:"phase,omitempty" doc:"what it is at: mark, sweep, objects, pages, …"`
	Done        int64   `json:"done"`
	Total       int64   `json:"total,omitempty" doc:"0 while unknown"`
	Unit        string  `json:"unit,omitempty" doc:"what is counted: containers, savesets, bytes, chunks"`
	Rate        float64 `json:"rate,omitempty" doc:"units a second in this phase"`
	SecondsLeft float64 `json:"seconds_left,omitempty" doc:"of this phase, as it looks now; absent while unknown"`
}

// MaintenanceReport is what a job brought: the field of its kind is set.
type MaintenanceReport struct {
	GC     *GCReport     `json:"gc,omitempty"`
	Check  *CheckReport  `json:"check,omitempty"`
	Repair *RepairReport `json:"repair,omitempty"`
	Usage  *StoreUsage   `json:"usage,omitempty"`
	Purge  *PurgeReport  `json:"purge,omitempty"`
}

// PurgeReport is what a purge deleted and what it left.
type PurgeReport struct {
	Deleted      int64 `json:"savesets_deleted"`
	LogicalBytes int64 `json:"logical_bytes" doc:"of the deleted savesets"`
	Left         int64 `json:"savesets_left" doc:"whose time is over, and which are in use or kept"`
}

// GCReport is what a garbage collection did.
type GCReport struct {
	Savesets     int64   `json:"savesets" doc:"savesets that were followed"`
	MarkedChunks int64   `json:"marked_chunks" doc:"chunks and nodes in use"`
	DeadChunks   int64   `json:"dead_chunks" doc:"chunks and nodes that nothing uses"`
	Deleted      int64   `json:"containers_deleted" doc:"containers deleted because nothing in them is used"`
	Copied       int64   `json:"containers_copied" doc:"sparse, small or old ones that were rewritten and deleted"`
	Kept         int64   `json:"containers_kept"`
	Remains      int64   `json:"containers_remains" doc:"of broken runs, kept for the next run for three days"`
	Skipped      int64   `json:"containers_skipped" doc:"in use by runs"`
	FreedBytes   int64   `json:"freed_bytes"`
	CopiedBytes  int64   `json:"copied_bytes"`
	MemoryBytes  int64   `json:"memory_bytes" doc:"of the marks at their highest"`
	MarkSeconds  float64 `json:"mark_seconds"`
	SweepSeconds float64 `json:"sweep_seconds"`
	Damaged      int64   `json:"containers_damaged,omitempty" doc:"left because they do not read"`
	Manifests    int64   `json:"manifests_removed" doc:"of deleted savesets"`
	Resealed     int64   `json:"resealed" doc:"small objects that were moved to the current key"`
	Complete     bool    `json:"complete" doc:"false when its time was up before it was through: the next one goes on"`
}

// CheckReport is what a check found.
type CheckReport struct {
	Containers int64   `json:"containers" doc:"containers read"`
	Frames     int64   `json:"frames"`
	Bytes      int64   `json:"bytes" doc:"bytes read"`
	Objects    int64   `json:"small_objects" doc:"small objects read: manifests, states and so on"`
	Savesets   int64   `json:"savesets" doc:"savesets whose references were followed"`
	References int64   `json:"references" doc:"references followed; a shared directory counts once"`
	Skipped    int64   `json:"skipped,omitempty" doc:"containers that went away meanwhile, or whose key the store does not have"`
	Found      int64   `json:"found" doc:"damaged places that were not on the list before"`
	Healthy    int64   `json:"healthy,omitempty" doc:"chunks that left the list: they read back"`
	Complete   bool    `json:"complete" doc:"the round over all containers ended with it"`
	Seconds    float64 `json:"seconds"`
}

// RepairReport is what a repair did, in chunks and nodes.
type RepairReport struct {
	Again        int64   `json:"again" doc:"read back when they were read once more"`
	Local        int64   `json:"local" doc:"a second copy in the store counts now"`
	Salvaged     int64   `json:"salvaged" doc:"found again in containers whose directory is damaged"`
	Fetched      int64   `json:"fetched" doc:"brought from other stores"`
	FetchedBytes int64   `json:"fetched_bytes"`
	Unreferenced int64   `json:"unreferenced" doc:"no saveset needs them any more"`
	Containers   int64   `json:"containers" doc:"torn containers that were salvaged and are gone"`
	Objects      int64   `json:"small_objects" doc:"small objects that were healed or are not needed any more"`
	Left         int64   `json:"left" doc:"places that are damaged still"`
	Seconds      float64 `json:"seconds"`
}

// MaintenanceFilter selects maintenance jobs; zero fields select all. Newest first.
type MaintenanceFilter struct {
	Kind   MaintenanceKind
	State  RunState
	Before string // cursor: jobs older than this id
	Limit  int    // 1..MaxPage; the server has set it
}

// DamageReport is the damage list: what is damaged, and whom it harms.
type DamageReport struct {
	Places   []Damage         `json:"places" nullable:"false" doc:"what is damaged"`
	Savesets []DamagedSaveset `json:"savesets" nullable:"false" doc:"whom it harms, newest first"`
	Harms    DamageHarm       `json:"harms" enum:"known,unknown" doc:"unknown: the list changed and the savesets are being searched"`
	Hint     string           `json:"hint,omitempty" doc:"what to do about it"`
}

// DamageHarm says whether it is known whom the damage harms.
type DamageHarm string

// What is known of whom damage harms.
const (
	HarmKnown   DamageHarm = "known"
	HarmUnknown DamageHarm = "unknown"
)

// Damage is one damaged place of the store.
type Damage struct {
	Container string    `json:"container,omitempty" doc:"the container; empty for a small object, and where the place is not known"`
	Kind      string    `json:"kind,omitempty" doc:"data: content of files; nodes: directories and lists of chunks"`
	Frame     *int64    `json:"frame,omitempty" doc:"number of the frame in the container; absent: the whole of it"`
	Object    string    `json:"object,omitempty" doc:"the small object that is damaged"`
	Saveset   string    `json:"saveset,omitempty" doc:"whose manifest or state the object is"`
	Digests   []string  `json:"digests,omitempty" doc:"chunks and nodes that have no healthy copy, where they are known"`
	Reason    string    `json:"reason"`
	FoundAt   time.Time `json:"found_at"`
}

// DamagedSaveset is a saveset that does not read back whole.
type DamagedSaveset struct {
	Saveset   string        `json:"saveset"`
	Client    string        `json:"client"`
	Task      string        `json:"task"`
	Level     Level         `json:"level"`
	StartedAt time.Time     `json:"started_at"`
	Object    string        `json:"object,omitempty" doc:"the saveset's own object that is damaged"`
	Files     []DamagedFile `json:"files" nullable:"false" doc:"files that do not read back; a directory stands for all below it"`
	More      int64         `json:"more,omitempty" doc:"files beyond those listed"`
}

// DamagedFile is a file, or a whole directory, that does not read back.
type DamagedFile struct {
	Path    string `json:"path"`
	PathRaw []byte `json:"path_base64,omitempty" doc:"the path's bytes where they are not UTF-8"`
}
