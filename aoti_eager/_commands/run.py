"""``python -m aoti_eager run SCRIPT [ARGS]``: run an unmodified script with ops registered.

The script sees what it would see under ``python SCRIPT [ARGS]``: ``sys.argv``, ``sys.path[0]``,
``__main__``, its exit code, its traceback and its standard output. What we have to say, the table
of ``format_table`` at the end, goes to standard error. Three things differ from a plain run:

* torch is imported before the script's first line, so a variable that torch reads at import, such
  as ``OMP_NUM_THREADS``, must be set outside of the script;
* processes that the script starts run plain;
* a script that ends by ``os._exit`` or a signal gives no table.
"""

from __future__ import annotations

import argparse
import atexit
import builtins
import os
import sys
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path

from .._base.accepted_values import MODES
from .._base.output_file import OutputFile
from .._compile_service import cache_context
from .._enable.variable import VARIABLE, take_preset
from .._registration.registry import register
from .._workloads import left_out as left_out_module
from .._workloads.workload import Recorder, start_recording
from ..config import config
from ..errors import AotiEagerError, ConfigError, RegistrationError
from .run_report import RunReport, say, say_error

# Ops that ordinary eager scripts call, that Inductor has a kernel of its own for, and whose calls
# repeat with the same sizes and numbers, so that a few kernels serve a whole run. Left out:
# * elementwise arithmetic (add, mul): eager runs it at the memory's speed, and one call of it is
#   shorter than a lookup from Python;
# * matrix products and convolutions: Inductor calls back what eager calls;
# * what the optimizers call with a number that changes at each step (addcdiv_): each new number
#   is a new kernel, up to the cap.
DEFAULT_OPS: tuple[str, ...] = (
    # Normalisations: several passes over the data in eager, fewer in a kernel.
    "aten::native_layer_norm.default",
    "aten::native_layer_norm_backward.default",
    "aten::native_group_norm.default",
    # F.rms_norm and normalisations written by hand are made of these two.
    "aten::var_mean.correction",
    "aten::pow.Tensor_Scalar",
    # Activations of transformers and their gradients.
    # Not the exact gelu itself: at infinity eager gives NaN and Inductor does not, so it declines.
    "aten::gelu_backward.default",
    "aten::silu.default",
    "aten::silu_backward.default",
    "aten::tanh.default",
    "aten::tanh_backward.default",
    # What torch.softmax, F.log_softmax and F.cross_entropy call, and their gradients.
    "aten::_softmax.default",
    "aten::_softmax_backward_data.default",
    "aten::_log_softmax.default",
    "aten::_log_softmax_backward_data.default",
    # Losses and reductions that eager computes in several passes.
    "aten::logsumexp.default",
    "aten::huber_loss.default",
)

USAGE_ERROR = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``run`` to ``parser``."""
    ops = parser.add_mutually_exclusive_group()
    add_ops_argument(ops)
    ops.add_argument(
        "--all-ops",
        action="store_true",
        help="register all ops of the default list, also those whose kernels all lose here",
    )
    parser.add_argument(
        "--fuse",
        action="store_true",
        help="also serve each module that the script itself calls, whole, from its third call on",
    )
    parser.add_argument("--mode", choices=MODES, help="as the setting mode")
    parser.add_argument("--cache-dir", metavar="DIR", help="as the setting cache_dir")
    parser.add_argument("--workers", metavar="N", help="as the setting workers")
    parser.add_argument(
        "--wait", action="store_true", help="finish the kernels that are wanted, after the script"
    )
    parser.add_argument("--json", metavar="FILE", help="write the counts to FILE, too")
    parser.add_argument(
        "--record", metavar="FILE", help="write the calls to FILE, a workload for the verb warm"
    )
    parser.add_argument("script", metavar="SCRIPT", help="the script's file")
    parser.add_argument(
        "arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="the script's own arguments"
    )


def add_ops_argument(parser: argparse._ActionsContainer) -> None:
    """Add ``--ops`` to ``parser``; ``chosen_ops`` reads what it leaves in the namespace."""
    parser.add_argument(
        "--ops",
        metavar="OP[,OP...]",
        action="append",
        help="ops to register, as register() takes them: aten::gelu, aten::add.Tensor; may be "
        f"given again (default: {', '.join(op.removeprefix('aten::') for op in DEFAULT_OPS)}, "
        "all of aten)",
    )


def chosen_ops(options: argparse.Namespace) -> list[str] | None:
    """Return the names that ``--ops`` gave, or ``None`` where it was not given."""
    if options.ops is None:
        return None
    names = [name.strip() for names in options.ops for name in names.split(",")]
    return [name for name in names if name]


def main(options: argparse.Namespace) -> int:
    """Return the exit code of ``run``: the script's, or 2 where it could not be started.

    A ``SystemExit`` and a ``KeyboardInterrupt`` of the script are raised on, for Python to end with
    as it does after a plain run.
    """
    script = Path(options.script)
    try:
        source = script.read_bytes()
    except OSError as error:
        return _usage_error(f"{script}: the script cannot be read: {error.strerror}")
    try:
        # Before the run, which may be long: a path that cannot be written is found here.
        counts_file = None if options.json is None else OutputFile(options.json, pipes=True)
        for name in ("mode", "cache_dir", "workers"):
            if getattr(options, name) is not None:
                setattr(config, name, getattr(options, name))
        recording = None if options.record is None else _start_recording(options.record)
        cache_context.current()  # Now: exit handlers registered after ours run before ours.
        run = _register(options, source)
        if options.fuse:
            # Not at the top: who runs a script without it has no use for regions.
            from .._enable.scripts import fuse_script

            fuse_script()
    except AotiEagerError as error:
        return _usage_error(str(error))
    # At exit, and registered first so that the report comes last: threads that the script left
    # running and its own exit handlers call ops, too.
    report = RunReport(options, counts_file, recording, run)
    atexit.register(report.at_exit)
    try:
        status = _run(script, source, [options.script, *options.arguments])
    except KeyboardInterrupt:
        report.waits = False  # Ctrl-C means: end now.
        raise
    except SystemExit as error:
        report.is_whole = error.code in (None, 0)
        raise
    report.is_whole = status == 0
    return status


def _usage_error(message: str) -> int:
    say_error(message)
    return USAGE_ERROR


def _start_recording(path: str) -> tuple[Recorder, OutputFile]:
    """Record the script's calls from now on.

    Raises:
        OutputFileError: The workload cannot be written.
        ConfigError: No call would be recorded.
    """
    if config.mode == "off":
        raise ConfigError(
            "--record is of no use in mode 'off', which looks no call up; to record without "
            "compiling, use mode 'cache_only'"
        )
    return start_recording(), OutputFile(path)


def _register(options: argparse.Namespace, source: bytes) -> str | None:
    """Register the ops to serve: by ``--ops``, by ``AOTI_EAGER_ENABLE``, or the default list.

    Where ``sitecustomize`` has called ``enable``, its choice stands in place of the list.

    Ops of the default list whose kernels all lose here are left out; see ``_workloads.left_out``.

    Returns:
        The digest that this run is counted by; ``None`` if the run says nothing about the default
        list.

    Raises:
        RegistrationError: An op that was named cannot be registered.
        ConfigError: A setting has a value that it does not take.
    """
    names = chosen_ops(options)
    if names is not None:
        register(names)
        return None
    preset = take_preset()
    enabled = sys.modules.get("aoti_eager._enable.scripts")
    if enabled is not None and enabled.is_serving():
        # A hook of the user's has called ``enable``: its choice is served.
        asked = {"--all-ops": options.all_ops, VARIABLE: preset, "--record": options.record}
        dropped = [name for name, given in asked.items() if given]
        if dropped:
            say(
                "aoti-eager run: a call of enable before the script (sitecustomize) has chosen the "
                f"ops; not changed by {', '.join(dropped)} (--ops adds ops)"
            )
        return None
    if preset is not None:
        # Not at the top: who runs a script without the variable has no use for it.
        from .._enable.op_set import DEFAULT_PRESET
        from .._enable.script_runs import Script
        from .._enable.scripts import enable_script

        script = Script(source, tuple(options.arguments))
        leaves_out = not options.all_ops and options.record is None
        enable_script(
            script if leaves_out else None, preset[0] or DEFAULT_PRESET, children=preset[1]
        )
        return None
    context = cache_context.current()
    run = left_out_module.run_digest(source, options.arguments, context)
    if not options.all_ops and options.record is None:  # A workload has all calls.
        left_out_module.leave_out(DEFAULT_OPS, run, context)
    for name in DEFAULT_OPS:
        if name in left_out_module.left_out:
            continue
        try:
            register(name)
        except RegistrationError:
            continue  # Another torch may lack the op, or have it in another form.
    return run


def _run(script: Path, source: bytes, argv: list[str]) -> int:
    """Run the script as Python itself would and return its exit code.

    ``runpy.run_path`` is not used: it restores ``__main__`` after the script's last line, and the
    script's threads and exit handlers would look for its names in ours. It also merges two paths
    that Python keeps apart: ``sys.argv[0]`` is as typed, ``__file__`` absolute.
    """
    path = os.path.abspath(script)
    module = types.ModuleType("__main__")
    module.__dict__.update(
        __file__=path,
        __builtins__=builtins,
        __loader__=SourceFileLoader("__main__", path),
        __cached__=None,
        __annotations__={},
    )
    sys.argv[:] = argv
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    sys.modules["__main__"] = module
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - the script's, which ends with its traceback
        trace = error.__traceback__
        # The first frame is this function's, which a plain run does not have.
        shown = None if trace is None else trace.tb_next
        sys.excepthook(type(error), error.with_traceback(shown), shown)
        return 1
    return 0
