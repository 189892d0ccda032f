"""A program through all its files at all its sizes; in a process of its own, so that a crash is an answer."""

from __future__ import annotations

import os
import pickle
import traceback
from pathlib import Path

from .compare import Answer, File, expected, other_sizes
from .exports import NotExported, applies, exported
from .registry import Program


def run(program: Program, kinds, cache: Path | None, sizes=None, sound=bool) -> dict:
    """kind -> {"T,B": [verdict, why, difference]}, or {"not exported": why}.

    sizes: (T, B), by default its own and `other_sizes`. sound: whether the answers that `expected` gives may be
    judged by; sizes without any never are.
    """
    results, net = {}, program.net()
    truths = {}
    for size in sizes or [(program.T, program.B), *other_sizes(program)]:
        found = expected(program, net, size)
        if found and sound(found):
            truths[size] = found
    for kind in kinds:
        if not applies(program, kind):
            continue
        try:
            twin = exported(program.its_twin(), kind, cache) if program.twin else None
            file = File(program, exported(program, kind, cache), net, twin)
        except NotExported as e:
            results[kind] = {"not exported": str(e)}
            continue
        results[kind] = {}
        for size, found in truths.items():
            a = file.answer(size, found)
            results[kind][f"{size[0]},{size[1]}"] = [a.verdict, a.why, a.difference]
    return results


def run_apart(program: Program, kinds, cache: Path | None, **more) -> dict:
    """`run` in a child; what it took down with it is an error of each kind not answered, one kind at a time."""
    results, left = {}, [k for k in kinds if applies(program, k)]
    for group in (left, *([k] for k in left)):
        group = [k for k in group if k not in results]
        if not group:
            continue
        ended, found = in_a_child(lambda group=group: run(program, group, cache, **more))
        if ended == 0:
            results |= found
        elif len(group) == 1:
            own = f"{program.T},{program.B}"
            results[group[0]] = {own: list(vars(Answer("error", f"the process ended with {ended}")).values())}
    return results


def in_a_child(work) -> tuple[int, object]:
    """(exit code, or minus the signal; what work() returned if that is 0)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        code = 1
        try:
            content = pickle.dumps(work())
            with os.fdopen(write, "wb") as out:
                out.write(content)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as f:
        content = f.read()
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return ended, pickle.loads(content) if ended == 0 else None


def each(results):
    """(program, kind, size, answer) of everything that was answered."""
    for name, kinds in results.items():
        for kind, answers in kinds.items():
            for size, a in answers.items():
                if size != "not exported":
                    yield name, kind, size, a
