"""Eight forced CPU devices and one compile cache for the whole suite, set before JAX starts."""

import gc
import os
import pathlib

gc.set_threshold(200_000, 20, 20)  # as seldom as memory allows: nearly all that tests make dies without it

ROOT = pathlib.Path(__file__).resolve().parents[1]
CACHE = pathlib.Path(os.environ.setdefault("XMODAL_TEST_CACHE", str(ROOT / ".cache" / "jax")))
CACHE.mkdir(parents=True, exist_ok=True)

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        # Tiny models spend their time in the compiler: let it do less.
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
    ]
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)  # subprocesses of tests share it
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # nor need it know the lines that each operation is from
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")

# By how long their files take.
ROOMS = ("tests", "training", "interop", "models", "objectives", "generation", "evaluation", "data", "search")


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz", type=int, default=60, help="damaged inputs a reader in the fuzz tests (a thorough run: 5000)"
    )


@pytest.fixture
def fuzz_cases(request) -> int:
    """How many damaged inputs each reader gets: the option `--fuzz`."""
    return request.config.getoption("--fuzz")


def pytest_collection_modifyitems(items):
    """Whole runs come first: a long file that begins last would leave the other workers idle."""
    rank = {name: number for number, name in enumerate(ROOMS)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(ROOMS)))


def pytest_collection_finish():
    """Modules and tests stay: the garbage collector need not look at all their objects again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """One look for what was left behind is enough: pytest takes five at all that JAX remembers."""
    gc.collect()
    gc.freeze()
