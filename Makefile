# The release of torch that the tests run with. Another: `rm -rf .venv && make TORCH=torch==VERSION demo`.
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
# Python compiles a module when it is first imported; compiling all of them here takes longer. It has
# to be allowed to keep what it compiled: otherwise each process compiles torch's modules again.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile

# The demo's folder, molecules, ranks and steps; each can be given on the command line.
DEMO := demo
MOLECULES ?= 2000
RANKS ?= $(shell $(BIN)/python -c 'import torch; print(torch.cuda.device_count() or 2)' 2>/dev/null || echo 2)
STEPS ?= 250
# 1,017 measured activities that come with RDKit (ChEMBL document CHEMBL2321810).
ACTIVITIES = $(shell $(BIN)/python -c \
    'from rdkit import RDConfig; print(RDConfig.RDContribDir)')/FreeWilson/data/CHEMBL2321810

# The tests of `make test`; pyproject.toml makes them pytest's default, too.
QUICK := not large and not data and not slow and not browser

.PHONY: venv demo pretrained test test-dist test-data test-large test-browser lint docs clean

venv: $(VENV)/.done

$(VENV)/.done: setup.py msde/__init__.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) --editable ".[test]"
	touch $@

# Tests of several ranks run one at a time.
test: venv
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "$(QUICK) and not launcher"
	$(BIN)/python -m pytest -m "$(QUICK) and launcher"

test-dist: venv
	$(BIN)/python -m pytest -m dist

test-data: venv
	$(BIN)/python -m pytest -m "data or (slow and not dist)"

test-large: venv
	$(BIN)/python -m pytest -m large

# Needs Debian's chromium and chromium-driver.
test-browser: venv
	$(PIP) --editable ".[browser]"
	$(BIN)/python -m pytest -m browser

lint: venv
	$(PIP) --editable ".[dev]"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: venv
	$(BIN)/python -m msde.config.document --write
	$(PIP) --editable ".[docs]"
	rm -rf docs/_build
	DS_ACCELERATOR=cpu $(BIN)/sphinx-build -q -W --keep-going -c docs . docs/_build

demo: venv
	rm -rf $(DEMO)/data $(DEMO)/run $(DEMO)/finetuned
	$(BIN)/python -m data_tools.convert --format smiles \
	    "$$($(BIN)/python -c 'from rdkit import RDConfig; print(RDConfig.RDDataDir)')/NCI/first_5K.smi" \
	    --limit $(MOLECULES) --output $(DEMO)/data
	$(BIN)/deepspeed --num_accelerators $(RANKS) launch/pretrain.py \
	    --data $(DEMO)/data --output $(DEMO)/run \
	    model.hidden_dim=96 model.schnet.num_filters=96 model.conformer.hidden_dim=32 \
	    model.topology.node_dim=16 model.topology.attention_dim=16 \
	    model.topology.hidden_channels=8 \
	    data.molecules_per_step=64 data.validation_fraction=0.05 \
	    optim.lr=1e-3 optim.scale_encoder_3d=1 optim.scale_3d_to_2d=1 optim.schedule=cosine \
	    run.steps=$(STEPS) run.validate_every=20 run.save_every=125
	awk -F'[, ]' 'BEGIN {print "smiles,id,activity"} NR == FNR {found[$$1] = $$2; next} \
	    $$2 in found {print $$1 "," $$2 "," found[$$2]}' \
	    "$(ACTIVITIES)_act.csv" "$(ACTIVITIES).smi" > $(DEMO)/activities.csv
	OMP_NUM_THREADS=1 $(BIN)/deepspeed --num_accelerators 1 launch/finetune.py \
	    --task custom --targets activity \
	    --data $(DEMO)/activities.csv --checkpoint $(DEMO)/run/best --output $(DEMO)/finetuned \
	    epochs=8 lr=1e-3 batch_size=64 dropout=0.1

# Trains the weights that come with the package; see msde/shipped/README.md.
pretrained: venv
	benchmarks/pretrained.sh "$(DATA)" "$(OUTPUT)"

clean:
	rm -rf $(DEMO)/data $(DEMO)/run $(DEMO)/finetuned build dist docs/_build *.egg-info
