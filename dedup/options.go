package dedup

import (
	"errors"
	"log/slog"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

// Default budgets: they keep the process far below 512 MiB.
const (
	DefaultIndexMemory    = 128 << 20
	DefaultLocalityMemory = 64 << 20
	DefaultFrameMemory    = 64 << 20
	DefaultNodeMemory     = 32 << 20
	DefaultContainerSize  = 32 << 20
	DefaultReserve        = 256 << 20
)

// Options of a store. Blob, FS, SpoolDir, IndexDir and Key are needed; the zero value of all else means the default.
type Options struct {
	// Blob holds containers, manifests, states and the domain.
	Blob blob.Store
	// FS holds the spool and the lock; FS and Blob on one disk let a sealed container be handed over without a copy.
	FS vfs.FS
	// SpoolDir is on FS; only this store may use it. Made when missing, emptied at Open.
	SpoolDir string
	// IndexDir is on the machine's file system (the index opens its own files). Losing it costs a rebuild, nothing else.
	IndexDir string
	// Key opens the store: keys.KeyFile, keys.Password, or keys.None for a store without encryption.
	Key keys.Source
	// Byte budgets of the index, of loaded container directories, of decoded data frames and of decoded node frames.
	IndexMemory, LocalityMemory, FrameMemory, NodeMemory int64
	// FramesHeld is told, in steps of 16 MiB, how many bytes of decoded data frames the store holds. Whoever limits the memory
	// of the process can add them, so that a large cache does not make the collector work all the time. It must be quick.
	FramesHeld func(bytes int64)
	// Reserve is the free space that no write may touch, in bytes; negative means none.
	Reserve int64
	// IndexReserve and IndexFree are handed to the index: the free space in bytes that its writes leave alone, and the
	// question how much is free. Zero values: the index decides.
	IndexReserve int64
	IndexFree    func(dir string) (int64, error)
	// ContainerSize is the size in bytes at which a container is sealed.
	ContainerSize int64
	// Reindex drops the index at Open and makes it anew from the containers. ReindexProgress, when set, is told how far it
	// is, also when an index that was lost or damaged is made anew.
	Reindex         bool
	ReindexProgress func(Progress)
	// Join is the dedup domain that Create gives the store, whole with its keys: that of a paired store, so that the two can
	// heal each other. Its zero value means a new domain.
	Join Domain
	// Owner names this process in the epoch object: host and pid, say.
	Owner  string
	Logger *slog.Logger
	// Now is the clock of manifests, states and immutability.
	Now func() time.Time
}

// Validate reports every fault at once.
func (o Options) Validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New(what))
		}
	}
	need(o.Blob != nil, "no blob store")
	need(o.FS != nil, "no file system")
	need(o.SpoolDir != "", "no spool directory")
	need(o.IndexDir != "", "no index directory")
	need(o.Key != nil, "no key source")
	need(o.ContainerSize >= 0 && o.ContainerSize <= 256<<20, "container size out of range")
	need(o.IndexMemory >= 0 && o.LocalityMemory >= 0 && o.FrameMemory >= 0 && o.NodeMemory >= 0, "negative memory budget")
	if len(errs) == 0 {
		return nil
	}
	return &Error{Kind: Invalid, Op: "store options", Err: errors.Join(errs...)}
}

func (o Options) withDefaults() Options {
	def := func(p *int64, d int64) {
		if *p == 0 {
			*p = d
		}
	}
	def(&o.IndexMemory, DefaultIndexMemory)
	def(&o.LocalityMemory, DefaultLocalityMemory)
	def(&o.FrameMemory, DefaultFrameMemory)
	def(&o.NodeMemory, DefaultNodeMemory)
	def(&o.ContainerSize, DefaultContainerSize)
	def(&o.Reserve, DefaultReserve)
	o.Reserve = max(o.Reserve, 0)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}
