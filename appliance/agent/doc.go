// Package agent is the program on a client: it enrols with an appliance, keeps one connection to it, and carries out the
// orders that come over that connection: back up, restore, look whether a source exists.
//
// It owns the state directory (key and certificate, address of the appliance), the connect loop with its back-off, the
// renewal of the certificate, and the life of the orders. It does not own: how trees are read (backup, scan, filter,
// fsmeta), how they are written back (restore), how bytes travel (uplink, sms), nor any decision about levels, retention
// or schedules, which are the appliance's.
//
// The agent keeps nothing that it needs: a client whose state directory is lost enrols again.
package agent
