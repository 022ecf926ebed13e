// Package harness runs the three programs as processes, the way an
// administrator does: a cofferd with its own data directory on free ports, a
// command line that is logged in to it, and agents enrolled with it. The end to
// end tests, the demonstration and the benchmark drive the product through it.
//
// It owns the processes that it starts and nothing else; what it knows of the
// product it knows from the command line and the REST API's JSON types.
package harness
