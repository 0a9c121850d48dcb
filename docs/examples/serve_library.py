"""Serve a compiled model from several threads and swap its weights while it runs.

    python docs/examples/serve_library.py [PACKAGE.pt2]

compiles a small model with PyTorch's AOTInductor (half a minute the first time on a machine) unless
the package is there already, and then needs no compiler any more.
"""

import sys
import tempfile
import threading
from pathlib import Path

import torch

from aoti_eager import ModelContainerRunner


def compile_model(model: torch.nn.Module, path: Path) -> None:
    """Write ``model`` as a package; this is PyTorch's own part."""
    batch = torch.export.Dim("batch", min=2, max=1024)
    program = torch.export.export(model, (torch.randn(8, 64),), dynamic_shapes=({0: batch},))
    torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(path),
        # Or weights of up to eight elements become numbers in the code, which no update reaches.
        inductor_configs={"always_keep_tensor_constants": True},
    )


def main() -> None:
    """Compile if need be, serve from four threads, swap the weights ten times, compare."""
    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh()).eval() for _ in "ab"]
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "model.pt2"
    if not path.exists():
        compile_model(models[0], path)

    weights = [dict(model.state_dict()) for model in models]
    x = torch.randn(8, 64)
    with torch.no_grad():
        answers = [model(x) for model in models]
    served, wrong = [0, 0], 0

    with ModelContainerRunner(path, num_models=2) as runner:
        print(runner, "with", ", ".join(runner.constant_names_to_original_fqns().values()))
        runner.update_constant_buffer(weights[0])
        stop = threading.Event()

        def serve() -> None:
            nonlocal wrong
            while not stop.is_set():
                (y,) = runner.run([x])
                # Each answer comes from one set of weights or the other, never from a mix.
                for index, answer in enumerate(answers):
                    if torch.allclose(y, answer, atol=1e-5):
                        served[index] += 1
                        break
                else:
                    wrong += 1

        threads = [threading.Thread(target=serve) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(10):
            runner.update_inactive_constant_buffer(weights[(turn + 1) % 2])  # runs go on
            runner.swap_constant_buffer()  # waits for the runs that have begun
            runner.free_inactive_constant_buffer()  # half of the memory until the next update
            stop.wait(0.05)
        stop.set()
        for thread in threads:
            thread.join()
    print(f"{served[0]} answers with the first weights, {served[1]} with the second, {wrong} wrong")


if __name__ == "__main__":
    main()
