# make demo: train a small U-Net on handwritten digits and draw some.   make test: the test suite.
# make web: the web page of that network, in the browser; trains it first if there is none.
# make fuzz: random malformed inputs for MINUTES; each must end in a valid value or in one line.
# make experiments: claims about residual networks, measured into runs/experiments.
# make torture: runs that are killed, damaged, stopped and left without disk must lose nothing.
# make soak: two processes train for MINUTES under random faults, which must leave no trace.
PYTHON ?= python3
DEMO ?= digits
MINUTES ?= 30
RUN = runs/$(DEMO)
BIN = .venv/bin

.PHONY: demo web test experiments fuzz torture soak check clean

demo: .venv/train
	$(BIN)/python train.py --config configs/$(DEMO).yaml --run $(RUN)
	$(BIN)/python -m benchmarks.recognised_digits $(RUN) --sampler dpmpp_2m --steps 18 --precision auto
	$(BIN)/python sample.py $(RUN) --num 100 --sampler dpmpp_2m --steps 18 --precision auto

web: .venv/demo
	test -d $(RUN)/model || $(BIN)/python train.py --config configs/$(DEMO).yaml --run $(RUN)
	$(BIN)/python demo.py $(RUN) --open

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

experiments: .venv/dev
	$(BIN)/python -m experiments $(EXPERIMENTS)

fuzz: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(FUZZ)

torture: .venv/dev
	$(BIN)/python -m tests.torture $(TORTURE)

soak: .venv/dev
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(SOAK)

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
