# Needs Go and nothing else, but for test-real: see test/real/kafka.sh.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The race detector needs cgo and a C compiler that works.
RACE = $(shell cc=$$(go env CC) && [ "$$(go env CGO_ENABLED)" = 1 ] && \
	$$cc -x c -include stdlib.h -c -o /dev/null /dev/null 2>/dev/null && echo -race)

# How long each fuzz target runs. A number of inputs, not seconds: at the end of
# the seconds Go before 1.27 now and then fails a target that has found nothing,
# "context deadline exceeded" (https://go.dev/issue/75804).
FUZZTIME ?= 200000x
# How many real brokers: 1 or 3.
BROKERS ?= 3
# The packages with tests that reach Kafka or Redis.
REAL = $(shell grep -rlE --include='*_test.go' '/internal/testenv"|/test/harness"|KAFKA_BROKERS|REDIS_URL' . | \
	xargs -n 1 dirname | sort -u)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: ## run everything in one process on an embedded Kafka and Redis; API on http://localhost:5000
	go run ./cmd/webhooks dev

.PHONY: build
build: ## build the four commands into bin/
	CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/...

.PHONY: test
test: ## all tests on the embedded Kafka and Redis, with the race detector where a C compiler is
	go test $(RACE) -shuffle=on ./...

.PHONY: test-real
test-real: ## the integration tests on a real Kafka (BROKERS=1 or 3) and a real Redis, or on KAFKA_BROKERS and REDIS_URL
	@# Two packages at a time: the brokers and Redis, which all share, have work
	@# enough. test/chaos stops them, and gets its own: those of the others are full
	@# of topics, and a broker that is started again has to go through them all. What
	@# is killed there is built as for use: how long things take is part of it.
	test/real/with.sh --brokers $(BROKERS) -- go test $(RACE) -count=1 -p 2 -timeout 20m $(filter-out ./test/chaos,$(REAL))
	test/real/with.sh --brokers $(BROKERS) -- go test -count=1 -timeout 20m ./test/chaos

.PHONY: fuzz
fuzz: ## every fuzz target, with FUZZTIME inputs each (200000x)
	@grep -rlE --include='*_test.go' '^func Fuzz' . | xargs -r -n 1 dirname | sort -u | while read -r dir; do \
		go test -list '^Fuzz' "$$dir" | grep '^Fuzz' | while read -r name; do \
			echo "--- $$dir $$name"; \
			go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$$dir"; \
		done; \
	done

.PHONY: check
check: ## what must hold before a change goes in: format, vet, lint, tidy modules
	@unformatted=$$(gofmt -l cmd internal pkg test); \
		[ -z "$$unformatted" ] || { echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; }
	go mod tidy -diff
	go vet ./...
	go tool -modfile=tools/go.mod golangci-lint run ./...

.PHONY: clean
clean: ## remove what make made
	rm -rf bin .cache
