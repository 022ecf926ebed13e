package maintenance

import (
	"time"

	"coffer/dedup"
)

// Report is what a job brought: the field of its kind is set. It is the JSON in the catalog's column `report`; part of
// its format, and of the API's.
type Report struct {
	GC     *GCReport     `json:"gc,omitempty"`
	Check  *CheckReport  `json:"check,omitempty"`
	Repair *RepairReport `json:"repair,omitempty"`
	Usage  *UsageReport  `json:"usage,omitempty"`
	Purge  *PurgeReport  `json:"purge,omitempty"`
}

// GCReport is dedup.CollectReport and what was resealed before.
type GCReport struct {
	Savesets     int     `json:"savesets"`
	Marked       uint64  `json:"marked_chunks"`
	Dead         uint64  `json:"dead_chunks"`
	Deleted      int     `json:"containers_deleted"`
	Copied       int     `json:"containers_copied"`
	Kept         int     `json:"containers_kept"`
	Remains      int     `json:"containers_remains"`
	Skipped      int     `json:"containers_skipped"`
	Damaged      int     `json:"containers_damaged,omitempty"`
	Manifests    int     `json:"manifests_removed"`
	FreedBytes   int64   `json:"freed_bytes"`
	CopiedBytes  int64   `json:"copied_bytes"`
	MemoryBytes  int64   `json:"memory_bytes"`
	MarkSeconds  float64 `json:"mark_seconds"`
	SweepSeconds float64 `json:"sweep_seconds"`
	Resealed     int     `json:"resealed"`
	Complete     bool    `json:"complete"`
}

func gcReport(r dedup.CollectReport, sealed dedup.ResealReport) *GCReport {
	return &GCReport{Savesets: r.Savesets, Marked: r.Marked, Dead: r.Dead, Deleted: r.Deleted, Copied: r.Copied, Kept: r.Kept,
		Remains: r.Remains, Skipped: r.Skipped, Damaged: r.Damaged, Manifests: r.Manifests, FreedBytes: r.FreedBytes,
		CopiedBytes: r.CopiedBytes, MemoryBytes: r.Memory, MarkSeconds: r.MarkTime.Seconds(), SweepSeconds: r.SweepTime.Seconds(),
		Resealed: sealed.Resealed, Complete: r.Complete}
}

// CheckReport is dedup.CheckReport.
type CheckReport struct {
	Containers int     `json:"containers"`
	Frames     int     `json:"frames"`
	Bytes      int64   `json:"bytes"`
	Objects    int     `json:"small_objects"`
	Savesets   int     `json:"savesets"`
	References int64   `json:"references"`
	Skipped    int     `json:"skipped,omitempty"`
	Found      int     `json:"found"`
	Healthy    int     `json:"healthy,omitempty"`
	Complete   bool    `json:"complete"`
	Seconds    float64 `json:"seconds"`
}

func checkReport(r dedup.CheckReport) *CheckReport {
	return &CheckReport{Containers: r.Containers, Frames: r.Frames, Bytes: r.Bytes, Objects: r.SmallObjects, Savesets: r.Savesets,
		References: r.References, Skipped: r.Skipped, Found: len(r.Found), Healthy: r.Healthy, Complete: r.Complete, Seconds: r.Took.Seconds()}
}

// RepairReport is dedup.HealReport.
type RepairReport struct {
	Again        int     `json:"again"`
	Local        int     `json:"local"`
	Salvaged     int     `json:"salvaged"`
	Fetched      int     `json:"fetched"`
	FetchedBytes int64   `json:"fetched_bytes"`
	Unreferenced int     `json:"unreferenced"`
	Containers   int     `json:"containers"`
	Objects      int     `json:"small_objects"`
	Left         int     `json:"left"`
	Seconds      float64 `json:"seconds"`
}

func repairReport(r dedup.HealReport) *RepairReport {
	return &RepairReport{Again: r.Again, Objects: r.Objects, Local: r.Local, Salvaged: r.Salvaged, Fetched: r.Fetched, FetchedBytes: r.FetchedBytes,
		Unreferenced: r.Unreferenced, Containers: r.Containers, Left: r.Left, Seconds: r.Took.Seconds()}
}

// UsageReport are the sums of dedup.Usage.
type UsageReport struct {
	At               time.Time `json:"at"`
	LogicalBytes     uint64    `json:"logical_bytes"`
	PlainBytes       uint64    `json:"plain_bytes"`
	StoredBytes      uint64    `json:"stored_bytes"`
	SharedBytes      uint64    `json:"shared_bytes"`
	GarbageBytes     uint64    `json:"garbage_bytes"`
	ContainerBytes   uint64    `json:"container_bytes"`
	DedupRatio       float64   `json:"dedup_ratio"`
	CompressionRatio float64   `json:"compression_ratio"`
}

func usageReport(u dedup.Usage) *UsageReport {
	return &UsageReport{At: u.At.UTC(), LogicalBytes: u.Logical, PlainBytes: u.Plain, StoredBytes: u.Stored, SharedBytes: u.Shared,
		GarbageBytes: u.Garbage, ContainerBytes: u.Containers, DedupRatio: u.DedupRatio(), CompressionRatio: u.CompressionRatio()}
}

// PurgeReport is what a purge deleted and what it left.
type PurgeReport struct {
	Deleted      int   `json:"savesets_deleted"`
	LogicalBytes int64 `json:"logical_bytes"` // of the deleted savesets
	Left         int   `json:"savesets_left"` // that might be deleted, and were refused by the store
}
