"""Planted bugs in the code around the rules, each of which the simulation must find.

A mutant is a place in the engine's source, and what stands there instead. The function is compiled
anew with it, in this process only.
"""

from __future__ import annotations

from entourage import recovery
from entourage.handover import executor
from entourage.hosts import link, resources
from entourage.journal import file, journal
from entourage.source import abort, ask, migration, outcome, phases, reattach, role
from entourage.target import agent
from entourage.target import reattach as reattach_there
from entourage.target import role as role_there
from tests.sim.mutant import Mutant
from tests.sim.mutants_fresh import FRESH

SOURCE, TARGET = role.SourceSide, role_there.TargetSide

MUTANTS = (
    Mutant(
        "the journal's commits are not synced",
        file,
        "open_database",
        "synchronous=FULL",
        "synchronous=NORMAL",
    ),
    Mutant(
        "a record is set without comparing",
        journal.Journal,
        "advance",
        "json.dumps(list(expected))",
        'json.dumps(["armed", "open", "go", "ran", "never", "back", "gone", "owns"])',
    ),
    Mutant(
        "resources are not written down",
        journal.MigrationLedger,
        "record",
        "self._journal.ledger_add(",
        "(lambda *_, **__: None)(",
    ),
    Mutant(
        "the deadman is not disarmed",
        SOURCE,
        "_do",
        "await self._machine.disarm_deadman()",
        "pass",
    ),
    Mutant(
        "the deadman is not armed",
        phases.Phases,
        "arm",
        "await session.machine.arm(",
        "(lambda *_, **__: None)(",
    ),
    Mutant(
        "GO does not wait for the source's own word",
        phases.Phases,
        "memory",
        "cookie = group.create_task(session.machine.landed())",
        "cookie = asyncio.get_running_loop().create_future(); cookie.set_result(b'')",
    ),
    Mutant(
        "GO does not wait for the target's LANDED",
        phases.Phases,
        "memory",
        "group.create_task(session.landed_there())",
        "pass",
    ),
    Mutant(
        "the last memory does not wait for the disks",
        phases.Phases,
        "memory",
        "await devices.settled()",
        "pass",
    ),
    Mutant(
        "TRANSFER is not waited for",
        phases.Phases,
        "transfer",
        "await devices.transfer()",
        "asyncio.ensure_future(devices.transfer())",
    ),
    Mutant(
        "ARMED is written after the devices are prepared",
        migration.Migration,
        "_story",
        "await phases.arm(side)",
        "side.take, take = (lambda _: asyncio.sleep(0)), side.take; await phases.arm(side);"
        " side.take = take; await phases.prepare(); await side.take(Input.BEGIN)",
    ),
    Mutant(
        "a guest that could not be let run again is taken for one that was",
        SOURCE,
        "_resume",
        "raise",
        "return None",
    ),
    Mutant(
        "a guest that is seen to have ended is waited for",
        SOURCE,
        "_resume",
        "except GoneError:",
        "except ZeroDivisionError:",
        3000,
    ),
    Mutant(
        "the guest is let run before what must recover first",
        SOURCE,
        "_resume",
        "self.problems += await self._recover_first()",
        "",
    ),
    Mutant(
        "devices are not put back",
        SOURCE,
        "_undo",
        "self.problems += await self._recover()",
        "pass",
    ),
    Mutant(
        "the source is marked clean, whatever is left",
        SOURCE,
        "_do",
        "if not self._untidy:",
        "if True:",
        3000,
    ),
    Mutant(
        "what the devices held is not freed",
        SOURCE,
        "_destroy",
        "self._not_tidy(await self._let_go())",
        "return",
    ),
    Mutant(
        "the target's undoing is not waited for",
        abort,
        "come_back",
        "there = await undone_there(session, undone, hurries=hurries)",
        "there = []",
    ),
    Mutant(
        "a rollback that failed is told as one that did not",
        abort,
        "come_back",
        "if failed is None or not",
        "if True or not",
    ),
    Mutant(
        "devices are put back while their steps go on",
        migration.Migration,
        "_on_handover",
        "and side.state.live",
        "and False",
        3000,
    ),
    Mutant(
        "an error after GO is 'failed'",
        migration.Migration,
        "_hand_over",
        "raise_doubt(session, self._broken, runs_there=bool(self._runs_there))",
        "raise self._broken",
        3000,
    ),
    Mutant(
        "a migration that came back is told as moved",
        migration.Migration,
        "_hand_over",
        "if side.state.record is Record.BACK:",
        "if False:",
    ),
    Mutant(
        "Ctrl-C is obeyed after GO",
        migration.Migration,
        "interrupt",
        "return False",
        "pass",
        3000,
    ),
    Mutant(
        "time that runs out is taken for NEVER",
        outcome,
        "await_outcome",
        "await side.take(Input.UNREACHABLE)",
        "from entourage.handover import values as v; "
        "await side.take(v.Heard(v.Message(v.MessageKind.NEVER, session.migration)))",
    ),
    Mutant(
        "an answer in the last moment does not count",
        outcome,
        "await_outcome",
        "if decided.is_set() or side.state.record in TERMINAL:",
        "if False:",
        3000,
    ),
    Mutant(
        "the source does not note who was told",
        ask,
        "note_told",
        "peer_was_told=True",
        "peer_was_told=False",
    ),
    Mutant(
        "the target is not told once more",
        ask,
        "is_untold",
        "return decided and not",
        "return False and not",
        3000,
    ),
    Mutant(
        "recover does not ask",
        recovery,
        "_settle",
        "await query.ask(departure)",
        "False",
    ),
    Mutant(
        "recover takes no lock at the source",
        reattach,
        "reattach_source",
        "stack.enter_context(domain_lock(",
        "(lambda *_: None)((",
        3000,
    ),
    Mutant(
        "GO's flush fails, and the guest is let run",
        TARGET,
        "_do",
        "decided = self._journal.flush(self._decision, effect)",
        "decided = None\n            with __import__('contextlib').suppress(JournalError):\n"
        "                decided = self._journal.flush(self._decision, effect)",
        3000,
    ),
    Mutant(
        "the TPM is not put on the disk before GO",
        TARGET,
        "_sync_devices",
        "in self._controllers]\n    if",
        "in self._controllers if released]\n    if",
        3000,
    ),
    Mutant(
        "GO is obeyed although a device could not be synced",
        TARGET,
        "_sync_devices",
        "return Input.ABORT if failed else Input.DEVICES_SYNCED",
        "return Input.DEVICES_SYNCED",
        3000,
    ),
    Mutant(
        "RAN is said of a domain that is not written down",
        TARGET,
        "_do",
        "await self._persist_definition(self._there)",
        "pass",
    ),
    Mutant(
        "a row is marked though its resource is left",
        TARGET,
        "_undo",
        "if not problems:",
        "if True:",
        3000,
    ),
    Mutant(
        "an arrival is marked clean, whatever is left",
        TARGET,
        "_do",
        "if not self.problems:",
        "if True:",
        3000,
    ),
    Mutant(
        "an agent that loses its link undoes nothing",
        agent.Agent,
        "run",
        "self._given_up = True",
        "self._given_up, self._side = True, None",
    ),
    Mutant(
        "what was given up is opened",
        agent.Agent,
        "_on_open",
        "if self._given_up:",
        "if False:",
        3000,
    ),
    Mutant(
        "LANDED is said before memory is there",
        agent.Agent,
        "_watch_landing",
        "await incoming.landed()",
        "pass",
    ),
    Mutant(
        "a target that restarts does not look at its machine",
        reattach_there,
        "_attached",
        "return await there.incoming.attach()",
        "await there.incoming.attach(); return Guest.STOPPED",
    ),
    Mutant(
        "who waits for an answer does not hear of the link's end",
        link.Link,
        "close",
        "if not future.done():",
        "if False:",
    ),
    Mutant(
        "silence is no loss",
        link.Link,
        "_beat",
        "if silent > self._patience:",
        "if False:",
        3000,
    ),
    Mutant(
        "inputs are not taken one at a time",
        executor.Executor,
        "take",
        "async with self._turn:",
        "if True:",
        3000,
    ),
    Mutant(
        "what an effect led to is not brought",
        executor.Executor,
        "_follow",
        "await self._follow(led_to)",
        "pass",
    ),
    Mutant(
        "a failed undo is swallowed",
        resources,
        "undo_rows",
        "problems.append(",
        "str(",
        3000,
    ),
    *FRESH,
)
