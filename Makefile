# Lunar's targets; `make` alone lists them. Each installs the Debian packages that it lacks.
# Needs: Debian 12 or newer, root, Go 1.26 or newer.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO       ?= go
TOOLS    := $(CURDIR)/build/tools
BIN      := $(CURDIR)/build/bin
LAB      := $(CURDIR)/build/lab
LINT_VERSION := v2.15.0
LINT     := $(TOOLS)/golangci-lint-$(LINT_VERSION)
PACKAGES := appliance/e2e/packages.sh
FUZZTIME ?= 10s
FENCE_SEEDS ?= 100000
# The version of github.com/pjd/pjdfstest.
PJDFSTEST ?= 85a8aea
# giouring reaches into package syscall, which the linker refuses without this.
PEER     := -tags giouring -ldflags=-checklinkname=0
# TMPDIR is ours alone, so that what is left behind can be told from what others do here.
SCRATCH   = scratch=$$(mktemp -d /tmp/lunar.XXXXXX) && trap 'rm -rf $$scratch' EXIT && export TMPDIR=$$scratch

.PHONY: deb systemd-test
.PHONY: web-test trace-test image
.PHONY: help build run test bench bench-growth conformance guest-test fence-test demo cluster-test cluster-torture namespace-test networks-test backup-test repair-test generated format vet lint race peer e2e fuzz clean

help: ## list the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

build: ## build lunard and lunarctl into build/bin
	$(GO) build -trimpath -o $(BIN)/ ./appliance/cmd/...

run: build ## serve a volume in a file to a real initiator and check it; ONCE=1 stops there
	@$(PACKAGES) client
	@$(GO) build -o $(LAB)/ ./appliance/e2e/run
	@exec $(LAB)/run -bin $(BIN) -dir $(CURDIR)/build/run $(if $(ONCE),-once) $(if $(ADDRESS),-address $(ADDRESS))

test: generated format vet lint race peer e2e ## everything that CI checks

generated: ## check that generated code is current
	@$(PACKAGES) build
	@sums() { { grep -rlE --include='*.go' --exclude-dir=build '^// Code generated .* DO NOT EDIT' . || true; find bpf -name '*.o'; } | sort | xargs -r sha256sum; }; \
	before=$$(sums); $(GO) generate ./...; \
	diff <(echo "$$before") <(echo "$$(sums)") || { echo 'generated code was stale: commit what go generate made'; exit 1; }

format: ## check gofmt
	@out=$$(gofmt -l appliance datapath iscsi $(wildcard bpf netft)); [ -z "$$out" ] || { echo "gofmt: $$out"; exit 1; }

vet: ## go vet, with and without the peers' tag
	$(GO) vet ./...
	$(GO) vet -tags giouring ./datapath/uring/...

lint: $(LINT) ## golangci-lint
	$(LINT) run ./...

$(LINT):
	GOBIN=$(TOOLS) GOFLAGS= $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv $(TOOLS)/golangci-lint $@

race: ## unit tests with the race detector
	@$(PACKAGES) build client
	@$(SCRATCH); $(GO) test -race -count=1 -timeout 15m $$($(GO) list ./... | grep -v /appliance/e2e); \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch

peer: ## the engine against giouring: differential tests
	@$(SCRATCH); $(GO) test $(PEER) -count=1 -timeout 5m ./datapath/uring/...; \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch

e2e: build ## real clients against a real lunard
	@$(PACKAGES) client
	@$(SCRATCH); LUNAR_BIN=$(BIN) $(GO) test -p 1 -count=1 -timeout 15m ./appliance/e2e/...; \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch

fuzz: ## each fuzz target for FUZZTIME
	@$(GO) list -f '{{.Dir}}' ./... | while read -r dir; do \
	  { grep -ohE '^func Fuzz[A-Za-z0-9_]+' $$dir/*_test.go 2>/dev/null || true; } | while read -r _ target; do \
	    echo "== $${dir#$(CURDIR)/} $$target"; \
	    $(GO) test $$dir -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) </dev/null || exit 1; \
	  done || exit 1; \
	done

conformance: build ## libiscsi's whole iscsi-test-cu; PEER_TARGET=tgtd or gotgt for another target
	@$(PACKAGES) client $(if $(PEER_TARGET),peers)
	@$(if $(PEER_TARGET),$(GO) build -o $(BIN)/ ./appliance/bench/gotgt)
	@$(GO) build -o $(LAB)/ ./appliance/e2e/conformance
	@exec $(LAB)/conformance -bin $(BIN) $(if $(PEER_TARGET),-peer $(PEER_TARGET))

demo: build ## three nodes share a LUN: a move, deaths and cuts under checked I/O, and what each costs; GROWTH=1: many images at rest
	@$(PACKAGES) client
	@$(GO) build -o $(LAB)/ ./appliance/e2e/demo
	@exec $(LAB)/demo -bin $(BIN) -dir $(CURDIR)/build/demo $(if $(GROWTH),-growth)

cluster-test: build ## a cluster's faults one by one with the bars as they are, no slack for other load: the machine's end LUNAR_RUNS=10 times
	@$(PACKAGES) client
	@$(SCRATCH); LUNAR_BIN=$(BIN) LUNAR_RUNS=$${LUNAR_RUNS:-10} $(GO) test -p 1 -count=1 -v -timeout 30m -skip '^TestTorture$$' ./appliance/e2e/cluster ./appliance/e2e/terms; \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch

cluster-torture: build ## LUNAR_MINUTES=10 of random kills, stops, cuts, moves and metadata operations under checked I/O
	@$(PACKAGES) client
	@$(SCRATCH); LUNAR_BIN=$(BIN) LUNAR_MINUTES=$${LUNAR_MINUTES:-10} $(GO) test -count=1 -v -timeout 0 -run '^TestTorture$$' ./appliance/e2e/cluster; \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch

namespace-test: build ## /ClusterStorage in full: pjdfstest (a checkout in LUNAR_PJDFSTEST, else cloned), and a guest migrated live between nodes
	@$(PACKAGES) build client guest
	@$(SCRATCH); suite=$${LUNAR_PJDFSTEST:-$$scratch/pjdfstest}; \
	[ -e $$suite ] || { git clone -q https://github.com/pjd/pjdfstest $$suite && git -C $$suite checkout -q $(PJDFSTEST); }; \
	LUNAR_PJDFSTEST=$$suite LUNAR_BIN=$(BIN) LUNAR_LONG=1 $(GO) test -count=1 -v -timeout 30m -run 'TestPOSIX|TestLiveMigration' ./appliance/e2e/namespace; \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch

networks-test: build ## networks between nodes in full: silent loss, a flapping cable, one IP version, a killed daemon, and what a reconnect costs
	@$(PACKAGES) client
	@$(SCRATCH); LUNAR_BIN=$(BIN) LUNAR_LONG=1 $(GO) test -count=1 -v -timeout 15m ./appliance/e2e/networks; \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch

backup-test: build ## backups by nbdcopy and qemu-img in full: under load, incremental, and beside QEMU's dirty bitmaps
	@$(PACKAGES) client
	@$(SCRATCH); LUNAR_BIN=$(BIN) LUNAR_LONG=1 $(GO) test -count=1 -v -timeout 15m ./appliance/e2e/backup; \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch

repair-test: build ## repair, defragmentation and TRIM under load in full: ten repairs are cut off at random moments
	@$(PACKAGES) client
	@$(SCRATCH); LUNAR_BIN=$(BIN) LUNAR_RUNS=$${LUNAR_RUNS:-10} $(GO) test -count=1 -v -timeout 30m ./appliance/e2e/repair; \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch

bench: build ## the engine and the target beside their peers: a table of ratios
	@$(PACKAGES) client bench peers
	$(GO) build -o $(BIN)/ ./appliance/bench/gotgt
	$(GO) run $(PEER) ./datapath/uring/bench
	$(GO) run ./datapath/uring/bench/network
	@$(GO) build -o $(LAB)/ ./appliance/bench
	@exec appliance/bench/network.sh $(LAB)/bench -bin $(BIN)

bench-growth: build ## the target with 1, 100 and 1,000 LUNs and sessions: IOPS, memory, CPU at rest
	@$(PACKAGES) client bench
	$(GO) run ./appliance/bench -bin $(BIN) -growth

guest-test: build ## a Linux guest booted from a LUN, and its commands against LIO and Lunar
	@$(PACKAGES) client peers
	$(GO) run ./appliance/e2e/guest/run -bin $(BIN) -page appliance/docs/guests.md

fence-test: build ## fencing: the guard over 50 deaths, 100,000 seeds, and a LUN of LIO in a guest under hostile writes
	@$(PACKAGES) client
	@$(SCRATCH); LUNAR_FENCE_RUNS=50 $(GO) test -count=1 -v -run 'TestStoppedCoordinator|TestDeathToShutdown' ./appliance/fence; \
	LUNAR_FENCE_RUNS=50 $(GO) test -count=1 -v ./appliance/e2e/fencing; \
	$(GO) test -count=1 -v -timeout 60m -run '^TestSimulation$$' ./appliance/fence -sim.seeds $(FENCE_SEEDS); \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/ ./appliance/e2e/guest/fenceprobe
	$(GO) run ./appliance/e2e/guest/fencetest -bin $(BIN) -targets LIO

trace-test: build ## a slow disk and a slow network, each seen in its stage; LUNAR_TRACE_ROUNDS=10: what tracing costs
	@$(PACKAGES) client bench
	@$(SCRATCH); LUNAR_BIN=$(BIN) LUNAR_LONG=1 $(GO) test -count=1 -v -timeout 15m ./appliance/e2e/trace; \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch

web-test: build ## the web console in a headless Chromium on three nodes, through a failover; its pictures go to build/web
	@$(PACKAGES) client web
	@$(SCRATCH); LUNAR_BIN=$(BIN) LUNAR_LONG=1 LUNAR_SHOTS=$${LUNAR_SHOTS:-$(CURDIR)/build/web} $(GO) test -count=1 -v -timeout 15m ./appliance/e2e/web; \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch

deb: ## Debian packages in build/deb: both programs, units, manual, completions; what makes a machine an appliance; VERSION=… for another version than the commit's
	@$(PACKAGES) deb
	systemd/deb/build.sh build/deb $(VERSION)
	lintian --allow-root --fail-on error,warning build/deb/lunar_*.deb build/deb/lunar-appliance_*.deb

# The second version is the first one under another number: what is tested is the way from one to the other.
systemd-test: ## the package under a real systemd in a minimal Debian (systemd-nspawn): units, faults, upgrade, purge
	@$(PACKAGES) deb client nspawn
	systemd/deb/build.sh build/deb/first 0.7~1
	@rm -rf build/deb/second && mkdir -p build/deb/second && cd build/deb/second && dpkg-deb -R ../first/lunar_*.deb tree && \
	sed -i 's/^Version: .*/Version: 0.7~2/' tree/DEBIAN/control && dpkg-deb --root-owner-group -Zgzip -b tree ../first/next.deb
	systemd/deb/root.sh build/systemd/root
	@$(SCRATCH); LUNAR_ROOT=$(CURDIR)/build/systemd/root LUNAR_DEB=$$(echo $(CURDIR)/build/deb/first/lunar_*.deb) \
	LUNAR_DEB_NEXT=$(CURDIR)/build/deb/first/next.deb $(GO) test -count=1 -v -timeout 15m ./appliance/e2e/systemd; \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch

image: ## the appliance's bootable image in build/image: disk, update bundle, kernel; VERSION=… for another version than the commit's
	@$(PACKAGES) deb image
	images/build build/image $(VERSION)

image-test: ## a virtual machine of the image in software emulation, managed as a service: some minutes; RUN=TestOne for a part
	@$(PACKAGES) deb image vm
	NO_COMPRESS=1 images/build build/image
	@$(SCRATCH); LUNAR_IMAGE=$$(ls $(CURDIR)/build/image/lunar-*.img | grep -v root.img) \
	$(GO) test -count=1 -v -timeout 60m $(if $(RUN),-run $(RUN)) ./appliance/e2e/image; \
	TMPDIR= appliance/e2e/leftovers.sh $$scratch

clean: ## remove build/
	rm -rf build
