// Package ingest owns the appliance's end of SMS: the connections of agents, orders to them, and the runs: it verifies
// all that arrives through the store's run, answers what is missing, and lets an agent see nothing but the children of
// nodes that it was shown.
//
// It does not decide what runs, keeps no catalog and issues no certificate: those are behind small interfaces that are
// declared here.
package ingest
