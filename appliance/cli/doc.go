// Package cli is the command line of the appliance, the program coffer: commands, tables, progress bars, sessions.
//
// It knows the REST API by api/client and nothing else of the appliance; what it can do, any other program can do.
package cli
