package appliance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"coffer/api"
	"coffer/appliance/config"
)

// DefaultConfigFile is read where it exists and no other is named.
const DefaultConfigFile = "/etc/coffer/cofferd.toml"

// flags are the command's; empty ones leave what the configuration says.
type flags struct {
	config, data, rest, sms, nbd, mount, level, format string
	check                                              bool
}

// Command is cofferd's command line.
func Command() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "cofferd",
		Short: "Coffer backup appliance",
		Long: `cofferd is the Coffer backup appliance: it takes the data of agents into a deduplicating
store, shows savesets as files, and gives them back.

It works without any configuration: it makes its data directory with a store, a certificate
authority and a first superuser "admin", whose password it writes into DATA/first-password.
It stops in order on SIGTERM or SIGINT: runs end cancelled, mounts go.`,
		Example: `  cofferd                                      # everything below ` + config.DefaultData + `
  cofferd --data /srv/coffer --listen-rest :8443
  cofferd --config /etc/coffer/cofferd.toml --check`,
		Args:          cobra.NoArgs,
		Version:       api.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.config, "config", "", "configuration file (default "+DefaultConfigFile+" where it exists)")
	fl.StringVar(&f.data, "data", "", "data directory (key data; default "+config.DefaultData+")")
	fl.StringVar(&f.rest, "listen-rest", "", "address of the REST API, host:port (key rest.listen; default "+config.DefaultRESTListen+")")
	fl.StringVar(&f.sms, "listen-sms", "", "address that agents connect to, host:port (key sms.listen; default "+config.DefaultSMSListen+")")
	fl.StringVar(&f.nbd, "listen-nbd", "", "address of the NBD server, host:port, or off (key nbd.listen; default "+config.DefaultNBDListen+")")
	fl.StringVar(&f.mount, "mount", "", "directory where savesets are mounted (key mount.dir; default DATA/mnt)")
	fl.StringVar(&f.level, "log-level", "", "debug, info, warn or error (key log.level; default info)")
	fl.StringVar(&f.format, "log-format", "", "text or json (key log.format; default text)")
	fl.BoolVar(&f.check, "check", false, "check the configuration and end")
	cmd.CompletionOptions.HiddenDefaultCmd = true
	return cmd
}

func (f *flags) run(cmd *cobra.Command) error {
	conf, err := f.load()
	if err != nil {
		return err
	}
	if f.check {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "the configuration is valid")
		return err
	}
	opts := Options{Logger: conf.Log.Logger(os.Stderr)}
	if term.IsTerminal(int(os.Stdout.Fd())) {
		opts.Terminal = os.Stdout
	}
	return Run(cmd.Context(), conf, opts)
}

// load joins defaults, configuration file and flags, and validates the result.
func (f *flags) load() (config.Config, error) {
	conf, err := f.file()
	if err != nil {
		return conf, err
	}
	for _, set := range []struct {
		flag string
		key  *string
		path bool
	}{{f.data, &conf.Data, true}, {f.rest, &conf.REST.Listen, false}, {f.sms, &conf.SMS.Listen, false}, {f.nbd, &conf.NBD.Listen, false},
		{f.mount, &conf.Mount.Dir, true}, {f.level, &conf.Log.Level, false}, {f.format, &conf.Log.Format, false}} {
		switch {
		case set.flag == "":
		case set.path:
			if *set.key, err = filepath.Abs(set.flag); err != nil {
				return conf, err
			}
		default:
			*set.key = set.flag
		}
	}
	return conf, conf.Validate()
}

func (f *flags) file() (config.Config, error) {
	if f.config != "" {
		return config.Load(f.config)
	}
	conf, err := config.Load(DefaultConfigFile)
	if errors.Is(err, fs.ErrNotExist) {
		return config.Default(), nil
	}
	return conf, err
}
