"""What a hypervisor says in another form than it should is an error of ours."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entourage.domain import Domain
from entourage.errors import CannotExpress, HypervisorError, JournalError
from entourage.handover.values import Record, Role
from entourage.hypervisors.libvirt.domainxml import read_domain
from entourage.hypervisors.understood import checked, understood
from entourage.hypervisors.xen.configuration import entries
from entourage.hypervisors.xen.configuration import read_domain as read_xen
from entourage.journal.journal import Decision, Journal
from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import targets


def test_another_form_is_told_with_its_name() -> None:
    said = r"QEMU's answer is not understood \(KeyError: 'status'\)"
    with pytest.raises(HypervisorError, match=said), understood("QEMU's answer"):
        raise KeyError("status")


@pytest.mark.parametrize(
    ("old", "new"),
    [("unit='KiB'>262144", ">many"), ("current='2'", "current='x'")],
)
def test_a_number_in_libvirts_xml_that_is_none(old: str, new: str) -> None:
    text = (Path(__file__).parents[2] / "fuzz" / "examples" / "libvirt.xml").read_text()
    assert old in text
    with pytest.raises(HypervisorError, match="virsh dumpxml"):
        read_domain(text.replace(old, new))


@pytest.mark.parametrize(
    "config", [{"disks": [{"pdev_path": "/x"}]}, {"disks": 5}, {"nics": [{"mtu": [1]}]}]
)
def test_what_xl_says_that_is_none(config: dict[str, Any]) -> None:
    whole = {"c_info": {"name": "x", "uuid": "x"}, "b_info": {"max_memkb": 1 << 20}} | config
    [entry] = entries(json.dumps([{"domid": 1, "config": whole}]))
    with pytest.raises(HypervisorError, match="not understood"):
        read_xen(entry)


@pytest.mark.parametrize(
    "config",
    [
        {"c_info": "x"},
        {"b_info": []},
        {"b_info": {"max_memkb": "y"}},
        {"b_info": {"max_vcpus": {1: 2}}},
    ],
)
def test_what_xl_lists_that_is_none(config: dict[str, Any]) -> None:
    with pytest.raises(HypervisorError, match="not understood"):
        entries(json.dumps([{"domid": 1, "config": config}]))


def test_a_column_of_the_journal_of_another_type(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Journal.open(path) as journal:
        journal.begin(
            Decision(migration="m", role=Role.SOURCE, domain="d", name="n", generation=1,
                     record=Record.ARMED, peer_journal="p")
        )  # fmt: skip
    with sqlite3.connect(path) as database:
        database.execute("UPDATE decisions SET generation = x'00'")
    with Journal.open(path) as journal, pytest.raises(JournalError, match="generation"):
        journal.next_generation("d")


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_the_fuzzers_examples_are_taken_and_its_inputs_repeat(target: Any) -> None:
    for example in target.examples:
        asyncio.run(target.take(example))
    one, other = (Mutator("7", target.examples) for _ in range(2))
    assert [one.next() for _ in range(50)] == [other.next() for _ in range(50)]


@pytest.mark.parametrize("wrong", [{"memory": 1 << 70}, {"machine": "a\ud800"}, {"name": "a/b"}])
def test_what_cannot_go_over_the_link_is_no_domain(wrong: dict[str, Any]) -> None:
    domain = msgspec.structs.replace(Domain(name="web1", memory=1 << 28), **wrong)
    with pytest.raises(HypervisorError, match="cannot be read") as caught:
        checked(domain, "virsh")
    assert "virsh migrate" in caught.value.remedy


@pytest.mark.parametrize(("memory", "said"), [(512000, "no less than 1048576"), ("x", "int")])
def test_a_number_that_cannot_be_is_told_in_words(memory: Any, said: str) -> None:
    with pytest.raises(CannotExpress) as raised:
        checked(Domain(name="web1", memory=memory), "virsh")
    assert f"its memory {memory!r}, where Entourage knows {said}" in raised.value.message
    assert "Expected" not in raised.value.message
