package api

import "time"

// Export is a disk of a saveset that is served as a block device over NBD.
type Export struct {
	ID      string      `json:"id"`
	Name    string      `json:"name" doc:"what NBD clients ask for; the id will do, too"`
	URIs    []string    `json:"uris" doc:"where the appliance serves it; the host of an address that means all is the appliance's name"`
	Saveset string      `json:"saveset"`
	Client  string      `json:"client" doc:"of the saveset"`
	Task    string      `json:"task" doc:"of the saveset"`
	Disk    string      `json:"disk" doc:"path of the file in the saveset"`
	Bytes   int64       `json:"bytes" doc:"size of the disk"`
	State   ExportState `json:"state" enum:"ready,locked,sealed,committing,broken" doc:"locked: the store is not open; sealed: the key of an encrypted task is needed; committing: its overlay becomes a saveset; broken: it can only be dropped"`
	Problem string      `json:"problem,omitempty" doc:"why it is not ready"`
	Clients []string    `json:"clients,omitempty" doc:"who may see it beside the appliance's own machine: clients, or * for everybody"`
	Purpose string      `json:"purpose,omitempty" doc:"what it is for, for people"`
	Created time.Time   `json:"created_at"`
	By      string      `json:"created_by,omitempty"`
	// Overlay is absent for a read-only export.
	Overlay      *ExportOverlay `json:"overlay,omitempty" doc:"absent: the export is read only"`
	Connections  int            `json:"connections" doc:"open now"`
	BytesRead    int64          `json:"bytes_read" doc:"by clients, since the start of the appliance"`
	BytesWritten int64          `json:"bytes_written" doc:"by clients, since the start of the appliance"`
}

// ExportOverlay is what was written to an export.
type ExportOverlay struct {
	BytesLimit int64 `json:"bytes_limit" doc:"how much data it may hold: beyond it, writes fail with ENOSPC"`
	BytesData  int64 `json:"bytes_data" doc:"data that it holds"`
	BytesZero  int64 `json:"bytes_zero" doc:"of the disk that was zeroed or trimmed; takes no space"`
	BytesMap   int64 `json:"bytes_map" doc:"of its map"`
	Unclean    bool  `json:"unclean,omitempty" doc:"the machine lost power while it was written: what was not flushed may be lost"`
}

// ExportState says whether an export can be used.
type ExportState string

// States of exports.
const (
	ExportReady      ExportState = "ready"
	ExportLocked     ExportState = "locked"
	ExportSealed     ExportState = "sealed"
	ExportCommitting ExportState = "committing"
	ExportBroken     ExportState = "broken"
)

// ExportAnybody among an export's clients lets everybody see it who reaches the appliance's NBD server.
const ExportAnybody = "*"

// ExportSpec makes an export.
type ExportSpec struct {
	Saveset    string   `json:"saveset" minLength:"6" maxLength:"32" doc:"id, or an unambiguous prefix of it"`
	Disk       string   `json:"disk,omitempty" maxLength:"4096" doc:"path of the file in the saveset; default: its only disk image"`
	Overlay    bool     `json:"overlay,omitempty" doc:"take writes, and keep them beside the saveset, which is never changed"`
	BytesLimit int64    `json:"bytes_limit,omitempty" minimum:"0" doc:"with overlay: how much data it may hold; default: the disk's size"`
	Clients    []string `json:"clients,omitempty" maxItems:"1000" doc:"clients that may see it; * for everybody; the appliance's own machine always may"`
	Purpose    string   `json:"purpose,omitempty" maxLength:"256" doc:"what it is for, for people"`
}
