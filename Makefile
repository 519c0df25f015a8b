# Thin front door: every target is a script that can be run by itself.

.DEFAULT_GOAL := all
.PHONY: all help stock demo bench bench-matrix bench-memhog bench-jbb report check policy-sim record-trace check-core check-crash check-kill9 check-powercut check-series fuzz \
	refresh-patches soak install clean distclean
.PHONY: check-qemu check-through check-hang check-mutants check-all

all:
	@scripts/build

help:
	@echo 'make                        set up and build (QEMU_SRC=DIR: from this source)'
	@echo 'make demo [RUNS=n]          show what it does, on this machine'
	@echo 'make check [CHECK=pattern]  all tests, or those whose name has the pattern'
	@echo 'make check-core             unit tests of CORE under ASan and UBSan (seconds)'
	@echo 'make fuzz TIME=900          fuzz the decoders of a store'"'"'s metadata, and its opening'
	@echo 'make check-crash [STATES=n]  crash enumeration for the journal: a million states'
	@echo 'make check-kill9 [N=200]    kill QEMU N times and look for lost data'
	@echo 'make check-powercut [STATES=n] [ATTACH=1]  power cuts on real files, replayed'
	@echo 'make check-qemu             QEMU'"'"'s own tests, here and on unpatched QEMU'
	@echo 'make check-through          QEMU'"'"'s iotests with every image behind a bsst node'
	@echo 'make check-hang [SCALE=n]   disturb a guest that pages, and look for hangs'
	@echo 'make check-mutants          break each invariant, and see a test fail'
	@echo 'make check-all              all of these; hours'
	@echo 'make check-series           patches against 10.0 and 10.2, and checkpatch'
	@echo 'make refresh-patches        write patches/ from the commits in qemu/'
	@echo 'make bench                  ours beside kernel swap: the core, in an hour'
	@echo 'make bench-matrix           the whole matrix; make bench-memhog, bench-jbb: one workload'
	@echo '                            (MATRIX="--list": options of bench/matrix)'
	@echo 'make report                 draw that: build/bench/report/index.html'
	@echo 'make bench-fault            page faults and swap-out beside kernel swap and fio'
	@echo 'make bench-write-prepare    the paper'"'"'s write-prepare figure, without a guest'
	@echo 'make bench-fsync            what an fsync costs with bsst=on'
	@echo 'make bench-recovery         opening a store with ten million indirections'
	@echo 'make bench-no-pressure      what bsst costs where it is not needed'
	@echo 'make bench-defrag           what defragmentation gives back, on this disk and a slow one'
	@echo 'make bench-defrag-sim       what defragmentation would move, in recorded histories'
	@echo 'make soak N=20              that many demos in a row'
	@echo 'make soak HOURS=n           kills, hangs, errors, demos in random order; a table'
	@echo 'make policy-sim             compare ways to choose pages, on records of guests'
	@echo 'make record-trace [OUT=f]   record what a guest does to its pages'
	@echo 'make stock                  unpatched QEMU for comparison, in build/stock/'
	@echo 'make SANITIZE=address       build with ASan and UBSan, in build-asan/ (thread: build-tsan/)'
	@echo 'make install PREFIX=DIR     install (default /usr/local; DESTDIR is honoured)'
	@echo 'make clean                  remove what was built; keeps qemu/ and downloads'
	@echo 'make distclean              remove all that make created'

stock:
	@scripts/build --stock

demo: all stock
	@demo/run-demo $(if $(RUNS),--runs=$(RUNS))

check:
	@scripts/check $(EXTRA)

policy-sim:
	@tests/policy-sim/run

record-trace:
	@tests/policy-sim/record $(or $(OUT),build-plugins/guest-192M.rec.xz)

check-core:
	@scripts/check-core

check-crash: all
	@scripts/check-crash $(or $(STATES),1000000) $(SEED)

check-kill9: all
	@tests/kill9/run-kill9 $(or $(N),20) $(if $(SEED),--seed $(SEED))

check-powercut: all
	@tests/powercut/run-powercut $(or $(STATES),2000) $(if $(SEED),--seed $(SEED)) \
		$(if $(ATTACH),--attach)

check-qemu:
	@tests/suites/run-qemu $(SUITES)

check-through:
	@tests/suites/run-through $(SUITES)

check-hang: all
	@tests/hang/run-hang --scale $(or $(SCALE),1) $(if $(SEED),--seed $(SEED)) $(CASES)

check-mutants: all
	@tests/mutants/run $(MUTANTS)

check-all:
	@scripts/check-all

check-series:
	@scripts/check-series

fuzz:
	@scripts/fuzz $(or $(TIME),60)

refresh-patches:
	@scripts/refresh-patches

bench: all stock
	@scripts/packages slow-disk
	@bench/matrix $(MATRIX)

bench-matrix: all stock
	@scripts/packages slow-disk
	@bench/matrix --all $(MATRIX)

bench-memhog bench-jbb: bench-%: all stock
	@scripts/packages slow-disk
	@bench/matrix --all --workloads $* $(MATRIX)

bench-fault: stock

bench-%: all
	@bench/$*

report:
	@bench/report

soak: all stock
	@$(if $(HOURS),tests/soak/run-soak $(HOURS),demo/run-soak $(or $(N),20))

install: all
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' scripts/install

clean:
	@scripts/clean

distclean:
	@scripts/clean --all
