package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// Defaults of the keys of the same name.
const (
	DefaultData       = "/var/lib/coffer"
	DefaultRESTListen = ":11401"
	DefaultSMSListen  = ":11301"
	DefaultMemory     = 384 << 20
)

// Config is cofferd's whole configuration. The toml tags are the keys of the file; part of the product's interface.
type Config struct {
	// Data is the data directory.
	Data string `toml:"data"`
	// Memory is the soft limit that cofferd sets for its own memory without the cache of store.frame_memory, in bytes; 0 leaves
	// the Go runtime's default.
	Memory Size   `toml:"memory"`
	REST   Listen `toml:"rest"`
	SMS    Listen `toml:"sms"`
	NBD    NBD    `toml:"nbd"`
	Mount  Mount  `toml:"mount"`
	Log    Log    `toml:"log"`
	Store  Store  `toml:"store"`

	Maintenance Maintenance `toml:"maintenance"`
}

// Listen is an address that the appliance serves: host:port, an empty host meaning all addresses, port 0 a free one.
type Listen struct {
	Listen string `toml:"listen"`
}

// Mount is where savesets appear as files. Mounting is off until somebody switches it on.
type Mount struct {
	Dir string `toml:"dir"` // empty: <data>/mnt
}

// Log says what is logged and how.
type Log struct {
	Level  string `toml:"level"`  // debug, info, warn, error
	Format string `toml:"format"` // text, json
}

// Store is the deduplicating store of the pool `default`. A size of 0 means the store's own default.
type Store struct {
	Dir            string `toml:"dir"`      // empty: <data>/store
	KeyFile        string `toml:"key_file"` // empty: <data>/keys/store.key; better on another disk
	Unlock         Unlock `toml:"unlock"`   // empty: key_file
	IndexMemory    Size   `toml:"index_memory"`
	LocalityMemory Size   `toml:"locality_memory"`
	FrameMemory    Size   `toml:"frame_memory"` // of decoded data, for mounts and exports; 0: an eighth of the machine's
	NodeMemory     Size   `toml:"node_memory"`
	ContainerSize  Size   `toml:"container_size"`
	// Reserve is the free space that no run may touch.
	Reserve Size `toml:"reserve"`
	// HighWatermark and LowWatermark are percent of the store's file system: a purge of expired savesets starts at the
	// high one, and ends at the low one. A high one of 0: none.
	HighWatermark int `toml:"high_watermark"`
	LowWatermark  int `toml:"low_watermark"`
	// Purge says when expired savesets are deleted: at each NEWDAY, or only where the high watermark is reached.
	Purge Purge `toml:"purge"`
}

// Unlock says what opens a new store, and whether the appliance opens it by itself. Part of the file's format. What opens a
// store that is there says the store: it may be changed at any time (coffer store key).
type Unlock string

// Ways to open the store.
const (
	// UnlockKeyFile: a new store gets a key file, and the appliance opens the store with it at its start.
	UnlockKeyFile Unlock = "key_file"
	// UnlockPassword: a new store is made with a password by coffer store unlock --create, and a store that has a password
	// stays locked at the start until somebody gives it, also where there is a key file.
	UnlockPassword Unlock = "password"
	// UnlockNone: a new store is not encrypted.
	UnlockNone Unlock = "none"
)

// Purge says when expired savesets are deleted. Part of the file's format.
type Purge string

// When expired savesets are deleted.
const (
	PurgeAtNewday    Purge = "newday"
	PurgeAtWatermark Purge = "watermark"
)

// Default watermarks, in percent.
const (
	DefaultHighWatermark = 90
	DefaultLowWatermark  = 80
)

// Default is the configuration of an appliance without a configuration file.
func Default() Config {
	return Config{
		Data:   DefaultData,
		Memory: DefaultMemory,
		REST:   Listen{Listen: DefaultRESTListen},
		SMS:    Listen{Listen: DefaultSMSListen},
		NBD:    DefaultNBD(),
		Log:    Log{Level: "info", Format: "text"},
		Store:  Store{HighWatermark: DefaultHighWatermark, LowWatermark: DefaultLowWatermark, Purge: PurgeAtNewday},

		Maintenance: DefaultMaintenance(),
	}
}

// Load reads the file at path over the defaults. Unknown keys are errors that name the key and the file. The result is
// not validated yet: flags may still change it.
func Load(path string) (Config, error) {
	conf := Default()
	meta, err := toml.DecodeFile(path, &conf)
	if err != nil {
		var perr toml.ParseError
		if errors.As(err, &perr) {
			return conf, fmt.Errorf("read configuration %s: line %d: %s", path, perr.Position.Line, perr.Message)
		}
		return conf, fmt.Errorf("read configuration %s: %w", path, err)
	}
	var errs []error
	for _, key := range meta.Undecoded() {
		errs = append(errs, fmt.Errorf("read configuration %s: unknown key %q", path, key.String()))
	}
	return conf, errors.Join(errs...)
}

// Validate reports every fault at once; each names its key.
func (c Config) Validate() error {
	var errs []error
	fault := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("configuration key %q: %s", key, fmt.Sprintf(format, args...)))
	}
	c.NBD.validate(fault)
	for key, path := range map[string]string{"data": c.Data, "mount.dir": c.Mount.Dir, "store.dir": c.Store.Dir, "store.key_file": c.Store.KeyFile} {
		if path == "" && key != "data" {
			continue
		}
		if !filepath.IsAbs(path) {
			fault(key, "%q is not an absolute path", path)
		}
	}
	if inside(c.KeyFile(), c.StoreDir()) {
		fault("store.key_file", "%s lies inside the store %s: who copies the store would copy its key", c.KeyFile(), c.StoreDir())
	}
	if inside(c.StoreDir(), c.MountDir()) || inside(c.Data, c.MountDir()) {
		fault("mount.dir", "%s would hide the appliance's own data", c.MountDir())
	}
	for key, addr := range map[string]string{"rest.listen": c.REST.Listen, "sms.listen": c.SMS.Listen} {
		if err := checkAddress(addr); err != nil {
			fault(key, "%v", err)
		}
	}
	if c.REST.Listen == c.SMS.Listen && !strings.HasSuffix(c.REST.Listen, ":0") {
		fault("sms.listen", "%q is the address of rest.listen, too", c.SMS.Listen)
	}
	if _, err := c.Log.slogLevel(); err != nil {
		fault("log.level", "%v", err)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		fault("log.format", "%q is neither text nor json", c.Log.Format)
	}
	switch c.Store.Unlock {
	case "", UnlockKeyFile, UnlockPassword, UnlockNone:
	default:
		fault("store.unlock", "%q is none of key_file, password, none", c.Store.Unlock)
	}
	if n := c.Store.ContainerSize; n != 0 && (n < 1<<20 || n > 64<<20) {
		fault("store.container_size", "%s is not between 1 MiB and 64 MiB", n)
	}
	c.Maintenance.validate(fault)
	if h, l := c.Store.HighWatermark, c.Store.LowWatermark; h != 0 && (h < 1 || h > 99) {
		fault("store.high_watermark", "%d is not between 1 and 99 percent", h)
	} else if h != 0 && (l < 0 || l >= h) {
		fault("store.low_watermark", "%d is not below the high watermark, %d", l, h)
	}
	if p := c.Store.Purge; p != PurgeAtNewday && p != PurgeAtWatermark {
		fault("store.purge", "%q is neither %s nor %s", p, PurgeAtNewday, PurgeAtWatermark)
	}
	return sorted(errs)
}

// sorted joins errors in a stable order.
func sorted(errs []error) error {
	sortErrors(errs)
	return errors.Join(errs...)
}

// StoreDir, KeyFile and MountDir are the places in force.
func (c Config) StoreDir() string { return orElse(c.Store.Dir, filepath.Join(c.Data, "store")) }

// KeyFile is where the store's key lies.
func (c Config) KeyFile() string {
	return orElse(c.Store.KeyFile, filepath.Join(c.Data, "keys", "store.key"))
}

// MountDir is where savesets are mounted.
func (c Config) MountDir() string { return orElse(c.Mount.Dir, filepath.Join(c.Data, "mnt")) }

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// inside says whether path is dir or lies below it.
func inside(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

func checkAddress(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not host:port", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q has no port between 0 and 65535", addr)
	} else if n == 0 && port != "0" {
		return fmt.Errorf("%q has no port", addr)
	}
	return nil
}

func (l Log) slogLevel() (slog.Level, error) {
	switch l.Level {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q is none of debug, info, warn, error", l.Level)
}

// Logger makes the logger that writes to w as the configuration says. The configuration must be valid.
func (l Log) Logger(w *os.File) *slog.Logger {
	level, _ := l.slogLevel()
	opts := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
