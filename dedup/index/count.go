package index

import "expvar"

// filterCounts reads badger's counters of filters: how many were asked, and how many of them did not say "not there".
func filterCounts() (asked, passed int64) {
	m, ok := expvar.Get("badger_hit_num_lsm_bloom_filter").(*expvar.Map)
	if !ok {
		return 0, 0
	}
	get := func(name string) int64 {
		n, _ := m.Get(name).(*expvar.Int)
		if n == nil {
			return 0
		}
		return n.Value()
	}
	asked = get("DoesNotHave_ALL")
	return asked, asked - get("DoesNotHave_HIT")
}
