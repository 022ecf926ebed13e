// Package e2e holds the end to end tests: the real programs as processes, real
// TLS, a real FUSE mount, real trees. It has no code beyond its tests. The
// programs are taken from COFFER_BIN, or built into a scratch directory.
// COFFER_LONG=1 asks for the long forms, COFFER_LONG=short for those that CI has time for.
package e2e
