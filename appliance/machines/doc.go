// Package machines keeps the virtual machines that run from savesets, and those that are restored from them: for each disk an
// export, on a host an agent that starts the machine on them, moves its disks to storage while it runs, or copies them there.
//
// A machine is one file, <data>/machines/<id>.json (FORMAT.md), written before anything is made for it and removed after all
// of that is gone. The exports say which machine they are of. So a start finds what a crash left: a machine that runs is
// attached to its exports again, what was being made or ended is ended. The agent keeps nothing: it is told again whenever it
// connects.
//
// It knows no libvirt and serves no disks: agents do the one, appliance/exports the other.
package machines
