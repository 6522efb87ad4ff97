# build     bin/dump
# demo      the main job on throwaway clusters: back up, list, recover twice, compare
# test      all checks and tests that run in minutes; installs what it needs
# test-all  the same with the race detector, longer fuzzing and more rounds: may take hours
# bench     the figures of the README: time and memory against named commands
# lint      static checks
# deps      install what tests and demo need
# fuzz      each fuzz target for FUZZTIME

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 1m
TOOLS     = go tool -modfile=.ci/tools.mod
PACKAGES  = ./...

SHELL       := /bin/bash
.SHELLFLAGS := -o pipefail -c

.PHONY: build demo test test-all bench lint deps fuzz

build:
	go build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/dump ./cmd/dump

deps:
	@.ci/deps
	@go mod download

demo: deps build
	@docs/demo.sh

test: deps build lint
	go test -timeout 25m $(PACKAGES)
	@go test -run '^TestFaultTable$$' -v ./dump | grep '^fault table:'
	@$(MAKE) --no-print-directory fuzz FUZZTIME=3s | grep -v '^fuzz: '

test-all: deps build lint
	@.ci/deps all
	go test -timeout 1h -race $(PACKAGES)
	TEST_FULL_SIZE=1 TEST_ROUNDS=10 TEST_SERVERS="10 11 12 13 14 16 17 18" TEST_SHOP_SCALE=1 \
	    go test -timeout 3h -count 1 $(PACKAGES)
	$(MAKE) fuzz

fuzz:
	@for package in $$(go list $(PACKAGES)); do \
	    for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
	        echo "$$package $$target"; \
	        go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$package || exit 1; \
	    done; \
	done

bench: deps build
	@.ci/deps bench
	go run ./bench

lint:
	go vet $(PACKAGES)
	$(TOOLS) staticcheck $(PACKAGES)
	@unformatted=$$($(TOOLS) gofumpt -l .); \
	    if [ -n "$$unformatted" ]; then echo "not formatted (gofumpt -w): $$unformatted"; exit 1; fi
