// Package api holds the JSON types of the appliance's REST API, version 1: what api/server answers, what api/client
// decodes, and what the appliance's brain takes and returns behind both.
//
// It owns the vocabulary of the API (names, states, error codes, roles), the paths and the limits, and nothing else: it
// imports no other package of the project and does no I/O.
//
// Conventions, which are part of the API: times are RFC 3339 in UTC; sizes are bytes; durations are seconds as numbers;
// identifiers are opaque strings; lists come in pages (see [Page]); every error is an application/problem+json document
// (see [Error]). File names are bytes on the systems that are backed up: a name that is not UTF-8 is sent with U+FFFD
// in its readable form, and its true bytes in a base64 field beside it.
package api

// Version is the version of the programs of this build; the linker sets it (-X coffer/api.Version=…).
var Version = "unknown"

// APIVersion is the version of the API that this package describes; it is the first part of every path.
const APIVersion = "v1"

// Prefix is what every path of the API begins with.
const Prefix = "/api/" + APIVersion

// DefaultPort is the TCP port of the REST API.
const DefaultPort = 11401

// Limits of the API. Part of the API.
const (
	// MaxPage is the largest number of items in one page of a list.
	MaxPage = 10000
	// DefaultPage is the page size when the caller names none.
	DefaultPage = 1000
	// MaxBody is the largest request body in bytes; nothing that a caller sends is large.
	MaxBody = 1 << 20
)

// Page is one page of a list. Next is empty on the last page; otherwise it is the cursor to send for the next one.
type Page[T any] struct {
	Items []T    `json:"items" doc:"the items of this page, in the list's order" nullable:"false"`
	Next  string `json:"next,omitempty" doc:"cursor of the next page; absent on the last page"`
}
