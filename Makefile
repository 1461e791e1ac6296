# Thin: every target sets up what it needs (scripts/setup.sh), configures and builds (CMakePresets.json), then runs.
.PHONY: help demo test test-gpu build fuzz format lint clean

help:
	@echo "make demo      fine-tune the tiny model to 4x its context on this machine (minutes, no GPU needed)"
	@echo "make test      build and run every test that needs no GPU"
	@echo "make test-gpu  build with CUDA and run the tests that need a GPU"
	@echo "make build     build/sinklora and build/sinklora_tests"
	@echo "make fuzz      every fuzz target for 60 s; SECONDS_EACH=3600 for longer"
	@echo "make format    clang-format the sources"
	@echo "make lint      the house rules, then clang-tidy"
	@echo "make clean     remove everything that was built"

demo:
	@scripts/demo.sh

test:
	@scripts/build.sh release
	build/sinklora_tests

test-gpu:
	@scripts/test_gpu.sh

build:
	@scripts/build.sh release

fuzz:
	@scripts/fuzz.sh $(SECONDS_EACH)

format:
	@scripts/setup.sh --dev
	@git ls-files -z '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -0 clang-format-14 -i

lint:
	@scripts/setup.sh --dev
	@scripts/check_house.sh
	@scripts/build.sh release
	@run-clang-tidy-14 -quiet -p build -extra-arg=-Wno-unknown-warning-option '/(base|comm|kernels|data|model|infer|eval|train|bench|cli)/'

clean:
	rm -rf build build-* demo-run
