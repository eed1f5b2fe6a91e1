# Every target does its own set-up; all that is needed is Python 3.11 or later, make, a package index, and Go where a
# Kubernetes is built to test against.
# `make demo` and `make test` are the two to know.

VENV := .venv
BIN := $(VENV)/bin
ASSETS := build/assets
PYTHON ?= $(firstword $(foreach v,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(v) -c 'import sys; print("$(v)" if sys.version_info >= (3, 11) else "")' 2>/dev/null)))

define CHECK_PYTHON
@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; install it, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
@$(PYTHON) -c 'import venv; from ensurepip import version' 2>/dev/null || \
	{ echo "$(PYTHON) lacks the modules venv and ensurepip; on Debian and Ubuntu they are in the package python3-venv" >&2; exit 1; }
endef

.PHONY: help demo test security lint unit trainer integration matrix prometheus chart images lock-cpu e2e cluster demo-cluster generate assets assets-lm lock audit bench clean

help: ## show the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/ready assets ## tune a real model on real tweets, with adapters and fully; a few minutes
	@mkdir -p build/models
	$(BIN)/finetune run manifests/samples/sentiment-adapter.yaml manifests/samples/sentiment-full.yaml \
		--volume examples=$(ASSETS) --volume models=build/models --work-dir build/demo

test: lint unit trainer integration chart e2e ## everything that CI runs

security: $(VENV)/ready assets ## the 26 checks of docs/security.md, each with its verdict; all of its tests are in `make test` too
	PYTHONPATH=tests $(BIN)/pytest -p security.report -m security \
		tests/unit tests/trainer tests/integration tests/chart tests/e2e tests/security

lint: $(VENV)/ready ## style, types and generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/ready prometheus ## pure functions, and the alerts' rules; seconds
	$(BIN)/pytest tests/unit tests/security/test_report.py tests/security/test_repository.py tests/security/test_plan_*.py --numprocesses=auto

trainer: $(VENV)/ready assets ## real training on small models and data, runs killed and resumed; the first run builds an S3 server
	$(BIN)/pytest tests/trainer tests/security/test_trainer_*.py --numprocesses=auto --dist=loadfile

integration: $(VENV)/ready prometheus ## against a real API server; the first run may build it
	$(BIN)/pytest tests/testbed tests/integration tests/security/test_cluster_*.py $(BY_FILE)

# They wait more than they compute; each process has a cluster of its own.
BY_FILE := --numprocesses=auto --maxprocesses=4 --dist=loadfile

matrix: $(VENV)/ready ## what hangs on the version of Kubernetes, with three minors of it; builds two more control planes the first time
	@failed=; for minor in $(MINORS) pinned; do \
		echo "Kubernetes: $$minor"; \
		KUBERNETES_MINOR=$${minor#pinned} $(BIN)/pytest $(MATRIX) || failed="$$failed $$minor"; done; \
		test -z "$$failed" || { echo "failed with Kubernetes:$$failed" >&2; exit 1; }
MINORS := $(patsubst tests/testbed/go-%,%,$(wildcard tests/testbed/go-*))
MATRIX := tests/testbed/test_apiserver.py tests/testbed/test_audit.py tests/testbed/test_cluster.py tests/integration/test_crd.py \
	$(foreach part,life changes edits failures progress restarts rights leader,tests/integration/test_operator_$(part).py) \
	tests/chart/test_on_api_server.py tests/chart/test_image_policy.py

prometheus: ## Debian's package for the tests of metrics and alerts, where it can be had; elsewhere put prometheus and promtool on the PATH
	@command -v prometheus >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install --no-install-recommends prometheus; } || \
		echo "no Prometheus: the tests that need it are skipped (and fail under CI)"

chart: $(VENV)/ready assets ## the Helm chart: rendered, judged by a real API server, installed on a real node; may build helm
	$(BIN)/pytest tests/chart tests/security/test_chart_*.py tests/security/test_image*.py --ignore=$(INSTALL) $(BY_FILE)
	$(BIN)/pytest $(INSTALL)
# By itself: on the node the operator is given what others leave of the processor.
INSTALL := tests/chart/test_install.py

images: ## the operator's and the trainer's, with docker, podman or buildah; REGISTRY=... TAG=... PUSH=1 TORCH=cpu
	@scripts/images.sh

e2e: $(VENV)/ready assets ## real pods on a real node; needs root on Linux, else its tests are skipped by name
	$(BIN)/pytest tests/e2e

cluster: $(VENV)/ready assets ## a Kubernetes with the operator, to try it; as root on Linux with a node that runs pods
	PYTHONPATH=tests $(BIN)/python scripts/cluster.py

demo-cluster: $(VENV)/ready assets ## the samples, applied with kubectl and trained in pods; root on Linux; minutes
	PYTHONPATH=tests $(BIN)/python scripts/cluster.py --demo

generate: $(VENV)/ready ## what is generated: CRD, reference, exit codes, dashboards, and copies of them
	$(BIN)/python -m finetune_api.crd > manifests/crds/finetunejobs.yaml
	cp manifests/crds/finetunejobs.yaml helm/finetune-operator/files/
	$(BIN)/python scripts/chart_readme.py > helm/finetune-operator/README.md
	$(BIN)/python -m finetune_api.reference > docs/reference.md
	$(BIN)/python -m finetune_api.exit_codes > docs/exit-codes.md
	PYTHONPATH=scripts $(BIN)/python -m dashboards helm/finetune-operator/files/dashboards
	$(BIN)/python scripts/monitoring_overlay.py > manifests/overlays/monitoring/alerts_and_dashboards.yaml

assets: $(VENV)/ready ## the example model and data, by pinned hash
	$(BIN)/python scripts/fetch_assets.py --dest $(ASSETS)

assets-lm: $(VENV)/ready ## besides them a small chat model and chats, for text generation; another 100 MB and minutes
	$(BIN)/python scripts/fetch_assets.py --dest $(ASSETS) --with-language-model

bench: $(VENV)/ready assets assets-lm ## the figures under benchmarks/results; hours
	for name in adapter_vs_full adapters prompt_tuning distillation forgetting extraction generation; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py --again || exit; done
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/plan_speed.py
	for part in create hold progress progress-kept; do $(BIN)/python benchmarks/operator_scale.py $$part || exit; done

lock: $(VENV)/ready ## the locked requirements
	echo "uv==$$($(BIN)/uv --version | cut -d' ' -f2)" | $(BIN)/uv pip compile - $(LOCK_OPTIONS) -o requirements/bootstrap.txt
	$(BIN)/uv pip compile pyproject.toml --extra dev $(LOCK_OPTIONS) -o requirements/dev.txt
	$(BIN)/uv pip compile pyproject.toml --extra trainer -c requirements/dev.txt $(LOCK_OPTIONS) -o requirements/trainer.txt
	grep -oE '^(cuda|nvidia|triton)[a-z0-9-]*' requirements/trainer.txt | $(BIN)/uv pip compile pyproject.toml --extra trainer \
		-c requirements/trainer.txt --excludes - --no-emit-package torch $(LOCK_OPTIONS) -o requirements/cpu/trainer.txt
	$(BIN)/uv pip compile pyproject.toml --extra operator -c requirements/dev.txt $(LOCK_OPTIONS) -o requirements/operator.txt
	printf 'pip-audit==2.10.1\ncyclonedx-python-lib[json-validation]\n' | $(BIN)/uv pip compile - $(LOCK_OPTIONS) -o requirements/audit.txt
	sed -i.bak '1i # Locked by `make lock`; do not edit.' requirements/*.txt requirements/cpu/trainer.txt && rm requirements/*.bak requirements/cpu/*.bak

# No part of `lock`: PyTorch's index is not to be reached from everywhere. Nor does it need the environment, with its CUDA.
lock-cpu: build/uv/bin/uv ## PyTorch's CPU build for `make images TORCH=cpu`; asks PyTorch's own index, or TORCH_INDEX=...
	@torch=torch==$$(sed -n 's/^torch==\([^ ]*\).*/\1/p' requirements/trainer.txt)+cpu; \
	echo "$$torch" | $< pip compile - --no-deps --default-index "$(TORCH_INDEX)" $(LOCK_OPTIONS) > build/uv/torch.txt || { \
		echo "error: $$torch could not be had from PyTorch's index, $(TORCH_INDEX); run this where it can be reached," \
			"or name a mirror: make lock-cpu TORCH_INDEX=https://..." >&2; exit 1; }; \
	{ echo '# Locked by `make lock-cpu`; do not edit.'; cat build/uv/torch.txt; } > requirements/cpu/torch.txt; \
	echo "$$torch is locked in requirements/cpu/torch.txt; keep it with the sources"
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

build/uv/bin/uv: requirements/bootstrap.txt
	$(CHECK_PYTHON)
	@$(PYTHON) -m venv --clear build/uv
	@build/uv/bin/pip install --quiet --require-hashes -r requirements/bootstrap.txt
	@touch $@
LOCK_OPTIONS := --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-header

audit: $(VENV)/ready ## known vulnerabilities of what is locked, by pip-audit; asks PyPI
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target build/audit --require-hashes -r requirements/audit.txt
	for lock in operator trainer; do \
		PYTHONPATH=build/audit $(BIN)/python -m pip_audit --require-hashes --disable-pip -r requirements/$$lock.txt || exit; done

# uv is installed first because it unpacks PyTorch in a fraction of pip's time; both check every hash.
$(VENV)/ready: requirements/dev.txt requirements/bootstrap.txt
	$(CHECK_PYTHON)
	@echo "setting up $(VENV) (PyTorch is large: the first time takes minutes)"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements/bootstrap.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

clean: ## everything that was made, except the environment
	rm -rf build .finetune .pytest_cache .mypy_cache .ruff_cache
