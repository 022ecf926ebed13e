// Package nbd speaks the Network Block Device protocol: a server that serves Devices, and a client that is one.
//
// It owns the protocol and nothing else: what exports there are, who may see them and where their bytes come from is
// behind Exports and Device. It knows no store and no overlay.
package nbd
