# `make help` lists what there is. Nothing has to be installed beforehand but
# Go, make, git and, for the tests, a C compiler and mkfs.ext4.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

SCRIPTS := tools/scripts
BIN     := $(CURDIR)/bin

# Programs are found by their main.go.
SERVICES := $(patsubst %/main.go,./%,$(wildcard services/*/main.go))
GUESTS   := $(patsubst %/main.go,./%,$(wildcard guest/*/main.go))

# Modules with hand-written code; proto holds generated code only.
MODULES      := $(foreach module,. sdk/go tests,$(if $(shell find $(module) -name '*.go' -print -quit),$(module)))
LINT_MODULES := $(MODULES) tools

# What is stamped into the programs. All of them carry the version of gVisor
# they were built with, because a sandbox must be driven, checkpointed and
# restored by equal versions.
VERSION = $(shell git describe --tags --always --dirty 2>/dev/null || echo unversioned)
GVISOR  = $(shell go list -m -f '{{.Version}}' gvisor.dev/gvisor)
STAMP   = -s -w -X $(PROGRAM_VERSION)=$(VERSION) -X gvisor.dev/gvisor/runsc/version.version=$(GVISOR)
PROGRAM_VERSION := github.com/sirocco-run/sirocco/pkg/program.Version

# The same flags for every program, so that each package is compiled once.
# VERSION comes from git above and not from -buildvcs, which fails where the
# clone belongs to another user.
GOBUILD = CGO_ENABLED=0 go build -buildvcs=false -trimpath -ldflags '$(STAMP)'

# gVisor's own program, 80 MB and one to two minutes of work, kept between
# clones by its version.
KEEP := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sirocco

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: preflight preflight-root preflight-test
preflight:
	@$(SCRIPTS)/preflight.sh
preflight-root:
	@$(SCRIPTS)/preflight.sh root
preflight-test:
	@$(SCRIPTS)/preflight.sh root race disks

.PHONY: build
build: preflight ## Build every program into bin/.
	@mkdir -p "$(BIN)/guest" "$(KEEP)"
	@$(if $(GUESTS),$(GOBUILD) -o "$(BIN)/guest/" $(GUESTS))
	@$(GOBUILD) -tags sirocco_net -o "$(BIN)/guest/base-net" ./guest/base
	@$(if $(SERVICES),$(GOBUILD) -o "$(BIN)/" $(SERVICES))
	@[[ -e "$(KEEP)/runsc" ]] || echo "building gVisor too (once, a minute or two)"
	@CGO_ENABLED=0 go run -buildvcs=false -trimpath ./pkg/runtime/gvisor/cmd/buildrunsc "$(KEEP)/runsc"
	@cmp -s "$(KEEP)/runsc" "$(BIN)/runsc" || { cp "$(KEEP)/runsc" "$(BIN)/runsc.new" && mv "$(BIN)/runsc.new" "$(BIN)/runsc"; }
	@echo "built $(VERSION) in bin/"

.PHONY: run
run: preflight-root build ## Build, then start the whole platform on this machine (ARGS="--nodes 3").
	@exec "$(BIN)/sirocco" up $(ARGS)

.PHONY: test
test: preflight-test build ## Run every test that CI runs, with the race detector; needs root.
	@TEST_FLAGS="$(TEST_FLAGS)" $(SCRIPTS)/test.sh $(MODULES)

.PHONY: test-short
test-short: preflight ## Run the tests of some packages, without the race detector: make test-short PKG=./pkg/record/...
	@SIROCCO_BIN="$(BIN)" SIROCCO_RUNSC="$(BIN)/runsc" go test $(TEST_FLAGS) $(or $(PKG),./pkg/...)

.PHONY: lint
lint: preflight lint-go lint-imports lint-proto lint-fresh lint-vuln ## Check code, contract, generated code and known vulnerabilities.

.PHONY: lint-go
lint-go: preflight ## Run golangci-lint over every module.
	@lint=$$($(SCRIPTS)/tool.sh tools/golangci golangci-lint); \
	failed=0; \
	for module in $(LINT_MODULES); do \
		if [[ $$module == tools ]]; then export GOWORK=off; fi; \
		echo "golangci-lint: $$module"; \
		(cd "$$module" && CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false" "$$lint" run --config "$(CURDIR)/.golangci.yml" ./...) || failed=1; \
	done; \
	exit "$$failed"

.PHONY: lint-imports
lint-imports: preflight ## Check what packages depend on, however indirectly.
	@$(SCRIPTS)/imports.sh

.PHONY: lint-proto
lint-proto: preflight ## Check the contract's style, and that it breaks no client.
	@$(SCRIPTS)/googleapis.sh
	@buf=$$($(SCRIPTS)/tool.sh tools/buf buf); "$$buf" lint; echo "contract: style is fine"
	@$(SCRIPTS)/breaking.sh

.PHONY: lint-fresh
lint-fresh: preflight ## Check that the generated code is what make generate makes.
	@$(SCRIPTS)/fresh.sh
	@CGO_ENABLED=0 go run -buildvcs=false -trimpath ./docs/gen --check

.PHONY: lint-vuln
lint-vuln: preflight ## Check for known vulnerabilities (GOVULNDB=<another database>).
	@$(SCRIPTS)/vuln.sh proto $(LINT_MODULES)

.PHONY: generate
generate: preflight ## Generate the Go code and the OpenAPI document from proto/, and the pages about flags.
	@$(SCRIPTS)/generate.sh
	@$(MAKE) docs-config

.PHONY: docs-config
docs-config: preflight ## Write docs/configuration.md and docs/cli.md from the programs' flags.
	@CGO_ENABLED=0 go run -buildvcs=false -trimpath ./docs/gen

.PHONY: fuzz
fuzz: preflight ## Run each fuzz target for FUZZTIME (default 10s).
	@FUZZTIME="$(FUZZTIME)" $(SCRIPTS)/fuzz.sh $(MODULES)

.PHONY: simulate
simulate: preflight ## Run the simulation and the property tests with SEEDS histories each (default 10000), or show one: SEED=<seed>.
	@$(SCRIPTS)/simulate.sh $(if $(SEED),seed $(SEED),$(or $(SEEDS),10000) $(MODULES))

# The bus killed and hanging at the same time, and hundreds of sandboxes used up.
.PHONY: soak
soak: preflight-root build ## Take the bus away for AWAY (default 16m), then use up CYCLES sandboxes (default 300).
	@cd tests && SIROCCO_BIN="$(BIN)" SIROCCO_AWAY="$(or $(AWAY),16m)" SIROCCO_CYCLES="$(or $(CYCLES),300)" \
		go test -count=1 -timeout 0 -v -run '^(TestBusAway|TestUpIsFlat)$$' ./chaos

# A failing run prints its seed.
.PHONY: chaos
chaos: preflight-root build ## Kill, stop, cut off and slow down parts of a region under load, ROUNDS times (default 100; SEED=<one to repeat>, FAULTS=<part of a name>).
	@$(SCRIPTS)/preflight.sh disks
	@cd tests && SIROCCO_BIN="$(BIN)" SIROCCO_CHAOS_ROUNDS="$(or $(ROUNDS),100)" SIROCCO_CHAOS_SEED="$(SEED)" SIROCCO_CHAOS_FAULTS="$(FAULTS)" \
		go test -count=1 -timeout 0 -v -run '^(TestClusterUnderLoad|TestServicesKilledUnderLoad)$$' ./chaos

.PHONY: bench
bench: preflight-root build ## Measure a short form of everything on this machine, into docs/benchmarks/ (six minutes).
	@$(SCRIPTS)/bench.sh docs/benchmarks

.PHONY: bench-docker
bench-docker: ## Measure `docker run` on runc and on runsc beside it; says what it needs (N=<how many>).
	@$(SCRIPTS)/bench-docker.sh docs/benchmarks $(or $(N),30)

# Images hold what `make build` makes, the NATS server of go.mod, and a program for
# health checks.
IMAGES := $(CURDIR)/.cache/images

.PHONY: images
images: preflight build ## Build the container images, from this repository alone (needs a Docker engine).
	@rm -rf "$(IMAGES)" && mkdir -p "$(IMAGES)/bin/guest"
	@cp $(patsubst ./services/%,"$(BIN)/%",$(SERVICES)) "$(BIN)/runsc" "$(IMAGES)/bin/"
	@cp "$(BIN)"/guest/* "$(IMAGES)/bin/guest/"
	@$(GOBUILD) -o "$(IMAGES)/bin/" github.com/nats-io/nats-server/v2 ./deployments/docker/pod
	@$(SCRIPTS)/images.sh "$(IMAGES)/bin" "$(VERSION)"

.PHONY: compose-up compose-down compose-test
compose-up: images ## Start two regions in containers, and say how to get in (PROFILES=telemetry).
	@$(SCRIPTS)/compose.sh up
compose-down: ## End their sandboxes, then the regions (VOLUMES=1: their state too).
	@$(SCRIPTS)/compose.sh down $(if $(VOLUMES),volumes)
compose-test: preflight-root images ## Test two regions in containers, killing some and cutting their networks.
	@cd tests && SIROCCO_BIN="$(BIN)" go test -tags compose -count=1 -timeout 30m -v ./compose

.PHONY: clean
clean: ## Remove what the build made (Go's caches and the kept gVisor stay).
	@rm -rf "$(BIN)" .cache
