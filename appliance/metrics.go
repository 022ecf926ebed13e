package appliance

import (
	"bufio"
	"context"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"coffer/api"
	"coffer/appliance/exports"
	"coffer/appliance/maintenance"
)

// scrapeTimeout bounds what one scrape asks of the catalog.
const scrapeTimeout = 10 * time.Second

// metrics collects the appliance's metrics for Prometheus, anew for every scrape. Names and labels are part of the
// product's interface: coffer_ and the unit last; ARCHITECTURE.md lists them.
type metrics struct {
	*appliance
	handler http.Handler
}

var _ prometheus.Collector = (*metrics)(nil)

func newMetrics(a *appliance) *metrics {
	m := &metrics{appliance: a}
	reg := prometheus.NewRegistry()
	reg.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})) // no two of a name
	m.handler = promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, Timeout: 2 * scrapeTimeout,
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelWarn)})
	return m
}

// Metrics implements server.Machine.
func (m machine) Metrics() http.Handler { return m.metrics.handler }

// Describe implements prometheus.Collector. It names nothing beforehand: what there is depends on the store being open.
func (m *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	ctx, done := context.WithTimeout(context.Background(), scrapeTimeout)
	defer done()
	out := samples{ch}
	out.gauge("coffer_build_info", "Version of the appliance; the value is 1.", 1, "version", api.Version)
	out.gauge("coffer_start_time_seconds", "When the appliance started.", seconds(m.started))
	m.collectStore(ctx, out)
	m.collectEngine(out)
	m.collectUpkeep(ctx, out)
	m.collectRuns(ctx, out)
	m.collectExports(out)
	m.collectMemory(out)
}

// samples sends values.
type samples struct{ ch chan<- prometheus.Metric }

// gauge sends a value that goes up and down; labels are names and values in turn.
func (s samples) gauge(name, help string, v float64, labels ...string) {
	s.send(prometheus.GaugeValue, name, help, v, labels)
}

// counter sends a value that only grows while the appliance runs.
func (s samples) counter(name, help string, v float64, labels ...string) {
	s.send(prometheus.CounterValue, name, help, v, labels)
}

func (s samples) send(kind prometheus.ValueType, name, help string, v float64, labels []string) {
	var names, values []string
	for i := 0; i+1 < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	s.ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, v, values...) // panics for a bad name only
}

// fail makes the scrape tell of an error.
func (s samples) fail(what string, err error) {
	s.ch <- prometheus.NewInvalidMetric(prometheus.NewDesc(what, "Could not be read.", nil, nil), err)
}

func seconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// collectStore sends what GET /store says.
func (m *metrics) collectStore(ctx context.Context, out samples) {
	s, err := storeDesk{m.appliance}.Store(ctx)
	if err != nil {
		out.fail("coffer_store_state", err)
		return
	}
	for _, state := range []api.StoreState{api.StoreGreen, api.StoreYellow, api.StoreRed, api.StoreUnwritable, api.StoreLocked} {
		out.gauge("coffer_store_state", "1 for the state that the store is in, 0 for the others.", truth(s.State == state), "state", string(state))
	}
	out.gauge("coffer_store_logical_bytes", "Sum of the sizes of all savesets.", float64(s.LogicalBytes))
	out.gauge("coffer_store_free_bytes", "Free space of the store's file system.", float64(s.FreeBytes))
	out.gauge("coffer_store_capacity_bytes", "Size of the store's file system.", float64(s.CapacityBytes))
	out.gauge("coffer_store_reserve_bytes", "Free space that no write may use up.", float64(s.ReserveBytes))
	for mark, percent := range map[string]int64{"high": s.Watermarks.High, "low": s.Watermarks.Low} {
		out.gauge("coffer_store_watermark_ratio", "Use of the file system at which a purge starts and ends; 0: none.", float64(percent)/100, "mark", mark)
	}
	if u := s.Usage; u != nil {
		out.gauge("coffer_store_plain_bytes", "Distinct chunks in use before compression, at the last count.", float64(u.PlainBytes))
		out.gauge("coffer_store_garbage_bytes", "Stored bytes that no saveset uses, at the last count.", float64(u.GarbageBytes))
		out.gauge("coffer_store_dedup_ratio", "Logical to plain bytes, at the last count.", u.DedupRatio)
		out.gauge("coffer_store_compression_ratio", "Plain to stored bytes, at the last count.", u.CompressionRatio)
	}
	if s.State == api.StoreLocked {
		return
	}
	out.gauge("coffer_store_savesets", "Savesets in the store.", float64(s.Savesets))
	out.gauge("coffer_store_containers", "Containers in the store.", float64(s.Containers))
	out.gauge("coffer_store_stored_bytes", "Bytes of all containers.", float64(s.StoredBytes))
	out.gauge("coffer_store_damaged_places", "Length of the damage list.", float64(s.DamagedObjects))
	out.gauge("coffer_store_check_round_ratio", "Share of the containers that the present round of check has read.", s.Check.RoundDone)
	for half, t := range map[string]*time.Time{"objects": s.Check.Objects, "pages": s.Check.Pages} {
		if t != nil {
			out.gauge("coffer_store_checked_timestamp_seconds", "When the last complete check of a half ended.", seconds(*t), "half", half)
		}
	}
	if s.Check.DueAt != nil {
		out.gauge("coffer_store_check_due_timestamp_seconds", "When the check becomes, or became, overdue.", seconds(*s.Check.DueAt))
	}
}

// collectEngine sends what the open store counts.
func (m *metrics) collectEngine(out samples) {
	out.gauge("coffer_index_bytes", "Bytes of the index on disk.", float64(m.indexBytes()))
	store, err := m.store.get()
	if err != nil {
		return
	}
	s := store.Stats()
	out.gauge("coffer_store_open_runs", "Runs that write to the store now.", float64(s.Runs))
	out.gauge("coffer_store_open_views", "Savesets that are being read now.", float64(s.Views))
	out.counter("coffer_store_unreadable_objects_total", "Objects that could not be read.", float64(s.Damaged))
	const lookups = "Digests that were looked for, by where the answer came from."
	out.counter("coffer_store_lookups_total", lookups, float64(s.LocalityHits), "from", "locality")
	out.counter("coffer_store_lookups_total", lookups, float64(s.LocalityMisses), "from", "index")
	out.counter("coffer_store_directory_loads_total", "Directories of containers that were loaded.", float64(s.DirectoryLoads))
	out.counter("coffer_store_directory_drops_total", "Directories of containers that were dropped from memory.", float64(s.DirectoryDrops))
	for _, c := range []struct {
		name         string
		hits, misses uint64
		bytes        int64
	}{{"frames", s.FrameHits, s.FrameMisses, s.FrameBytes}, {"nodes", s.NodeHits, s.NodeMisses, s.NodeBytes}} {
		out.counter("coffer_store_cache_hits_total", "Reads that a cache answered.", float64(c.hits), "cache", c.name)
		out.counter("coffer_store_cache_misses_total", "Reads that went to the disk.", float64(c.misses), "cache", c.name)
		out.gauge("coffer_store_cache_bytes", "Memory of a cache.", float64(c.bytes), "cache", c.name)
	}
	out.gauge("coffer_store_cache_bytes", "Memory of a cache.", float64(s.LocalityBytes), "cache", "locality")
}

// collectUpkeep sends how maintenance goes.
func (m *metrics) collectUpkeep(ctx context.Context, out samples) {
	const jobs = "coffer_maintenance_jobs"
	counts, err := m.catalog.MaintenanceCounts(ctx)
	if err != nil {
		out.fail(jobs, err)
		return
	}
	for k, n := range counts {
		out.gauge(jobs, "Recorded maintenance jobs.", float64(n), "kind", k[0], "state", k[1])
	}
	ended, good, err := m.upkeep.Last(ctx)
	if err != nil {
		out.fail("coffer_maintenance_last_end_timestamp_seconds", err)
		return
	}
	for _, i := range ended {
		out.gauge("coffer_maintenance_last_end_timestamp_seconds", "When the last job of a kind ended, however it did.", seconds(i.Ended), "kind", string(i.Kind))
	}
	for _, i := range good {
		out.gauge("coffer_maintenance_last_success_timestamp_seconds", "When the last job of a kind ended success or warning.", seconds(i.Ended), "kind", string(i.Kind))
		out.gauge("coffer_maintenance_last_success_duration_seconds", "How long that job worked.", i.Ended.Sub(i.Started).Seconds(), "kind", string(i.Kind))
	}
	_, busy := m.upkeep.Active()
	out.gauge("coffer_maintenance_active", "1 while a maintenance job works.", truth(busy))
	if next := m.upkeep.Next(); !next.IsZero() {
		out.gauge("coffer_maintenance_next_timestamp_seconds", "When the daily maintenance starts next.", seconds(next))
	}
	m.collectTotals(m.upkeep.Totals(), out)
}

func (m *metrics) collectTotals(t maintenance.Totals, out samples) {
	out.counter("coffer_gc_freed_bytes_total", "Bytes of the containers that garbage collection deleted.", float64(t.Freed))
	out.counter("coffer_gc_copied_bytes_total", "Bytes that garbage collection wrote anew.", float64(t.Copied))
	out.counter("coffer_check_read_bytes_total", "Bytes that checks read.", float64(t.Checked))
	out.counter("coffer_check_found_places_total", "Damaged places that checks found.", float64(t.Found))
	out.counter("coffer_repair_healed_chunks_total", "Chunks that repairs healed.", float64(t.Healed))
}

// collectRuns sends how many runs there are.
func (m *metrics) collectRuns(ctx context.Context, out samples) {
	counts, err := m.catalog.RunCounts(ctx)
	if err != nil {
		out.fail("coffer_runs", err)
		return
	}
	for k, n := range counts {
		out.gauge("coffer_runs", "Recorded runs.", float64(n), "kind", k[0], "state", k[1])
	}
}

// collectExports sends how exports are used.
func (m *metrics) collectExports(out samples) {
	states := map[exports.State]int{exports.Ready: 0}
	for _, i := range m.exports.List() {
		states[i.State]++
		out.gauge("coffer_export_connections", "Open NBD connections.", float64(i.Connections), "export", i.ID)
		out.counter("coffer_export_read_bytes_total", "Bytes that NBD clients read.", float64(i.BytesRead), "export", i.ID)
		out.counter("coffer_export_written_bytes_total", "Bytes that NBD clients wrote.", float64(i.BytesWritten), "export", i.ID)
		if i.Overlay {
			out.gauge("coffer_export_overlay_bytes", "Data that an overlay holds.", float64(i.Usage.DataBytes), "export", i.ID)
			out.gauge("coffer_export_overlay_limit_bytes", "Data that an overlay may hold.", float64(i.Usage.Limit), "export", i.ID)
		}
	}
	for state, n := range states {
		out.gauge("coffer_exports", "Disks that are served over NBD.", float64(n), "state", string(state))
	}
}

// collectMemory sends the part of the resident memory that is the appliance's own: the index maps its files, which counts
// as resident, too, and costs nothing.
func (m *metrics) collectMemory(out samples) {
	if n, err := anonymousMemory(); err == nil {
		out.gauge("coffer_memory_anonymous_bytes", "Resident memory without mapped files.", float64(n))
	}
}

// anonymousMemory reads RssAnon of this process (proc(5)).
func anonymousMemory() (int64, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "RssAnon:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return n << 10, err
		}
	}
	return 0, fs.ErrNotExist
}

// indexBytes is what the index takes on disk. Its files are preallocated and sparse: blocks count, not lengths. What
// goes away meanwhile is left out.
func (a *appliance) indexBytes() (n int64) {
	_ = filepath.WalkDir(a.data.IndexDir(), func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil {
			n += st.Blocks * 512
		}
		return nil
	})
	return n
}
