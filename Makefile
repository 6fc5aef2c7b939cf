# Two commands do all, on a fresh Debian 12 with root:
#   make drill   set up, then: capture real machines, destroy them, restore them from the ISO, boot
#   make test    set up, then: all tests that fit into a short run
#   make drills  set up, then: every shape of machine, and every way its new hardware may differ; hours
# And: make test-all, make torture, make fuzz, make bench, make bench-scale, make bench-backends, make store-ceph, make store-seaweed, make lint.
# Everything is built below .cache/ and .venv/; `make clean` removes both.

SHELL := /bin/bash
PYTHON ?= $(firstword $(wildcard /usr/bin/python3.11 /usr/bin/python3) python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup drill drills test test-all torture bench bench-scale bench-backends store-ceph store-seaweed lint fuzz clean

help:
	@sed -n 's/^# \?//p;/^$$/q' Makefile

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml .ci/setup
	PYTHON=$(PYTHON) .ci/setup $(VENV)
	touch $@

drill: setup
	$(BIN)/remetal drill --fixture uefi-ext4 --fixture bios-ext4 --report .cache/drill

# JOBS=2 runs two drills at a time; RESUME=1 leaves out those that went well in a run that was stopped.
JOBS ?= 1
RESUME ?=
drills: setup
	$(BIN)/remetal drill --matrix vm-fixtures/matrix.toml --report .cache/drills --jobs $(JOBS) $(if $(RESUME),--resume)

# Two processes share the tests, so that what waits costs nothing; a drill's machine has two processors, and more
# would only fight for them.
PYTEST := $(BIN)/pytest --numprocesses=2 --no-loadscope-reorder

test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST)

# Stops capture, prune, check, repair and parity at every file-system operation in turn;
# `.venv/bin/python -m tests.torture --help` tells how to repeat a single point.
torture: setup
	$(BIN)/python -m tests.torture

# remetal beside restic, borg, partclone, casync, qemu-img and fsarchiver, and beside the limit of its parts, on disks of
# 8 GiB made of this machine's files; an hour or two, 50 GiB below .cache/. Results in .cache/bench/report.md.
# SCALE=0.1 PAIRS=1 is a short run; ONLY=full,restore and TOOLS=limit,remetal,restic measure less.
ONLY ?=
TOOLS ?=
bench: PAIRS := 2
bench: setup
	.ci/setup-bench
	$(BIN)/python -m tests.benchmarks.images --scale $(SCALE) --pairs $(PAIRS) $(ONLY:%=--only %) $(TOOLS:%=--tools %)

# Memory and time of opening, look-ups and a prune plan at 16 TiB (below .cache/ 11 GB of input,
# made once, and 13 GB for a time); SCALE=0.02 is a short run.
SCALE ?= 1
bench-scale: setup
	nice $(BIN)/python -m tests.benchmarks.scale --scale $(SCALE)

# The backends beside the clients that belong to the same stores, in turns on loopback; SIDES=ssh for some only.
SIDES ?=
PAIRS ?= 9
bench-backends: setup
	$(BIN)/python -m tests.benchmarks.backends --pairs $(PAIRS) $(SIDES)

# An object store on loopback to try, until Ctrl-C; prints the REPO to use.
store-ceph store-seaweed: setup
	@$(BIN)/python -m tests.stores $(patsubst store-seaweed,seaweedfs,$(patsubst store-ceph,ceph,$@))

lint: setup
	$(BIN)/pytest tests/unit/test_linters.py

# What fuzzing finds is kept below .cache/fuzz and printed; FUZZ_SECONDS is for all targets together.
FUZZ_SECONDS ?= 600

fuzz: setup
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

clean:
	rm -rf .venv .cache build *.egg-info
