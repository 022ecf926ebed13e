package sms

import "testing"

// A sealed backup is an order of a kind of its own: an agent that cannot seal must not take it for an open one.
func TestSealedOrders(t *testing.T) {
	open, sealed := &BackupOrder{}, &BackupOrder{Seal: &Sealing{KeyID: "k"}}
	for _, c := range []struct {
		kind  OrderKind
		order *BackupOrder
		ok    bool
	}{{OrderBackup, open, true}, {OrderBackup, sealed, false}, {OrderSealedBackup, sealed, true}, {OrderSealedBackup, open, false}, {OrderSealedBackup, nil, false}} {
		if err := (Order{Kind: c.kind, Backup: c.order}).Validate(); (err == nil) != c.ok {
			t.Errorf("%s with %+v: %v", c.kind, c.order, err)
		}
	}
}
