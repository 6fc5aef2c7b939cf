# Two commands do all, on a fresh Debian 12 with root:
#   make drill   set up, then: capture real machines, destroy them, restore them from the ISO, boot
#   make test    set up, then: all tests that fit into a short run
# Everything is built below .cache/ and .venv/; `make clean` removes both.

SHELL := /bin/bash
PYTHON ?= $(firstword $(wildcard /usr/bin/python3.11 /usr/bin/python3) python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup drill test test-all lint clean

help:
	@sed -n 's/^# \?//p;/^$$/q' Makefile

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml .ci/setup
	PYTHON=$(PYTHON) .ci/setup $(VENV)
	touch $@

drill: setup
	$(BIN)/remetal drill --fixture uefi-ext4 --fixture bios-ext4 --report .cache/drill

test: setup
	$(BIN)/pytest -m "not slow"

test-all: setup
	$(BIN)/pytest

lint: setup
	$(BIN)/pytest tests/unit/test_linters.py

clean:
	rm -rf .venv .cache build *.egg-info
