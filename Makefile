# CloudREST: the jobs. "make" alone explains them.

# Pinned: a new release of a linter must not break an old commit.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.7.0
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.1.4

# No file in git may be larger: no binaries, no captures.
MAX_FILE_KB = 600

FUZZTIME    = 20s
TESTTIMEOUT = 25m
PKG         = ./...

# What build tags leave out of the gateway (firmware/internal/features).
FEATURES = board cache http2 mdns page provision tether
GATEWAY  = ./firmware/... ./tether/http1
DEPS        = on

.PHONY: help demo test e2e bench memory sizes deps lint vuln fuzz build piimage test-image test-malta test-packages clean

help:
	@echo 'make demo          build everything and watch the whole story on this machine'
	@echo '                   ONCE=1 stop at the end, fail if a step failed; LAN=1 announce on the real LAN'
	@echo 'make test          all tests, end to end too; installs what they need first (DEPS=off: does not)'
	@echo '                   PKG=./tether/... only some'
	@echo 'make e2e           only the end-to-end tests of the built programs, with their log'
	@echo 'make bench         measure against nginx and a plain Go proxy, print tables (tools/bench/README.md)'
	@echo '                   BENCH="lan idle" only some; BENCHFLAGS=--json for programs'
	@echo 'make memory        what the gateway takes on boards of 32 and 64 MB, idle and under load; fails above the budget'
	@echo 'make sizes         what it takes on flash: the .ipk as released and as squashfs; fails above the budget'
	@echo 'make lint          gofmt, go vet, staticcheck, shellcheck, file sizes'
	@echo 'make vuln          known vulnerabilities in dependencies (needs https://vuln.go.dev)'
	@echo 'make fuzz          every fuzz target in turn, FUZZTIME=20s each'
	@echo 'make build         programs for this machine, into bin/'
	@echo './build.sh         static programs for all boards, into dist/ (--help tells more)'
	@echo 'make piimage       images/cloudrest-pi.img, an SD card image for Raspberry Pi 3, 4, 5 and Zero 2 W (tools/cmd/piimage/README.md)'
	@echo '                   PIFLAGS="--board zero-w" images/cloudrest-pi-zero-w.img, for the Zero W, Zero and 1 B+'
	@echo '                   PIFLAGS="--relay wss://relay.example --origin-binary ./myservice"'
	@echo 'make test-image    build such images, boot them in QEMU, update them, cut their power (15 minutes)'
	@echo 'make test-malta    run the OpenWrt package on an emulated MIPS router: flash, power cuts, memory (10 minutes)'
	@echo 'make test-packages install the .deb packages on a Debian that the real systemd boots, upgrade and purge them (3 minutes)'
	@echo 'make deps          install the Debian packages that tests and benchmarks use'
	@echo 'make clean         remove bin/, dist/ and .demo/'

build:
	@./build.sh --host

demo: build
	@bin/cloudrest demo $(if $(filter-out 0,$(ONCE)),--once) $(if $(filter-out 0,$(LAN)),--lan)

deps:
	@tools/deps.sh

# -count=1: the test cache cannot see what the tests build and run.
test:
	@$(if $(filter off,$(DEPS)),true,tools/deps.sh test)
	@race=; if [ "$$(go env CGO_ENABLED)" = 1 ] && command -v "$$(go env CC)" >/dev/null; then race=-race; \
	else echo 'test: without the race detector: it needs cgo and a C compiler (make deps)'; fi; \
	echo go test $$race -count=1 -timeout $(TESTTIMEOUT) $(PKG); \
	go test $$race -count=1 -timeout $(TESTTIMEOUT) $(PKG)
	@[ '$(PKG)' != ./... ] || for m in tools/pack tools/h2conformance; do \
	echo "test: $$m, a module of its own"; (cd $$m && go test -count=1 -timeout $(TESTTIMEOUT) ./...) || exit 1; done
	@[ '$(PKG)' != ./... ] || { echo 'test: tools/cmd/piimage, a module of its own: all but what builds and boots images'; \
	cd tools/cmd/piimage && go test -count=1 -timeout $(TESTTIMEOUT) ./update/... ./zerodisk/... ./onboard/...; }

e2e:
	@$(if $(filter off,$(DEPS)),true,tools/deps.sh test)
	go test -count=1 -timeout $(TESTTIMEOUT) -v ./tools/e2e

# One program per folder of tools/bench, in the order of their names, one after the other:
# they share the machine with nothing else. What they print besides the tables goes to
# standard error, so that BENCHFLAGS=--json gives JSON only.
bench:
	@$(if $(filter off,$(DEPS)),true,tools/deps.sh bench) >&2
	@set -e; mkdir -p bin; for p in $$(go list -f '{{if eq .Name "main"}}{{.Dir}}{{end}}' './tools/bench/...' | sort); do \
		name="$$(basename "$$p")"; [ "$$(dirname "$$p")" = "$(CURDIR)/tools/bench" ] || continue; \
		[ -z '$(BENCH)' ] || case ' $(BENCH) ' in *" $$name "*) ;; *) continue;; esac; \
		echo "== bench $$name" >&2; go build -o "bin/bench-$$name" "$$p"; "bin/bench-$$name" $(BENCHFLAGS); done

# The memory of a 32-bit program is what counts: see tools/cmd/memory.
memory:
	@./build.sh --memory
	@go build -o bin/memory ./tools/cmd/memory
	@if bin/cloudrestd-386 version >/dev/null 2>&1; then bin/memory --program bin/cloudrestd-386 --beside bin/cloudrestd-amd64; \
	else echo 'memory: NOT measured: this machine runs no 32-bit x86 programs'; fi

# As a release is packed, which takes longer, and as OpenWrt keeps it in an image.
sizes:
	@$(if $(filter off,$(DEPS)),true,tools/deps.sh build)
	@./build.sh --best --only mipsel_24kc.ipk
	@mkdir -p bin/squashfs && cp dist/cloudrestd-linux-mipsle bin/squashfs/cloudrestd
	@mksquashfs bin/squashfs bin/cloudrestd.squashfs -comp xz -b 256k -noappend -all-root -quiet -no-progress >/dev/null
	@echo "sizes: cloudrestd for mipsle in squashfs (xz, blocks of 256 KiB): $$(stat -c %s bin/cloudrestd.squashfs) bytes"

lint:
	@$(if $(filter off,$(DEPS)),true,tools/deps.sh lint)
	@echo 'lint: gofmt'; bad=$$(git ls-files -z '*.go' | xargs -0 gofmt -l -s); [ -z "$$bad" ] || { echo "lint: run gofmt -s -w on:" $$bad; exit 1; }
	@echo 'lint: go vet, also of the gateway without its features'; go vet ./... && \
	all=; for f in $(FEATURES); do all=$$all,no_$$f; go vet -tags no_$$f $(GATEWAY) || exit 1; done; go vet -tags no_handler$$all $(GATEWAY) && (cd tools/pack && go vet ./...) && (cd tools/h2conformance && go vet ./...) && (cd tools/cmd/piimage && go vet ./update/... ./zerodisk/... ./onboard/...)
	@echo 'lint: $(STATICCHECK)'; go run $(STATICCHECK) ./...
	@echo 'lint: shellcheck'; if command -v shellcheck >/dev/null; then git ls-files -z | xargs -0 grep -lIZE -m1 '^#!/bin/(ba)?sh' | xargs -0r shellcheck; \
	else echo 'lint: shellcheck is left out: it is not installed (make deps)'; fi
	@echo 'lint: no file over $(MAX_FILE_KB) KB'; git ls-files -z | xargs -0r stat -c '%s %n' | \
	awk '$$1 > $(MAX_FILE_KB) * 1024 { print "lint: too large for git:", $$0; bad = 1 } END { exit bad }'

# Apart from lint: the answer changes from day to day, and it needs the network.
vuln:
	@echo 'vuln: $(GOVULNCHECK)'; go run $(GOVULNCHECK) ./... || { \
	echo 'vuln: if it says that it cannot reach https://vuln.go.dev, run it where that is reachable'; exit 1; }

piimage:
	@mkdir -p bin && cd tools/cmd/piimage && go build -o ../../../bin/piimage .
	@bin/piimage build $(PIFLAGS)

# Apart from test: the modules of the image are 190 MB, and emulation is slow.
test-image:
	@$(if $(filter off,$(DEPS)),true,tools/deps.sh image)
	cd tools/cmd/piimage && go vet ./... && go test -count=1 -timeout 90m -v ./...

# Apart from test, too: a kernel is fetched, and the board is slow.
test-malta:
	@$(if $(filter off,$(DEPS)),true,tools/deps.sh malta)
	@tools/malta/debian.sh bin/malta
	@./build.sh --only cloudrest_mipsel_24kc.ipk
	go vet ./tools/malta && go test -count=1 -timeout $(TESTTIMEOUT) -v ./tools/malta -malta

# Apart from test: it fetches Debian.
test-packages:
	@$(if $(filter off,$(DEPS)),true,tools/deps.sh test packages)
	cd tools/pack && go vet . && CLOUDREST_TEST_DEBIAN=1 go test -count=1 -timeout $(TESTTIMEOUT) -v -run 'TestDebian|TestContainers|TestDeb|TestOCI' .

fuzz:
	@tools/fuzz.sh $(FUZZTIME) $(PKG)

clean:
	rm -rf bin dist .demo
