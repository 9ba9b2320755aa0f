# What a contributor types. Everything installs what it needs, once.

STAMP := .venv/.setup
DOCS := .venv/.docs
RUN := .venv/bin/
PYTEST := $(RUN)pytest -q --durations 10

.PHONY: setup demo demo-record test test-unit test-model test-sim test-sim-halves test-sim-mutants test-e2e test-e2e-all test-faults test-checkpoint bench bench-quick lint format docs clean
.PHONY: sim-fleet test-fleet test-fleet-all test-page test-page-all test-units test-units-all test-fuzz test-qemu10 test-qemu10-all test-attend test-attend-all test-attend-backports test-libvirt test-libvirt-all test-libvirt-backports test-xen test-xen-all test-systems
.DEFAULT_GOAL := test

setup: $(STAMP)

$(STAMP): scripts/setup pyproject.toml constraints.txt lab/guest_image.py lab/kernel.py
	@scripts/setup

demo: $(STAMP)
	@$(RUN)python -m lab.demo

# What docs/demo.txt and README show of it.
demo-record: $(STAMP)
	@$(RUN)python -m lab.record

# What needs one core two at a time; the simulation's seeds in two halves.
test: $(STAMP)
	@$(MAKE) -j2 --output-sync=target test-sim-halves test-unit test-model lint test-fuzz sim-fleet
	@$(MAKE) test-e2e test-qemu10 test-libvirt test-attend test-fleet test-units test-page

test-unit: $(STAMP)
	$(PYTEST) tests/unit

test-model: $(STAMP)
	$(RUN)python -m tests.model.explore
	$(RUN)python -m tests.model.saves

# The whole engine, simulated: `make test-sim SEEDS=100000 FIRST=50001`; then the planted bugs.
SEEDS := 5000
FIRST := 1
test-sim: $(STAMP)
	$(RUN)python -m tests.sim --seeds $(SEEDS) --first $(FIRST)

test-sim-halves: test-sim-half-1 test-sim-half-2
test-sim-half-%: $(STAMP)
	$(RUN)python -m tests.sim --seeds $$(($(SEEDS) / 2)) --first $$(($(FIRST) + ($* - 1) * $(SEEDS) / 2))

# Campaigns of simulated fleets; `make sim-fleet SIZES="1000 100000"` draws how time and memory grow.
FLEETS := 300
SIZES :=
sim-fleet: $(STAMP)
	$(RUN)python -m tests.simfleet $(if $(SIZES),$(addprefix --size ,$(SIZES)),--seeds $(FLEETS))

test-sim-mutants: $(STAMP)
	$(RUN)python -m tests.sim --mutants

# Mutated inputs for everything that reads what others have written: `make test-fuzz SECONDS=3600 SEED=2`.
SECONDS := 45
SEED := 1
test-fuzz: $(STAMP)
	$(RUN)python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED)

test-e2e: $(STAMP)
	$(PYTEST) tests/e2e --ignore tests/e2e/attend --ignore tests/e2e/fleet --ignore tests/e2e/libvirt --ignore tests/e2e/units --ignore tests/e2e/xen -m "not matrix"

# Those that are much like others as well.
test-e2e-all: $(STAMP)
	$(PYTEST) tests/e2e --ignore tests/e2e/attend --ignore tests/e2e/fleet --ignore tests/e2e/libvirt --ignore tests/e2e/units --ignore tests/e2e/xen

# Entourage's own machines with QEMU of Debian's backports: a few moves on both hosts; then only on
# the target.
MOVES := the_counter_of_the_tpm_counts_on stopped_before_its_memory_moves a_paused_guest_stays_paused
test-qemu10: $(STAMP)
	LAB_BACKPORTS="a b" $(PYTEST) $(addprefix tests/e2e/test_migrate.py::test_,$(MOVES))
	LAB_BACKPORTS="b" $(PYTEST) tests/e2e/test_versions.py

test-qemu10-all: test-qemu10
	LAB_BACKPORTS="a b" $(PYTEST) tests/e2e --ignore tests/e2e/attend --ignore tests/e2e/fleet --ignore tests/e2e/libvirt --ignore tests/e2e/units --ignore tests/e2e/xen

# Each fault at each point, where `make test` tries a core of them; writes docs/faults.md.
test-faults: $(STAMP)
	$(PYTEST) tests/e2e/test_faults.py --all-faults --faults-table docs/faults.md

# Saves, checkpoints and restores, of Entourage's own machines and libvirt's: every case; writes docs/saves.md.
SAVES := tests/e2e/test_save*.py tests/e2e/test_checkpoint*.py tests/e2e/libvirt/test_save*.py
test-checkpoint: $(STAMP)
	$(PYTEST) $(SAVES) --saves-table docs/saves.md

# Entourage beside its peers, an hour or so; docs/benchmarks.md says how to read it.
bench: $(STAMP)
	$(RUN)python -m bench --out var/bench.json --chart var/bench.svg

# The same in a hurry: too few rounds to compare by, enough to see that nothing is badly wrong.
bench-quick: $(STAMP)
	$(RUN)python -m bench --quick --out var/bench-quick.json --chart var/bench-quick.svg

# Two real libvirtd; the core of the cases, and then every one of them.
test-libvirt: $(STAMP)
	$(PYTEST) tests/e2e/libvirt -m "not matrix"

test-libvirt-all: $(STAMP)
	$(PYTEST) tests/e2e/libvirt

# Campaigns on four hosts: a core, and all.
test-fleet: $(STAMP)
	$(PYTEST) tests/e2e/fleet -m "not matrix"

test-fleet-all: $(STAMP)
	$(PYTEST) tests/e2e/fleet

# The package's units under a real systemd, with reboots; a core, and all.
test-units: $(STAMP)
	$(PYTEST) tests/e2e/units -m "not matrix"

test-units-all: $(STAMP)
	$(PYTEST) tests/e2e/units

# The fleet's page in a real Chromium: a core, which is left out where none can be had; and all.
test-page test-page-all: CHROMIUM := command -v chromium >/dev/null \
	|| apt-get -qq -y install --no-install-recommends chromium fonts-dejavu-core >>.cache/setup.log 2>&1
test-page: $(STAMP)
	@$(CHROMIUM) || echo "test-page: apt-get could not install Chromium; what it said is in .cache/setup.log"
	$(PYTEST) tests/page -m "not matrix"

# The documentation's proxies as well; what apt does not have is skipped. None is to run as a service here.
PROXIES := nginx-light libnginx-mod-http-auth-pam caddy
test-page-all: $(STAMP)
	@$(CHROMIUM)
	@for proxy in $(PROXIES); do dpkg -s $$proxy >/dev/null 2>&1 \
		|| RUNLEVEL=1 apt-get -qq -y install --no-install-recommends $$proxy >>.cache/setup.log 2>&1 \
		|| echo "test-page-all: apt-get could not install $$proxy; what it said is in .cache/setup.log"; done
	$(PYTEST) tests/page

# Stock virsh, with an `entourage attend` on each host; the core of the cases, and then every one.
test-attend: $(STAMP)
	$(PYTEST) tests/e2e/attend -m "not matrix"

test-attend-all: $(STAMP)
	$(PYTEST) tests/e2e/attend

# The core with libvirt and QEMU of Debian's backports, on both hosts; `make test-attend-backports
# ATTEND_CASES=` tries every case.
ATTEND_CASES := -m "not matrix"
test-attend-backports: $(STAMP)
	LAB_BACKPORTS="a b" $(PYTEST) tests/e2e/attend $(ATTEND_CASES)

# libvirt and QEMU of Debian's backports, on both hosts; then only on the target.
test-libvirt-backports: $(STAMP)
	LAB_BACKPORTS="a b" $(PYTEST) tests/e2e/libvirt -m "not matrix"
	LAB_BACKPORTS="b" $(PYTEST) tests/e2e/libvirt/test_upgrade.py tests/e2e/libvirt/test_save.py::test_on_the_other_host \
		tests/e2e/libvirt/test_save_sent.py::test_compressed_and_restored_on_the_other_host

# Two nested Xen hosts, booted from Debian's packages; what they boot from is made once.
test-xen: XEN_CASES := -m "not matrix"
test-xen test-xen-all: $(STAMP)
	@command -v mmdebstrap >/dev/null || apt-get -qq -y install --no-install-recommends mmdebstrap
	$(PYTEST) tests/e2e/xen --timeout 1800 $(XEN_CASES)

# The README's two commands on bare systems, each from a fresh clone of what is committed here.
# `make test-systems SYSTEMS=debian-13 COMMANDS="demo test-unit"` tries less.
SYSTEMS :=
COMMANDS := demo test
test-systems: $(STAMP)
	@command -v mmdebstrap >/dev/null || apt-get -qq -y install --no-install-recommends mmdebstrap
	@$(RUN)python -m lab.systems --commands "$(COMMANDS)" $(SYSTEMS)

lint: $(STAMP)
	$(RUN)ruff check
	$(RUN)ruff format --check
	$(RUN)pyright
	$(RUN)lint-imports
	$(RUN)vulture

format: $(STAMP)
	$(RUN)ruff check --fix
	$(RUN)ruff format

# The documentation as a site, var/site/index.html; `.venv/bin/mkdocs serve` shows it as it is written.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(RUN)mkdocs build --strict

$(DOCS): $(STAMP)
	@echo "docs: installing what makes the site into .venv"
	@$(RUN)python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
		--constraint constraints.txt --editable '.[docs]'
	@touch $@

# Labs first: their hosts are processes of the environment that goes away here.
clean:
	@if [ -x $(RUN)python ]; then $(RUN)python -m lab clean; fi
	rm -rf /var/tmp/entourage-guest
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
