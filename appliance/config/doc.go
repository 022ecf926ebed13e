// Package config owns the configuration of cofferd: the TOML file, its defaults and their validation, the layout of the
// data directory with its version file and lock, and the listeners whose ports a configuration names.
//
// It does not own what the directories hold: the catalog, the store, the authority and the mount each own theirs.
//
// cofferd works with no configuration file at all: Default is complete.
package config
