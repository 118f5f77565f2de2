# SPDX-License-Identifier: Apache-2.0
"""SPIRE's Entry service: validation with its sentences, duplicates, updates, filters, pages, and paged sync."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from firedoor.wire import bundle_pb2, entry_grpc, entry_pb2, types
from firedoor.wire.well_known import BoolValue, StringValue
from tests.broker.harness import POLICY, AgentClient, RunningBroker, entry, running, selectors, spiffe_id
from tests.broker.test_issuing import change
from tests.waiting import async_until

USER = ["unix:user:registry"]
PARENT = "/spire/agent/join_token/a"
PATH = "/segment/registry/x"


def wrong(change: Any) -> types.Entry:
    made = entry(PATH, PARENT, USER)
    change(made)
    return made


def id_of(trust_domain: str, path: str) -> types.SPIFFEID:
    return spiffe_id(path, trust_domain)


BAD = {
    "no selectors": (lambda e: e.ClearField("selectors"), 3, "selector list is empty"),
    "no selector type": (lambda e: e.selectors.add(value="x"), 3, "missing selector type"),
    "colon in type": (lambda e: e.selectors.add(type="a:b", value="x"), 3, "selector type contains ':'"),
    "no selector value": (lambda e: e.selectors.add(type="unix"), 3, "missing selector value"),
    "foreign ID": (lambda e: e.spiffe_id.CopyFrom(id_of("other.org", "/x")), 3, "is not a member of trust domain"),
    "foreign parent": (lambda e: e.parent_id.CopyFrom(id_of("other.org", "/x")), 3, "is not a member of trust domain"),
    "root ID": (lambda e: e.spiffe_id.CopyFrom(id_of("example.org", "")), 3, "path is empty"),
    "root parent": (lambda e: e.parent_id.CopyFrom(id_of("example.org", "")), 3, "path is empty"),
    "dots": (lambda e: e.spiffe_id.CopyFrom(id_of("example.org", "/a/../b")), 3, "invalid spiffe ID"),
    "no slash": (lambda e: e.spiffe_id.CopyFrom(id_of("example.org", "a")), 3, "invalid spiffe ID"),
    "upper case": (lambda e: e.spiffe_id.CopyFrom(id_of("Example.org", "/a")), 3, "invalid spiffe ID"),
    "entry ID": (lambda e: setattr(e, "id", "a/b"), 3, "invalid entry ID"),
    "long entry ID": (lambda e: setattr(e, "id", "a" * 256), 3, "invalid entry ID"),
    "negative TTL": (lambda e: setattr(e, "x509_svid_ttl", -1), 3, "invalid X509 SVID TTL"),
    "negative JWT TTL": (lambda e: setattr(e, "jwt_svid_ttl", -1), 3, "invalid JWT SVID TTL"),
    "negative expiry": (lambda e: setattr(e, "expires_at", -1), 3, "invalid expiry"),
    "long hint": (lambda e: setattr(e, "hint", "a" * 1025), 3, "hint is too long"),
    "DNS label": (lambda e: e.dns_names.append("a..b"), 3, "invalid DNS name"),
    "DNS address": (lambda e: e.dns_names.append("10.0.0.1"), 3, "invalid DNS name"),
    "DNS wildcard overlap": (lambda e: e.dns_names.extend(["*.a.b", "x.a.b"]), 3, "overlaps with a wildcard"),
    "many DNS names": (lambda e: e.dns_names.extend(f"n{i}" for i in range(32)), 3, "at most 31 DNS names"),
    "many selectors": (
        lambda e: e.selectors.extend(selectors(*(f"unix:uid:{i}" for i in range(300)))),
        3,
        "at most 256 selectors",
    ),
    "federates with nobody": (lambda e: e.federates_with.append("other.org"), 3, "unable to find federated bundle"),
    "federates with itself": (lambda e: e.federates_with.append("example.org"), 3, "the server's own"),
    "federates with nonsense": (lambda e: e.federates_with.append("a b"), 3, "invalid federated trust domain"),
    "mixed types to store": (
        lambda e: (setattr(e, "store_svid", True), e.selectors.add(type="k8s", value="ns:x")),
        3,
        "selector types must be the same when store SVID is enabled",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_wrong_is_said_and_its_twin_is_created(broker: RunningBroker, name: str) -> None:
    change, code, words = BAD[name]
    bad, twin = await broker.create(wrong(change), entry(PATH, PARENT, USER))
    assert (bad.status.code, words in bad.status.message) == (code, True), bad.status.message
    assert not bad.HasField("entry")
    assert twin.status.code == 0
    assert len(broker.broker.state.entries) == 1


async def test_everything_that_was_written_is_read_back(broker: RunningBroker) -> None:
    foreign = types.Bundle(trust_domain="other.org", x509_authorities=[types.X509Certificate(asn1=broker.roots()[0])])
    await broker.bundles.BatchSetFederatedBundle(bundle_pb2.BatchSetFederatedBundleRequest(bundle=[foreign]))
    given = entry(
        PATH,
        PARENT,
        ["unix:user:registry", "unix:path:/srv/x"],
        id="chosen-1",
        x509_svid_ttl=60,
        jwt_svid_ttl=30,
        federates_with=["other.org"],
        admin=True,
        expires_at=broker.broker.clock.now() + 1000,
        dns_names=["b.internal", "a.internal"],
        hint="main",
        additional_attributes=types.Entry.AdditionalAttributes(jwt_svid_include_jti=True),
    )
    (result,) = await broker.create(given)
    assert result.status.code == 0, result.status.message
    shown = await broker.entries.GetEntry(entry_pb2.GetEntryRequest(id="chosen-1"))
    assert shown == result.entry
    assert shown.created_at > 0
    expected = types.Entry()
    expected.CopyFrom(given)
    expected.created_at = shown.created_at
    expected.ClearField("selectors")
    expected.selectors.extend(sorted(given.selectors, key=lambda s: (s.type, s.value)))
    assert shown == expected
    # From the database too.
    from firedoor.broker.db.entry_rows import load_entries

    (stored,) = await broker.broker.database.read(load_entries)
    assert stored == broker.broker.state.entries.get("chosen-1")


async def test_a_similar_entry_is_returned_instead(broker: RunningBroker) -> None:
    first = await broker.entry(PATH, PARENT, ["unix:user:registry", "unix:uid:1"])
    (again,) = await broker.create(entry(PATH, PARENT, ["unix:uid:1", "unix:user:registry"], x509_svid_ttl=9))
    assert (again.status.code, again.status.message) == (6, "similar entry already exists")
    assert again.entry == first
    for twin in (
        entry(PATH, PARENT, USER),
        entry(PATH, PARENT + "b", ["unix:user:registry", "unix:uid:1"]),
        entry(PATH + "2", PARENT, ["unix:user:registry", "unix:uid:1"]),
    ):
        assert (await broker.create(twin))[0].status.code == 0


async def test_a_hundred_at_once_make_one_of_each(broker: RunningBroker) -> None:
    made = await broker.create(*(entry(f"{PATH}{i % 50}", PARENT, USER) for i in range(100)))
    assert sorted(r.status.code for r in made) == [0] * 50 + [6] * 50
    assert len({r.entry.id for r in made}) == 50


async def test_an_update_changes_what_its_mask_names(broker: RunningBroker) -> None:
    made = await broker.entry(PATH, PARENT, USER, hint="old", x509_svid_ttl=10)

    async def update(message: types.Entry, **mask: bool) -> entry_pb2.BatchUpdateEntryResponse.Result:
        request = entry_pb2.BatchUpdateEntryRequest(entries=[message], input_mask=types.EntryMask(**mask))
        return (await broker.entries.BatchUpdateEntry(request)).results[0]

    changed = await update(types.Entry(id=made.id, hint="new", x509_svid_ttl=99, admin=True), hint=True)
    assert changed.status.code == 0
    assert (changed.entry.hint, changed.entry.x509_svid_ttl, changed.entry.admin) == ("new", 10, False)
    assert (changed.entry.revision_number, changed.entry.created_at) == (1, made.created_at)
    admin = await update(types.Entry(id=made.id, admin=True, downstream=True), admin=True)
    assert (admin.entry.admin, admin.entry.downstream, admin.entry.revision_number) == (True, False, 2)
    missing = await update(types.Entry(id="nobody", hint="x"), hint=True)
    assert (missing.status.code, missing.status.message) == (5, "entry not found")
    other = await broker.entry(PATH + "2", PARENT, USER)
    clash = await update(types.Entry(id=other.id, spiffe_id=spiffe_id(PATH)), spiffe_id=True)
    assert clash.status.code == 6


async def test_updates_at_once_all_count(broker: RunningBroker) -> None:
    made = await broker.entry(PATH, PARENT, USER)
    calls = [
        broker.entries.BatchUpdateEntry(
            entry_pb2.BatchUpdateEntryRequest(
                entries=[types.Entry(id=made.id, hint=f"h{i}")], input_mask=types.EntryMask(hint=True)
            )
        )
        for i in range(4)
    ]
    results = [(await call).results[0] for call in calls]
    assert [r.status.code for r in results] == [0] * 4
    shown = await broker.entries.GetEntry(entry_pb2.GetEntryRequest(id=made.id))
    assert shown.revision_number == 4


async def test_deleting(broker: RunningBroker) -> None:
    made = await broker.entry(PATH, PARENT, USER)
    request = entry_pb2.BatchDeleteEntryRequest(ids=[made.id, "nobody", ""])
    results = (await broker.entries.BatchDeleteEntry(request)).results
    assert [(r.status.code, r.status.message) for r in results] == [
        (0, "OK"),
        (5, "entry not found"),
        (3, "missing entry ID"),
    ]
    with pytest.raises(grpc.aio.AioRpcError) as gone:
        await broker.entries.GetEntry(entry_pb2.GetEntryRequest(id=made.id))
    assert gone.value.details() == "entry not found"


async def test_an_expired_entry_goes_by_itself(broker: RunningBroker) -> None:
    agent = await broker.attest()
    now = broker.broker.clock.now()
    made = await broker.entry(PATH, agent.path, USER, expires_at=now + 600)
    twin = await broker.entry(PATH + "2", agent.path, USER, expires_at=now + 36000)
    assert {e.id for e in await agent.entries()} == {made.id, twin.id}
    broker.broker.clock._last += 600
    await async_until(lambda: len(broker.broker.state.entries) != 2, "the end of one")
    assert [e.id for e in await agent.entries()] == [twin.id]


# --- listing --------------------------------------------------------------------------------------------------------

A, B, C = "unix:uid:1", "unix:uid:2", "unix:uid:3"
Match = types.SelectorMatch
Filter = entry_pb2.ListEntriesRequest.Filter

FILTERS = {
    "none": (Filter(), {"a", "ab", "abc"}),
    "exact": (Filter(by_selectors=Match(selectors=selectors(A, B), match=Match.MATCH_EXACT)), {"ab"}),
    "subset": (Filter(by_selectors=Match(selectors=selectors(A, B), match=Match.MATCH_SUBSET)), {"a", "ab"}),
    "superset": (Filter(by_selectors=Match(selectors=selectors(A, B), match=Match.MATCH_SUPERSET)), {"ab", "abc"}),
    "any": (Filter(by_selectors=Match(selectors=selectors(C, B), match=Match.MATCH_ANY)), {"ab", "abc"}),
    "id": (Filter(by_spiffe_id=spiffe_id("/segment/registry/ab")), {"ab"}),
    "parent": (Filter(by_parent_id=spiffe_id(PARENT)), {"a", "ab"}),
    "hint": (Filter(by_hint=StringValue(value="h")), {"a"}),
    "downstream": (Filter(by_downstream=BoolValue(value=True)), set()),
    "not downstream": (Filter(by_downstream=BoolValue(value=False)), {"a", "ab", "abc"}),
    "two": (
        Filter(by_parent_id=spiffe_id(PARENT), by_selectors=Match(selectors=selectors(B), match=Match.MATCH_SUPERSET)),
        {"ab"},
    ),
}


async def test_filters(folder: Any) -> None:
    async with running(folder, None) as broker:
        made = await broker.create(
            entry("/segment/registry/a", PARENT, [A], id="a", hint="h"),
            entry("/segment/registry/ab", PARENT, [A, B], id="ab"),
            entry("/segment/registry/abc", PARENT + "2", [A, B, C], id="abc"),
        )
        assert [r.status.code for r in made] == [0, 0, 0]
        for name, (given, expected) in FILTERS.items():
            listed = await broker.entries.ListEntries(entry_pb2.ListEntriesRequest(filter=given))
            assert {e.id for e in listed.entries} == expected, name
            counting = entry_pb2.CountEntriesRequest.Filter()
            counting.MergeFromString(given.SerializeToString())
            counted = await broker.entries.CountEntries(entry_pb2.CountEntriesRequest(filter=counting))
            assert counted.count == len(expected), name
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.entries.ListEntries(entry_pb2.ListEntriesRequest(filter=Filter(by_selectors=Match())))
        assert refused.value.details() == "malformed selectors filter: empty selector set"


async def test_pages(folder: Any) -> None:
    async with running(folder, None) as broker:
        await broker.create(*(entry(f"/segment/registry/x{i}", PARENT, [A]) for i in range(25)))
        seen: list[str] = []
        token = ""
        sizes = []
        while True:
            request = entry_pb2.ListEntriesRequest(page_size=10, page_token=token)
            answer = await broker.entries.ListEntries(request)
            sizes.append(len(answer.entries))
            seen += [e.id for e in answer.entries]
            token = answer.next_page_token
            if not token:
                break
        assert sizes == [10, 10, 5]
        assert len(set(seen)) == 25
        for size in (0, -1, -(2**31), 2**31 - 1):
            answer = await broker.entries.ListEntries(entry_pb2.ListEntriesRequest(page_size=size))
            assert (len(answer.entries), answer.next_page_token) == (25, "")
        mask = types.EntryMask(hint=True)
        answer = await broker.entries.ListEntries(entry_pb2.ListEntriesRequest(page_size=1, output_mask=mask))
        assert [field.name for field, _ in answer.entries[0].ListFields()] == ["id"]


# --- agents ---------------------------------------------------------------------------------------------------------

MASK = types.EntryMask(spiffe_id=True, selectors=True, revision_number=True, created_at=True)


async def test_sync_of_few_is_one_answer(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry(PATH, agent.path, USER)
    call = entry_grpc.EntryStub(agent.channel).SyncAuthorizedEntries()
    await call.write(entry_pb2.SyncAuthorizedEntriesRequest(output_mask=MASK))
    answer = await call.read()
    assert [e.id for e in answer.entries] == [made.id]
    assert not answer.entries[0].HasField("parent_id")
    assert not answer.more
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_sync_of_many_is_paged(broker: RunningBroker) -> None:
    agent = await broker.attest()
    await broker.create(*(entry(f"{PATH}{i}", agent.path, USER) for i in range(1001)))
    call = entry_grpc.EntryStub(agent.channel).SyncAuthorizedEntries()
    await call.write(entry_pb2.SyncAuthorizedEntriesRequest(output_mask=MASK))
    revisions: list[str] = []
    pages = []
    while True:
        answer = await call.read()
        pages.append(len(answer.entry_revisions))
        revisions += [r.id for r in answer.entry_revisions]
        assert not answer.entries
        if not answer.more:
            break
    assert pages == [500, 500, 1]
    assert revisions == sorted(revisions)
    await call.write(entry_pb2.SyncAuthorizedEntriesRequest(ids=[*revisions[:600], "nobody"]))
    got = []
    while True:
        answer = await call.read()
        got += [e.id for e in answer.entries]
        if not answer.more:
            break
    assert got == revisions[:600]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (entry_pb2.SyncAuthorizedEntriesRequest(ids=["a"]), "specifying IDs on initial request is not supported"),
        (
            entry_pb2.SyncAuthorizedEntriesRequest(output_mask=types.EntryMask(hint=True)),
            "revision number cannot be masked",
        ),
    ],
)
async def test_sync_begins_as_spire_has_it(
    broker: RunningBroker, request_: entry_pb2.SyncAuthorizedEntriesRequest, words: str
) -> None:
    agent = await broker.attest()
    call = entry_grpc.EntryStub(agent.channel).SyncAuthorizedEntries(iter([request_]))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert (refused.value.code().name, refused.value.details()) == ("INVALID_ARGUMENT", words)


async def test_an_agent_is_not_told_what_is_never_signed_for_it(
    broker: RunningBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """A stock agent gives a workload nothing while one entry of its has no SVID; its twin gets both."""
    rack = await broker.attest(agent_id="/node/rack")
    other = await broker.attest()
    policy = POLICY.replace('{entry: ["unix:user:registry"]}', '{entry: [], node: ["spire_agent:alias:ALIAS"]}')
    await change(broker, policy.replace("ALIAS", "spiffe://example.org/node/rack"))
    told = []
    for agent in (rack, other):
        strict = await broker.entry(f"/segment/registry/{len(told)}", agent.path, USER)
        loose = await broker.entry(f"/segment/inference/{len(told)}", agent.path, ["unix:user:inference"])
        told.append(({one.id for one in await agent.entries()}, {strict.id, loose.id}, loose.id))
    assert told[0][0] == told[0][1]
    assert told[1][0] == {told[1][2]}
    assert f"{other.id} is not told of 1 entries" in caplog.text
    # The sync that stock agents use says the same, and follows the policy.
    assert {one.id for one in await synced(other)} == {told[1][2]}
    await change(broker, POLICY)
    assert {one.id for one in await synced(other)} == told[1][1]


async def test_an_answer_that_was_kept_is_todays(broker: RunningBroker) -> None:
    """Agents ask again and again; whatever they may be told changes, the next answer has it."""
    agent, twin = await broker.attest(), await broker.attest()
    made = await broker.entry(PATH, agent.path, USER)
    assert [(e.id, e.hint, len(e.selectors)) for e in await synced(agent)] == [(made.id, "", 1)]
    # Another mask, the same one again, and another agent.
    assert [(e.id, len(e.selectors)) for e in await synced(agent, types.EntryMask(revision_number=True))] == [
        (made.id, 0)
    ]
    assert [len(e.selectors) for e in await synced(agent)] == [1]
    assert await synced(twin) == []
    # A field, one more, one less.
    update = entry_pb2.BatchUpdateEntryRequest(
        entries=[types.Entry(id=made.id, hint="h")], input_mask=types.EntryMask(hint=True)
    )
    await broker.entries.BatchUpdateEntry(update)
    assert [(e.hint, e.revision_number) for e in await synced(agent)] == [("h", 1)]
    second = await broker.entry(f"{PATH}2", agent.path, USER)
    assert {e.id for e in await synced(agent)} == {made.id, second.id}
    await broker.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[made.id]))
    assert [e.id for e in await synced(agent)] == [second.id]


async def synced(agent: AgentClient, mask: types.EntryMask | None = None) -> list[types.Entry]:
    call = entry_grpc.EntryStub(agent.channel).SyncAuthorizedEntries()
    await call.write(entry_pb2.SyncAuthorizedEntriesRequest(output_mask=mask))
    answer = await call.read()
    call.cancel()
    return list(answer.entries)
