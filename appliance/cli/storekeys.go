package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"coffer/api"
	"coffer/api/client"
)

func (a *app) storeUnlockCmd() *cobra.Command {
	var file, recoveryFile string
	var recovery, create bool
	cmd := &cobra.Command{
		Use: "unlock", Short: "Open the store", Args: cobra.NoArgs,
		Long: `Open the store: with its password or its recovery key, which are asked for where they are needed; without
any where the key file was put back, a disk was mounted, or the store was mended. Backups, restores and the
mount work from then on, as after a start. After five wrong passwords each further one has to wait.

--create makes a store that is not made yet, with a new password, where the configuration says
store.unlock = "password"; for superusers. Without its password, or a recovery key or key file that was made
in time, nobody reads the store.`,
		Example: `  coffer store unlock
  coffer store unlock --password-file /run/secrets/store
  coffer store unlock --recovery-key
  coffer store unlock --create`,
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			s, err := a.unlockStore(ctx, c, unlockHow{file, recoveryFile, recovery || recoveryFile != "", create})
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) { fmt.Fprintf(w, "The store is open; its state is %s.\n", s.State) })
		}),
	}
	cmd.Flags().StringVar(&file, "password-file", "", "file whose first line is the store's password; - is standard input")
	cmd.Flags().BoolVar(&recovery, "recovery-key", false, "open it with the recovery key")
	cmd.Flags().StringVar(&recoveryFile, "recovery-key-file", "", "file whose first line is the recovery key; - is standard input")
	cmd.Flags().BoolVar(&create, "create", false, "make the store with a new password")
	cmd.MarkFlagsMutuallyExclusive("password-file", "recovery-key-file", "recovery-key")
	cmd.MarkFlagsMutuallyExclusive("create", "recovery-key")
	cmd.MarkFlagsMutuallyExclusive("create", "recovery-key-file")
	return cmd
}

// unlockHow is what the flags say.
type unlockHow struct {
	passwordFile, recoveryFile string
	recovery, create           bool
}

// unlockStore asks for a secret only where one is needed.
func (a *app) unlockStore(ctx context.Context, c *client.Client, how unlockHow) (s api.Store, err error) {
	var u api.StoreUnlock
	switch {
	case how.create:
		u.Create = true
		u.Password, err = a.newStorePassword(how.passwordFile)
	case how.recovery:
		u.RecoveryKey, err = a.storeSecret(how.recoveryFile, "Recovery key of the store: ", "--recovery-key-file")
	case how.passwordFile != "":
		u.Password, err = a.secretFile(how.passwordFile)
	default:
		if s, err = c.UnlockStore(ctx, u); api.CodeOf(err) != api.CodeWrongStoreKey {
			return s, err
		}
		u.Password, err = a.storeSecret("", "Password of the store: ", "--password-file")
	}
	if err != nil {
		return s, err
	}
	return c.UnlockStore(ctx, u)
}

// storeSecret reads a secret from a file or asks for it. There is no variable for it: environments are seen by many.
func (a *app) storeSecret(file, question, flag string) (string, error) {
	if file != "" {
		return a.secretFile(file)
	}
	if !a.Terminal {
		return "", api.Errorf(api.CodeBadRequest, "the store needs a secret, and there is no terminal to ask for it").WithHint("give it by %s FILE", flag)
	}
	return a.askHidden(question)
}

func (a *app) newStorePassword(file string) (string, error) {
	if file == "" && !a.Terminal {
		return "", api.Errorf(api.CodeBadRequest, "there is no terminal to ask for a new password").WithHint("give it by a file")
	}
	return a.newPassword(file)
}

func (a *app) storeLockCmd() *cobra.Command {
	return &cobra.Command{
		Use: "lock", Short: "Close the store until it is unlocked", Args: cobra.NoArgs,
		Long: `Close the store: the appliance forgets its keys, backups and restores are refused, and the mount goes, until
'coffer store unlock'. It is refused while runs, maintenance or downloads are active. A store with a key file
is open again after the next start of the appliance.`,
		Example: "  coffer store lock",
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			s, err := c.LockStore(ctx)
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) { fmt.Fprintln(w, "The store is locked.") })
		}),
	}
}

func (a *app) storeKeyCmd() *cobra.Command {
	return a.group("key", "What opens the store, and the keys that its data is under", a.keyListCmd(), a.keyPasswordCmd(), a.keyFileCmd(),
		a.keyRecoveryCmd(), a.keyRemoveCmd(), a.keyRotateCmd(), a.keyDestroyCmd(), a.keyEncryptCmd())
}

func (a *app) showKeys(k api.StoreKeys, err error) error {
	if err != nil {
		return err
	}
	return a.print(k, func(w io.Writer) {
		encrypted := "no"
		if k.Encrypted {
			encrypted = "yes"
		}
		fields(w, "encrypted", encrypted, "opens with", openerWords(k.Openers), "key file", k.KeyFile)
		t := newTable("KEY", "USE", ">CONTAINERS", ">OBJECTS")
		for _, key := range k.Keys {
			use := "old"
			switch {
			case key.Current:
				use = "current"
			case k.Encrypted && !key.Encrypted:
				use = "old, not encrypted"
			case key.Containers == 0 && key.Objects == 0:
				use = "none"
			}
			t.add(strconv.FormatUint(uint64(key.Number), 10), use, count(key.Containers), count(key.Objects))
		}
		t.write(w)
	})
}

// openerWords names openers as the command line does.
func openerWords(openers []api.Opener) string {
	out := make([]string, len(openers))
	for i, o := range openers {
		out[i] = strings.ReplaceAll(string(o), "_", " ")
	}
	return strings.Join(out, ", ")
}

func (a *app) keyListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "Show what opens the store, and what is under which key", Args: cobra.NoArgs,
		Long: `Show what opens the store (password, key file, recovery key) and its numbered keys. New data is under the
current key. What is under an old one is written anew by garbage collection; a key that nothing is under may
be destroyed.`,
		Example: "  coffer store key list\n  coffer store key list --json | jq '.keys[] | select(.current)'",
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			return a.showKeys(c.StoreKeys(ctx))
		}),
	}
}

func (a *app) keyPasswordCmd() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "set-password", Short: "Make a new password open the store", Args: cobra.NoArgs,
		Long: `Make a new password open the store, in the place of the one there is, or beside a key file. Nothing is
written anew but the keyring; the old password opens the store no more. Where a password shall be the only
way in, remove the key file afterwards: the store is then locked after each start of the appliance.`,
		Example: `  coffer store key set-password
  coffer store key set-password --new-password-file /run/secrets/store
  coffer store key remove key-file`,
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			password, err := a.newStorePassword(file)
			if err != nil {
				return err
			}
			return a.showKeys(c.SetStoreOpeners(ctx, api.StoreOpeners{Password: password}))
		}),
	}
	cmd.Flags().StringVar(&file, "new-password-file", "", "file whose first line is the new password; - is standard input")
	return cmd
}

func (a *app) keyFileCmd() *cobra.Command {
	return &cobra.Command{
		Use: "set-file", Short: "Make a new key file open the store", Args: cobra.NoArgs,
		Long: `Make a new key file, where the configuration says (store.key_file), in the place of the one that opens the
store, or beside a password. The old file stays beside it with the ending .old: it opens the store no more,
but copies that were made of the store before. Keep a copy of the new file apart from the machine.`,
		Example: "  coffer store key set-file\n  coffer store key remove password",
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			return a.showKeys(c.SetStoreOpeners(ctx, api.StoreOpeners{KeyFile: true}))
		}),
	}
}

func (a *app) keyRecoveryCmd() *cobra.Command {
	return &cobra.Command{
		Use: "recovery", Short: "Make a recovery key and print it once", Args: cobra.NoArgs,
		Long: `Make a recovery key, which opens the store like a password ('coffer store unlock --recovery-key'), and print
it. It is printed once and kept nowhere: write it down, and keep it away from the appliance. A recovery key
that was made before opens the store no more.`,
		Example: "  coffer store key recovery",
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			k, err := c.NewRecoveryKey(ctx)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.Err, "Write this key down now and keep it away from the appliance: it opens the store, and is shown only once.")
			return a.print(k, func(w io.Writer) { fmt.Fprintln(w, k.RecoveryKey) })
		}),
	}
}

// openersByWord are the names of openers as arguments.
var openersByWord = map[string]api.Opener{"key-file": api.OpenerKeyFile, "password": api.OpenerPassword, "recovery-key": api.OpenerRecoveryKey}

func (a *app) keyRemoveCmd() *cobra.Command {
	words := slices.Sorted(maps.Keys(openersByWord))
	return &cobra.Command{
		Use: "remove key-file|password|recovery-key", Short: "Take away what opens the store", Args: cobra.ExactArgs(1), ValidArgs: words,
		Long: `Take away what opens the store. A key file or a password must remain. A key file that opens the store no
more stays where it is.`,
		Example: "  coffer store key remove key-file\n  coffer store key remove recovery-key",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			o, ok := openersByWord[args[0]]
			if !ok {
				return usagef("%q is none of %s", args[0], strings.Join(words, ", "))
			}
			return a.showKeys(c.SetStoreOpeners(ctx, api.StoreOpeners{Remove: []api.Opener{o}}))
		}),
	}
}

func (a *app) keyRotateCmd() *cobra.Command {
	return &cobra.Command{
		Use: "rotate", Short: "Make a new key for all new data", Args: cobra.NoArgs,
		Long: `Make a new store key. All new data is under it from now on, the small objects of the store a moment later;
garbage collection writes old data anew under it, oldest first. The old key stays until it is destroyed.`,
		Example: "  coffer store key rotate\n  coffer store gc\n  coffer store key list",
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			return a.showKeys(c.RotateStoreKey(ctx))
		}),
	}
}

func (a *app) keyDestroyCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "destroy NUMBER", Short: "Destroy an old key that nothing is under", Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Destroy an old store key for good. It is refused while anything of the store is under it. A copy of the
store that was made when the key was in use, on another disk, say, can not be read without the keyring of
that time.`,
		Example: "  coffer store key destroy 1\n  coffer store key destroy 1 --yes",
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			n, err := strconv.ParseUint(args[0], 10, 32)
			if err != nil || n == 0 {
				return usagef("%q is no number of a key", args[0])
			}
			if err := a.sure(yes, fmt.Sprintf("Destroy store key %d for good?", n)); err != nil {
				return err
			}
			return a.showKeys(c.DestroyStoreKey(ctx, uint32(n)))
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func (a *app) keyEncryptCmd() *cobra.Command {
	var file string
	var keyFile bool
	cmd := &cobra.Command{
		Use: "encrypt", Short: "Switch encryption on", Args: cobra.NoArgs,
		Long: `Switch encryption on for a store that was made without. New data is encrypted from now on, the small
objects of the store a moment later; garbage collection encrypts the rest. It cannot be switched off again.
The store opens with a new password, which is asked for, or with --key-file a new key file.`,
		Example: "  coffer store key encrypt --key-file\n  coffer store key encrypt --password-file /run/secrets/store\n  coffer store gc",
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			o := api.StoreOpeners{KeyFile: keyFile}
			if !keyFile || file != "" {
				password, err := a.newStorePassword(file)
				if err != nil {
					return err
				}
				o.Password = password
			}
			return a.showKeys(c.EncryptStore(ctx, o))
		}),
	}
	cmd.Flags().StringVar(&file, "password-file", "", "file whose first line is the store's password; - is standard input")
	cmd.Flags().BoolVar(&keyFile, "key-file", false, "make a key file where the configuration says")
	return cmd
}
