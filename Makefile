# `make` alone lists the targets. What takes more than a line is a script in scripts/.

PREFIX ?= /usr/local
DESTDIR ?=
# Extra arguments of `slotd serve`, such as `--listen 127.0.0.1:0`.
ARGS ?=
SEED ?=
# How long `make chaos` goes on.
SECONDS ?=
# Which checks of `make test-systemd` count: parts of their names.
CHECKS ?=
# Parts of `make bench-worker`.
WHAT ?=

.DEFAULT_GOAL := help
.PHONY: help run model engine build check test test-systemd sim deaths clients damage chaos bench bench-peers bench-box bench-worker fit-table pull-trials install uninstall clean

help: ## List the targets
	@awk -F ': .*## |: ## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

run: build ## Serve profiles/ on loopback with a small real model (ARGS='…' for slotd serve)
	@scripts/model >/dev/null
	@scripts/run $(ARGS)

model: ## Fetch the small model into the cache once; print its path
	@scripts/model

engine: ## Build the pinned llama-server into the cache once; print its path
	@scripts/engine

build: ## Build target/release/slotd
	@cargo build --release --locked

check: ## The fast checks: formatting, lints, tests without real engines
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo test --locked -p slotd-kernels
	cargo test --locked --lib --test core --test layering --test process --test proxy --test cli \
	  --test daemon -- --skip real::

test: ## Everything, with real engines and a real model; installs what it needs by name
	@scripts/test

test-systemd: ## The units under a real systemd, in an emulated machine (5 minutes; CHECKS='…' names some)
	@scripts/test-systemd $(CHECKS)

sim: ## A simulated day of a box; SEED=… repeats one
	$(if $(SEED),SLOTD_SIM_SEED='$(SEED)') cargo test --locked --no-default-features --test core -- a_day_of_a_box --nocapture

deaths: ## Die in every way this machine has with real engines, check each verdict, write docs/DEATHS.md
	@scripts/deaths

fit-table: ## Predicted against measured memory of real engines, written to docs/MEMORY.md
	@scripts/fit-table

pull-trials: ## Pull 2 GiB from a hub on loopback, killed, cut, lied to, on a full disk; speed beside curl and hf
	@scripts/pull-trials

clients: ## Put unmodified clients through a table of behaviours, write docs/CLIENTS.md
	@scripts/clients

damage: ## Damage a cache of the hub in 27 ways, compare the verdicts, write docs/MODELS.md
	@scripts/damage

chaos: ## Real processes under random faults; SEED=… repeats one, SECONDS=… says how long (60)
	@scripts/chaos '$(SEED)' '$(SECONDS)'

bench: build ## What slotd costs, as ratios measured side by side
	@scripts/bench

bench-peers: ## The endpoint beside nginx, HAProxy and, where found, llama-swap (ROUNDS=… says how often)
	@scripts/bench-peers

bench-box: ## Two of five models at a time, beside llama-server's router; root, 30 minutes (SLOTD_BENCH_BOX=…)
	@scripts/bench-box

bench-worker: ## The worker beside llama-server: speed, memory, streams, schemas (WHAT='…' names some)
	@scripts/bench-worker '$(WHAT)'

install: ## Install what was built below PREFIX (/usr/local) and DESTDIR
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' scripts/install

uninstall: ## Remove exactly what `make install` put there
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' scripts/install --uninstall

clean: ## Remove what cargo built; the cache with models and engines stays
	@cargo clean
