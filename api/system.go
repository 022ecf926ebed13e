package api

import "time"

// System says what runs and how it is.
type System struct {
	Name      string    `json:"name" doc:"host name of the appliance"`
	Version   string    `json:"version"`
	API       string    `json:"api" doc:"version of the API" example:"v1"`
	StartedAt time.Time `json:"started_at"`
	Time      time.Time `json:"time" doc:"the appliance's clock"`
	CASHA256  string    `json:"ca_sha256" doc:"SHA-256 of the appliance's CA certificate, hex: what clients pin"`
	SMS       string    `json:"sms_address,omitempty" doc:"address that agents connect to"`
}

// StoreState is the health of a store, as DOMAIN's "Store" rule 2.
type StoreState string

// States of a store.
const (
	StoreGreen      StoreState = "green"
	StoreYellow     StoreState = "yellow"
	StoreRed        StoreState = "red"
	StoreUnwritable StoreState = "unwritable"
	StoreLocked     StoreState = "locked" // not open: wrong or missing key, or damaged so that it cannot open
)

// Store is the state of the deduplicating store.
type Store struct {
	Name           string     `json:"name"`
	State          StoreState `json:"state" enum:"green,yellow,red,unwritable,locked"`
	Reason         string     `json:"reason,omitempty" doc:"why it is not green"`
	Path           string     `json:"path" doc:"where it lies on the appliance"`
	Domain         string     `json:"domain" doc:"id of its dedup domain"`
	Encrypted      bool       `json:"encrypted"`
	Savesets       int64      `json:"savesets"`
	Containers     int64      `json:"containers"`
	Chunks         int64      `json:"chunks" doc:"distinct chunks and nodes"`
	LogicalBytes   int64      `json:"logical_bytes" doc:"sum of the sizes of all savesets"`
	StoredBytes    int64      `json:"stored_bytes" doc:"bytes of all containers"`
	FreeBytes      int64      `json:"free_bytes" doc:"free space of its file system"`
	CapacityBytes  int64      `json:"capacity_bytes" doc:"size of its file system"`
	ReserveBytes   int64      `json:"reserve_bytes" doc:"free space that no write may use up"`
	ActiveRuns     int64      `json:"active_runs"`
	IndexBytes     int64      `json:"index_bytes,omitempty" doc:"bytes of the index on disk"`
	DamagedObjects int64      `json:"damaged_objects" doc:"length of the damage list"`
}

// Mount is the state of the file system that shows all savesets on the appliance.
type Mount struct {
	On    bool       `json:"on"`
	Path  string     `json:"path" doc:"mount point on the appliance"`
	Since *time.Time `json:"since,omitempty"`
	Error string     `json:"error,omitempty" doc:"why it is not mounted although it should be"`
}

// MountSpec turns the mount of all savesets on or off.
type MountSpec struct {
	On bool `json:"on"`
}
