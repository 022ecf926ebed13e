// Package coffer is empty: it keeps the pinned modules until their first user exists.
package coffer
import (
 _ "github.com/BurntSushi/toml"
 _ "github.com/danielgtaylor/huma/v2"
 _ "github.com/danielgtaylor/huma/v2/adapters/humagin"
 _ "github.com/dgraph-io/badger/v4"
 _ "github.com/gin-gonic/gin"
 _ "github.com/hanwen/go-fuse/v2/fs"
 _ "github.com/klauspost/compress/zstd"
 _ "github.com/pkg/xattr"
 _ "github.com/pressly/goose/v3"
 _ "github.com/restic/chunker"
 _ "github.com/spf13/cobra"
 _ "github.com/vbauerster/mpb/v8"
 _ "github.com/zeebo/blake3"
 _ "golang.org/x/crypto/argon2"
 _ "golang.org/x/sync/errgroup"
 _ "golang.org/x/sys/unix"
 _ "golang.org/x/term"
 _ "modernc.org/sqlite"
)
