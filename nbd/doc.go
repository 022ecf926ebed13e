// Package nbd speaks the Network Block Device protocol: a server that serves Devices, and a client that is one.
//
// It owns the protocol and nothing else: what exports there are, who may see them and where their bytes come from is
// behind Exports and Device. It knows no store and no overlay. Types of headers and part of the constants are those of
// github.com/pojntfx/go-nbd/pkg/protocol; its loops are not used.
//
// # Protocol
//
// The specification is proto.md of github.com/NetworkBlockDevice/nbd, folder doc; names in quotes are its sections.
//
// Negotiation ("Fixed newstyle negotiation"). Oldstyle is not spoken; of newstyle without "fixed" only EXPORT_NAME. The
// server answers:
//
//	EXPORT_NAME            the export, or the end of the connection: this option has no errors
//	ABORT                  ACK, then the end
//	LIST                   one SERVER reply per export that the peer may see, then ACK
//	STARTTLS               ACK, then TLS; INVALID when it is on; POLICY when the server has none
//	INFO, GO               INFO replies: EXPORT and BLOCK_SIZE always, NAME and DESCRIPTION on demand; then ACK.
//	                       GO without asking for block sizes gets BLOCK_SIZE_REQD where they bind
//	STRUCTURED_REPLY       ACK; UNSUP with ServerOptions.SimpleReplies
//	LIST_META_CONTEXT,     base:allocation where the query is empty (list), "base:" (list) or the name; of the export that
//	SET_META_CONTEXT       the option names; forgotten when GO names another. INVALID without structured replies
//	anything else          UNSUP, EXTENDED_HEADERS too
//
// TLS ("TLS support"): FORCEDTLS where ServerOptions.RequireTLS says so of the peer, else SELECTIVETLS where there is a
// certificate, else NOTLS. What was agreed before STARTTLS is forgotten, and bytes behind the option in plain end the
// connection: both could be another's.
//
// Transmission flags: READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF (with structured replies),
// CAN_MULTI_CONN (Export.MultiConn), SEND_CACHE (a Cacher). Not offered: ROTATIONAL, RESIZE, FAST_ZERO.
//
// Requests ("Request types"). A request is checked before anything else: command and flags known here and offered, range
// inside the export, aligned to the minimum block, reads and writes within the maximum. A refused write's payload is read
// past, up to twice the maximum.
//
//	EINVAL     unknown command or flag, range (of reads, TRIM, CACHE, BLOCK_STATUS), alignment, length; FLUSH of a range
//	ENOSPC     WRITE or WRITE_ZEROES past the end
//	EPERM      writing commands on a read-only export
//	EOVERFLOW  a read with DF that is too long
//	others     what ErrnoOf finds in a Device's error; the error's text goes to the log, not to the client
//
// Replies ("Structured reply chunk message"). A read is one OFFSET_DATA chunk with DONE; with DF always, without it chunks
// of at most 2 MiB, and from 64 KiB on the device's map is asked and what reads as zero is sent as OFFSET_HOLE. A failure
// is an ERROR chunk behind those that were sent. Success without payload is a simple reply. BLOCK_STATUS reports at most
// 2048 extents, one with REQ_ONE; neighbours differ.
//
// # The server's limits
//
// Every length is checked before memory is taken for it. Options have at most 64 KiB, names 4096 bytes, one negotiation
// 1024 options and 30 s. Payloads live in pooled buffers of powers of two under one budget for all connections, of which
// one connection may hold half (requests up to 64 KiB aside); whoever waits for memory holds none that is not being sent,
// so that the budget delays and never deadlocks. MaxInFlight requests per connection are between header and last byte of
// reply; further ones wait in the socket. A client that stops within a request, or takes nothing of a reply, is dropped
// after WriteTimeout; one that is silent between requests is left alone.
//
// # Concurrency at the server
//
// One goroutine per connection reads requests. While the device answers from memory (pace) it serves requests up to
// 64 KiB itself and sends their replies together when no further request is there to be read; else requests go to workers,
// at most MaxInFlight, made as needed. Replies leave through the outbox: whoever finds nobody writing writes what others
// have put meanwhile, too. Nothing orders requests of one connection but the client's waiting for replies ("Ordering of
// messages and writes"); FLUSH covers what was acknowledged before it began, on all connections of the device.
//
// A connection ends by DISC (all replies are sent first), by EOF or violation (requests in flight are cancelled), by a
// shutdown (no more requests are read, those in flight are finished), or by the context's end (cut). Export.Close comes
// after the last request.
//
// # The client
//
// A call is one request, or several where it is longer than the server's maximum; many run at once. Metadata contexts
// beside base:allocation are asked for by name, as qemu:dirty-bitmap:NAME. The client trusts the server with its answers
// and with nothing else: chunks must lie inside the request and bring no more bytes than were asked for, and a stall in
// the middle of a reply ends the connection.
package nbd
