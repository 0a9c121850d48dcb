"""Every reason for which a call keeps its original is explained to users and observed by a test."""

from __future__ import annotations

import ast
import contextlib
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from aoti_eager._keys.declines import REASONS

TESTS = Path(__file__).parents[1]

# File below ``tests/`` -> test -> the reasons that it sees calls or libraries declined for.
OBSERVED = {
    "keys/test_declines.py": {
        "test_ops_that_can_never_be_served": (
            "random uninitialised returns_view changes_metadata "
            "data_dependent_output error_depends_on_data reads_storage_offset non_tensor_result"
        ),
        "test_calls_that_the_compile_rules_out_are_remembered_by_the_store": (
            "result_shares_storage does_not_trace no_kernel_of_its_own needs_proxy_executor"
        ),
        "test_an_out_argument_of_the_wrong_size_is_resized_by_the_original": "out_resized",
        "test_a_class_argument_declines_the_op": "unsupported_argument_type",
        "test_calls_that_the_key_rules_out": "unsupported_tensor mutated_argument_overlaps",
        "test_statistics_that_a_schema_does_not_list_are_written_once": "undeclared_write",
        "test_a_device_without_a_compile_backend_declines": "unsupported_device",
        "test_a_compile_that_takes_too_long_declines_and_its_worker_is_killed": "compile_timeout",
        "test_a_worker_that_dies_twice_declines": "worker_died",
        "test_no_compiler_declines_with_one_warning_that_says_what_to_install": "no_compiler",
        "test_a_mismatch_with_an_override_quarantines_the_entry_with_a_report": "mismatch",
        "test_a_hit_that_throws_reruns_the_original_and_declines_from_then_on": "run_failed",
        "test_a_library_that_cannot_be_loaded_declines": "library_unloadable",
        "test_an_op_of_the_scripts_own_is_not_known_to_the_worker": "op_not_in_worker",
        "test_an_inductor_setting_that_cannot_be_sent_declines": "setting_not_portable",
        "test_past_the_cap_new_keys_decline_and_old_ones_hit": "specialisation_cap",
        "test_an_error_of_ours_runs_the_original_with_one_warning": "internal_error",
        "test_calls_inside_a_trace_run_the_original_and_are_not_remembered": "tracing",
    },
    "compile_service/test_passing_failures.py": {
        "test_a_compiler_that_fails_is_tried_again_by_the_next_process": "compile_failed",
    },
    "compile_worker/test_trial.py": {
        "test_code_that_ends_the_process_ends_a_child_and_the_server_goes_on": "crashed",
        "test_a_library_that_raises_says_so": "raised",
    },
    "dispatch/test_certificates.py": {
        "test_without_the_setting_an_op_declines_that_was_found_wrong": "uncertified",
    },
    "dispatch/test_dynamic.py": {
        "test_a_family_without_a_dynamic_kernel_gets_static_ones": "not_dynamic",
    },
    "dispatch/test_kernel_cache.py": {
        "test_cache_only_never_compiles_and_serves_what_is_stored": "not_in_cache",
    },
    "dispatch/test_locked_keys.py": {
        "test_a_call_that_waits_for_its_kernel_does_not_wait_for_good": "locked",
    },
    "dispatch/test_pending.py": {
        "test_a_kernel_that_loses_is_declined_and_the_next_process_knows": "slower",
        "test_what_cannot_be_timed_is_tried_again_later_and_then_declined": "unmeasured",
        "test_a_long_call_goes_by_what_was_compared_elsewhere": "unchecked",
        "test_a_full_queue_declines_and_takes_the_key_when_there_is_room": "queue_full",
    },
    "faults/test_cache_directory.py": {
        "test_a_full_disk_gives_right_results_one_warning_and_no_residue": "store_unwritable",
    },
    "faults/test_forks.py": {
        "test_a_forked_child_does_not_wait_for_the_parents_threads": "forked",
    },
    "faults/test_reentrance.py": {
        "test_a_signal_handler_may_call_registered_ops_during_a_compile_and_a_hit": "reentrant",
    },
    "functions/test_function_ops.py": {
        "test_what_cannot_be_sent_declines_and_says_why": "unsupported_function",
        "test_a_function_that_writes_to_its_constant_keeps_the_original": "mutates_constant",
    },
    "keys/test_switches.py": {
        "test_a_thread_in_another_float_mode_gets_the_originals_numbers": "float_mode",
    },
    "versions/test_self_test_answers.py": {
        "test_ops_of_a_callers_library_are_served_once_the_self_test_has_passed": "untested_torch",
    },
    "native/test_hit_path_calls.py": {
        "test_a_setting_that_torch_refuses_to_tell_declines": "no_key",
    },
}


def test_every_reason_is_explained_to_users() -> None:
    text = (TESTS.parent / "docs/declines.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, flags=re.M)) == set(REASONS)


def test_every_reason_is_observed_by_a_test() -> None:
    listed = [reasons.split() for tests in OBSERVED.values() for reasons in tests.values()]
    assert sorted(itertools.chain(*listed)) == sorted(REASONS)
    for file, tests in OBSERVED.items():
        module = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        for test, reasons in tests.items():
            missing = set(reasons.split()) - asserted(module, test)
            assert not missing, f"{file}::{test} does not assert {missing}"


BY_CASE = "@pytest.mark.parametrize(('case', 'reason'), CASES, ids=[str(c) for c, _ in CASES])"


# The body of a test, its decorator, and the reasons that it asserts.
BODIES: list[tuple[str, str, set[str]]] = [
    ("assert stats.declined == {'raised': 2}", "", {"raised"}),
    ("assert declined['raised'] - before.get('raised', 0) == 2", "", {"raised"}),
    ("assert \"{'raised': 2}\" in out", "", {"raised"}),
    ("run('''\n  assert declined == {\"raised\": 2}\n  ''')", "", {"raised"}),
    ("assert_declines(op, 'raised')", "", {"raised"}),
    ("assert_declines(op, reason)", BY_CASE, {"raised", "random"}),
    ("assert reason == explained.reason", BY_CASE, {"raised", "random"}),
    ("assert reason == explained.reason", "", set()),
    ("assert case", BY_CASE, set()),
    ("declined('raised')", "", set()),
    ("'''raised'''", "", set()),
    ("assert 'raised' not in declined", "", set()),
    ("assert not declined['raised']", "", set()),
    ("assert declined != {'raised': 1}", "", set()),
    ("assert reason in ('raised', 'random')", "", set()),
    ("assert count == 1, 'raised'", "", set()),
]


def test_what_counts_as_an_assertion_of_a_reason() -> None:
    for body, decorator, found in BODIES:
        source = f"CASES = [(1, 'raised'), (2, 'random')]\n{decorator}\ndef test(): {body}\n"
        assert asserted(ast.parse(source), "test") == found, body


def asserted(module: ast.Module, test: str) -> set[str]:
    """Return the reasons that a test's own source asserts: literally, or as its cases' ``reason``.

    An assertion with several reasons does not count, because any of them may satisfy it; nor does
    one that a reason is absent. An assertion in the text of a script that the test runs counts.
    """
    (function,) = (
        node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == test
    )
    found: set[str] = set()
    for node in nodes_of(function):
        if isinstance(node, ast.Assert):
            what: ast.AST = node.test
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "").startswith("assert_"):
            what = node
        else:
            continue
        parts = list(ast.walk(what))
        if any(isinstance(part, ast.NotIn | ast.NotEq | ast.Not) for part in parts):
            continue
        named = reasons_in(what)
        found |= named if len(named) == 1 else set()
        if any(isinstance(part, ast.Name) and part.id == "reason" for part in parts):
            found |= reasons_of_cases(module, function)
    return found


def nodes_of(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Give what a test's source consists of, and the scripts that it has as text."""
    for node in ast.walk(function):
        yield node
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            with contextlib.suppress(SyntaxError):
                yield from ast.walk(ast.parse(textwrap.dedent(node.value)))


def reasons_of_cases(module: ast.Module, function: ast.FunctionDef) -> set[str]:
    """Return the reasons in the table that gives a parametrized test its ``reason``."""
    found: set[str] = set()
    for decorator in function.decorator_list:
        if not isinstance(decorator, ast.Call) or "'reason'" not in ast.unparse(decorator):
            continue
        table = ast.unparse(decorator.args[1])
        for node in module.body:
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= reasons_in(node) if ast.unparse(targets[0]) == table else set()
    return found


def reasons_in(node: ast.AST) -> set[str]:
    """Return the reasons that are named: as a string, or in quotes within one."""
    parts = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
    texts = [part for part in parts if isinstance(part, str)]
    return {one for one in REASONS if any(one == text or repr(one) in text for text in texts)}
