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
