# Coffer: build, test, show, install. `make` alone prints the targets.

SHELL       := /bin/bash
PREFIX      ?= /usr/local
DESTDIR     ?=
SYSTEMD_DIR ?= /etc/systemd/system
DIR         ?= /usr/share
KEEP        ?=
BIN         := bin
VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS     := -s -w -X coffer/api.Version=$(VERSION)
PROGRAMS    := cofferd coffer coffer-agent

# Go from PATH; else Debian's, which fetches the toolchain that go.mod names.
GO := $(shell command -v go 2>/dev/null || echo /usr/bin/go)
export GOTOOLCHAIN ?= auto
export GOFLAGS += -buildvcs=false

# Packages whose tests run under the race detector: protocol, store, jobs.
RACE  := ./dedup ./dedup/vfs/... ./dedup/blob/... ./dedup/container ./dedup/index ./appliance/sms/... ./appliance/ingest/... \
         ./appliance/jobs/... ./appliance/maintenance ./images/libvirt ./appliance/events ./appliance/agent/uplink/... ./nbd/...
# -race needs a C compiler; the agent is built for all of these.
CROSS := linux/amd64 linux/arm64 windows/amd64 windows/arm64 darwin/amd64 darwin/arm64 freebsd/amd64 freebsd/arm64

# What the targets need beyond Go, as Debian packages.
# A libvirtd with QEMU, a guest that boots in it, and an sshd.
MACHINE_DEPS := libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 openssh-client openssh-server openssh-sftp-server \
                busybox-static syslinux syslinux-common cpio openssl debootstrap ovmf swtpm swtpm-tools
TEST_DEPS  := gcc libc6-dev rsync acl attr e2fsprogs postgresql procps systemd util-linux qemu-utils fdisk ntfs-3g mtools dosfstools xfsprogs nbdkit libnbd-bin python3-libnbd fio $(MACHINE_DEPS)
BENCH_DEPS := restic borgbackup xz-utils fuse3 util-linux python3-pyfuse3
NBD_DEPS   := qemu-utils nbdkit libnbd-bin fio $(if $(findstring -boot,$(BENCH_ARGS)),debootstrap fdisk qemu-system-x86)
NBDLAB_DEPS := qemu-system-x86 qemu-block-extra busybox-static cpio kmod xz-utils nbd-client xfsprogs

.PHONY: help build demo test test-long test-lab test-race test-plain lint cross bench bench-store bench-nbd fuzz install uninstall clean \
        go deps-test deps-bench

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo DIR=/srv/data KEEP=1   another source; leave it running"
	@echo "  make install PREFIX=/usr DESTDIR=/tmp/pkg   for packagers"

build: go ## build cofferd, coffer and coffer-agent into bin/
	@mkdir -p $(BIN)
	@for p in $(PROGRAMS); do CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/$$p ./appliance/cmd/$$p || exit 1; done

demo: build ## the main job on real data: back up, change, back up, mount, restore, compare
	@CGO_ENABLED=0 $(GO) build -o $(BIN)/coffer-demo ./appliance/internal/demo
	@$(BIN)/coffer-demo --bin $(BIN) --source '$(DIR)' $(if $(KEEP),--keep)

test: deps-test test-race test-plain ## the whole test suite (root; needs /dev/fuse)

test-race: go
	COFFER_REQUIRE_LAB=1 COFFER_REQUIRE_FUSE=1 CGO_ENABLED=1 $(GO) test -race -p 2 -timeout 30m $(RACE)

test-plain: go build
	COFFER_REQUIRE_LAB=1 COFFER_REQUIRE_FUSE=1 CGO_ENABLED=0 COFFER_BIN=$(CURDIR)/$(BIN) $(GO) test -p 2 -timeout 30m \
	  $$(CGO_ENABLED=0 $(GO) list ./... | grep -vxF "$$(CGO_ENABLED=0 $(GO) list $(RACE))")

LONG ?= 1
test-long: deps-test build ## crash, model, fuzz, many kills; LONG=short for the form that CI runs
	COFFER_LONG=$(LONG) COFFER_REQUIRE_LAB=1 COFFER_REQUIRE_FUSE=1 CGO_ENABLED=0 COFFER_BIN=$(CURDIR)/$(BIN) \
	  $(GO) test -p 1 -count=1 -timeout 60m $(if $(filter short,$(LONG)),./dedup ./nbd,./dedup/... ./nbd/... ./appliance/agent/... ./appliance/internal/e2e/...)
	@$(MAKE) --no-print-directory fuzz FUZZTIME=$(if $(filter short,$(LONG)),2000x,2m)

FUZZTIME ?= 30s
fuzz: go ## run every fuzz target for FUZZTIME (30s, 10000x)
	@CGO_ENABLED=0 $(GO) list -f '{{.Dir}} {{.ImportPath}}' ./... | while read -r dir pkg; do \
	  for f in $$(cat $$dir/*_test.go 2>/dev/null | sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p'); do \
	    echo "fuzz $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg > /tmp/coffer-fuzz.$$$$ 2>&1 \
	      || { cat /tmp/coffer-fuzz.$$$$; rm -f /tmp/coffer-fuzz.$$$$; exit 1; }; tail -n 2 /tmp/coffer-fuzz.$$$$ | head -n 1; rm -f /tmp/coffer-fuzz.$$$$; done; done

test-lab: deps-test ## the README's commands on a bare Debian 12 (debootstrap), NBD's peers, a Debian guest (about an hour); LAB=short checks the installation only
	@appliance/image/lab.sh $(if $(filter short,$(LAB)),short,full)
ifneq ($(LAB),short)
	$(call need,$(NBDLAB_DEPS))
	@GO='$(GO)' appliance/image/nbdlab.sh
endif

lint: go ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l api appliance dedup fusefs images nbd)" || { gofmt -l api appliance dedup fusefs images nbd; echo 'run gofmt -w on these'; exit 1; }
	CGO_ENABLED=0 $(GO) vet ./...
	CGO_ENABLED=0 $(GO) tool staticcheck ./...

cross: go ## build the agent for every platform it serves
	@for t in $(CROSS); do GOOS=$${t%/*} GOARCH=$${t#*/} CGO_ENABLED=0 $(GO) build -o /dev/null ./appliance/cmd/coffer-agent || exit 1; done
	@echo "coffer-agent builds for $(CROSS)"

bench: build deps-bench ## side by side with restic, borg and cp on a kernel tree and 4 GiB of mixed data
	@CGO_ENABLED=0 $(GO) build -o $(BIN)/coffer-bench ./appliance/internal/bench
	$(BIN)/coffer-bench --bin $(BIN) $(BENCH_ARGS)

bench-store: go ## the store against its goals: scale, throughput, aged data, collection (25 minutes; BENCH_ARGS=-short: two)
	@mkdir -p $(BIN)
	@CGO_ENABLED=0 $(GO) build -o $(BIN)/coffer-bench-store ./dedup/internal/storebench
	$(BIN)/coffer-bench-store $(BENCH_ARGS)

bench-nbd: build ## NBD exports beside qemu-nbd and nbdkit serving the same disk as a raw file (root; BENCH_ARGS=-boot: the boot of a guest, -layer: the protocol alone)
	$(call need,$(NBD_DEPS))
	@CGO_ENABLED=0 $(GO) build -o $(BIN)/coffer-bench-nbd ./appliance/internal/nbdbench
	$(BIN)/coffer-bench-nbd -bin $(BIN) $(BENCH_ARGS)

install: build ## install programs, systemd units and completion below PREFIX
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(SYSTEMD_DIR) $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	install -m 0755 $(addprefix $(BIN)/,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin
	for u in cofferd coffer-agent; do \
	  sed 's|@BIN@|$(PREFIX)/bin|' appliance/image/systemd/$$u.service > $(DESTDIR)$(SYSTEMD_DIR)/$$u.service; \
	  chmod 0644 $(DESTDIR)$(SYSTEMD_DIR)/$$u.service; done
	$(BIN)/coffer completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/coffer
	@if [ -z '$(DESTDIR)' ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo 'Installed. On the appliance: systemctl enable --now cofferd'
	@echo 'On a client: coffer-agent enrol --server APPLIANCE:11301, then systemctl enable --now coffer-agent'

uninstall: ## remove what install put there; data and configuration stay
	@if [ -z '$(DESTDIR)' ] && [ -d /run/systemd/system ]; then systemctl disable --now cofferd coffer-agent 2>/dev/null || true; fi
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(PROGRAMS)) $(DESTDIR)$(SYSTEMD_DIR)/cofferd.service \
	  $(DESTDIR)$(SYSTEMD_DIR)/coffer-agent.service $(DESTDIR)$(PREFIX)/share/bash-completion/completions/coffer
	@echo 'Kept: /var/lib/coffer (data), /etc/coffer (configuration), /var/lib/coffer-agent (the agent'"'"'s key)'

clean: ## remove bin/
	rm -rf $(BIN)

go:
	@command -v '$(GO)' >/dev/null || { \
	  echo 'Go is missing: installing it from Debian backports'; \
	  echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main' \
	    > /etc/apt/sources.list.d/coffer-backports.list; \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
	    -t bookworm-backports golang-go ca-certificates; }

# Only root can install; everybody else is told what is missing.
define need
	@missing=$$(for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  if [ $$(id -u) -ne 0 ]; then echo "missing Debian packages: "$$missing"; install them as root"; exit 1; fi; \
	  apt-get update -q >/dev/null; DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing >/dev/null || exit 1; fi
endef

deps-test:
	$(call need,$(TEST_DEPS))
deps-bench:
	$(call need,$(BENCH_DEPS))
