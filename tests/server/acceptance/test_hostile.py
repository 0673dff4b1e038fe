"""One hostile client in a round of honest ones: it is named, and changes no bit of the result."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict
from memory_federation import Federation, config_with, honest, update_of
from torch import Tensor
from wire import assert_same, changed, put_bytes

from common.clients import ClientKey
from common.config import Config
from common.messages import Uplink
from common.posterior import Form, Gaussian
from common.protocol import decode_uplink, encode_failure, encode_uplink
from server.acceptance.privacy import privacy_spent

NODES = {11: ("audio-0",), 12: ("audio-1",), 13: ("audio-2",), 14: ("vision-0",)}
BAD, BAD_NODE = "audio-1", 12
ROUND = 2
NAN, INF = float("nan"), float("inf")


def federation(*overrides: str) -> Federation:
    return Federation(config_with(*overrides), dict(NODES))


Attack = Callable[[Message, Config], Message]


def replies(run: Federation, server_round: int, attack: Attack | None = honest) -> list[Message]:
    """Answer: the bad client first and by an attack, or not at all; the others honestly."""
    bad, others = [], []
    for message in run.ask(server_round):
        if message.metadata.dst_node_id != BAD_NODE:
            others.append(honest(message, run.config))
        elif attack is not None:
            bad.append(attack(message, run.config))
    return bad + others


def in_update(change: Callable[[Uplink], Uplink]) -> Attack:
    return lambda message, config: Message(
        encode_uplink(change(update_of(message, config))), reply_to=message
    )


def sending(**fields: object) -> Attack:
    return in_update(lambda update: replace(update, **fields))


def in_means(change: Callable[[Tensor], Tensor], part: str = "decoder", name: str = "") -> Attack:
    """Change the means of a part, or one of them."""

    def changed_means(update: Uplink) -> Uplink:
        posterior = {
            key: replace(each, mean=change(each.mean)) if name in ("", key) else each
            for key, each in getattr(update, part).items()
        }
        return replace(update, **{part: posterior})

    return in_update(changed_means)


def in_precisions(change: Callable[[Tensor], Tensor], new: bool = True) -> Attack:
    """Change all precisions of the encoder; where none is asked for, send some, if `new`."""

    def precise(each: Gaussian) -> Gaussian:
        if each.precision is None and not new:
            return each
        if each.precision is None:
            return Gaussian(each.mean, change(torch.ones_like(each.mean)), Form.diagonal)
        return replace(each, precision=change(each.precision))

    return in_update(
        lambda update: replace(update, encoder={k: precise(g) for k, g in update.encoder.items()})
    )


def in_content(change: Callable[[RecordDict], object]) -> Attack:
    def attack(message: Message, config: Config) -> Message:
        content = encode_uplink(update_of(message, config))
        change(content)
        return Message(content, reply_to=message)

    return attack


def in_record(name: str, **values: object) -> Attack:
    def change(content: RecordDict) -> None:
        content[name] = type(content[name])(dict(content[name]) | values)

    return in_content(change)


def in_tensors(change: Callable[[dict[str, Tensor]], object]) -> Attack:
    return in_content(changed(change))


def adding(name: str, tensor: Tensor) -> Attack:
    return in_tensors(lambda tensors: tensors.update({name: tensor}))


def tenfold(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.flatten().tile(10) for name, tensor in tensors.items()}


def far_away(mean: Tensor) -> Tensor:
    return mean + 1e6 / mean.numel() ** 0.5


def lopsided(precision: Tensor) -> Tensor:
    return precision.flatten().index_fill(0, torch.tensor(0), 1e9).view_as(precision)


def header_bomb(content: RecordDict) -> None:
    """Send few bytes that say that they are 8 TB."""
    header = b'{"decoder/head.bias":{"dtype":"F64","shape":[1000000000000],"data_offsets":[0,8]}}'
    put_bytes(content, len(header).to_bytes(8, "little") + header + bytes(8))


def short_precision(inputs: int) -> Callable[[dict[str, Tensor]], None]:
    """Send a row, whose precision would have as many numbers as its square, with one number."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["decoder/head.weight"] = torch.zeros(1, inputs)
        tensors["decoder-precision/row:head.weight"] = torch.zeros(1)

    return change


def many_arrays(content: RecordDict) -> None:
    record = content.array_records["tensors"]
    record.update({f"array {number}": record["tensors"] for number in range(3)})


def instead(content: RecordDict | Error) -> Attack:
    return lambda message, _: Message(content, reply_to=message)


def evidence(*sums: float) -> Attack:
    return sending(calibration_sums=torch.tensor(sums, dtype=torch.float64))


ONE, MANY = torch.zeros(1), "x" * 2**20
SIZE = "bytes of tensors, expected at most"
UNREADABLE = "the tensors cannot be read"

#: What a hostile client sends, and words that its line must have.
ATTACKS: dict[str, tuple[Attack, *tuple[str, ...]]] = {
    "decoder NaN": (in_means(lambda m: m * NAN), "decoder", "not finite"),
    "encoder infinite": (in_means(lambda m: m + INF, "encoder"), "encoder", "not finite"),
    "wrong shape": (in_means(lambda m: m[None], name="head.bias"), "head.bias", "(1, 1)"),
    "wrong type": (in_means(Tensor.double, name="head.bias"), "head.bias", "float64"),
    "missing array": (in_tensors(lambda t: t.pop("decoder/head.bias")), "head.bias"),
    "unknown array": (adding("decoder/surplus", ONE), "surplus", "unexpected"),
    "array with a name of a megabyte": (adding("decoder/" + MANY, ONE), SIZE),
    "array that clears the screen": (adding("decoder/\x1b[2J\n", ONE), "[2J", "unexpected"),
    "array of no part": (adding("surplus", ONE), "'surplus' is in no part"),
    "more arrays than one": (in_content(many_arrays), "of tensors, expected at most"),
    "missing record": (in_content(lambda c: c.pop("metrics")), "metrics", "missing"),
    "unknown record": (
        in_content(lambda c: c.update({f"r{n}": ConfigRecord() for n in range(50)})),
        "53 records, expected at most 3",
    ),
    "another modality": (sending(key=ClientKey("vision", 0)), "vision-0", "not asked"),
    "unknown modality": (
        sending(key=ClientKey("smell\x1b[2J\n", 0)),
        "smell\\x1b[2J\\n",
        "not asked",
    ),
    "another's client": (sending(key=ClientKey("audio", 2)), "audio-2", "not asked"),
    "negative examples": (sending(examples=-5), "-5 examples"),
    "no examples": (sending(examples=0), "0 examples"),
    "huge examples": (sending(examples=10**18), f"{10**18} examples"),
    "examples that are no number": (in_record("metrics", examples=1.5), "examples is float"),
    "steps": (sending(steps=10**9), "steps"),
    "loss NaN": (sending(train_loss=NAN), "loss"),
    "nothing": (instead(RecordDict()), "about"),
    "ten times the size": (in_tensors(lambda t: t.update(tenfold(t))), "sends", SIZE),
    "header that lies": (in_content(header_bomb), UNREADABLE),
    "bytes of no format": (in_content(lambda c: put_bytes(c, b"\x80\x04]\x94.")), UNREADABLE),
    "precision that would fill the memory": (
        in_tensors(short_precision(400)),
        "400 inputs, expected at most 256",
    ),
    "precision of too few numbers": (in_tensors(short_precision(200)), "1 packed values"),
    "older round": (sending(round=1), "round 1, expected 2"),
    "precision NaN": (in_precisions(lambda p: p * NAN), "precision"),
    "precision negative": (in_precisions(lambda p: -p), "precision"),
    "precision huge": (in_precisions(lambda p: p * 1e9), "precision"),
    "precision lopsided": (in_precisions(lopsided), "precision"),
    "precision of another form": (
        adding("encoder-precision/diagonal:embed.weight", torch.ones(4, 3, 1)),
        "precision",
    ),
    "evidence of minus 3 items": (evidence(-3, 0, 0, 0, 0, 0), "evidence of -3 items"),
    "evidence of too many items": (evidence(1e7, 0, 1e7, 0, 1e7, 1e7), "evidence of 1e+07 items"),
    "evidence that breaks Cauchy-Schwarz": (evidence(4, 0, 4, 0, 4, 5), "Cauchy-Schwarz"),
    "evidence with a negative square": (evidence(4, 0, 4, 0, -1, 0), "no numbers have"),
    "a megabyte of values": (in_record("metrics", calibration_sums=[0.0] * 2**17), "letters"),
    "a megabyte of text": (in_record("about", modality=MANY), "letters"),
    "a reason of a megabyte": (instead(encode_failure(MANY)), "letters"),
    "a reason that clears the screen": (instead(encode_failure("\x1b[2J\x07gone")), "gone"),
    "an error of a megabyte": (instead(Error(2, MANY)), "x" * 300),
}
#: What is said by a client itself; no hostility, as far as the server can tell.
OWN_FAILURES = {"a reason that clears the screen", "an error of a megabyte"}


@cache
def honest_alone(strategy: str) -> dict[str, Tensor]:
    """Return what the others' replies are merged to."""
    run = federation(f"strategy={strategy}")
    arrays, report = run.merge(replies(run, ROUND, None), ROUND)
    assert report.rejected == (f"{BAD}: no reply",) and report.refused == 0
    assert not run.strategy.state().faults  # silence is forgiven
    return arrays


@pytest.mark.parametrize("attack", list(ATTACKS))
@pytest.mark.parametrize("strategy", ["paper", "fedavg"])
def test_hostile_update_is_named_and_changes_no_bit(strategy: str, attack: str) -> None:
    run = federation(f"strategy={strategy}")
    make, *words = ATTACKS[attack]
    arrays, report = run.merge(replies(run, ROUND, make), ROUND)
    assert_same(arrays, honest_alone(strategy))
    assert report.clients == {"audio": 2, "vision": 1}
    (line,) = report.rejected
    assert line.startswith(f"{BAD} (node {BAD_NODE}): ")
    assert all(word in line for word in words), line
    assert line.isprintable() and len(line) <= 600
    refused = 0 if attack in OWN_FAILURES else 1
    assert report.refused == refused
    assert run.strategy.state().faults.get(BAD_NODE, 0) == refused


def test_second_reply_is_refused_whatever_it_holds() -> None:
    run, again = federation("strategy=paper"), federation("strategy=paper")
    expected, _ = run.merge(replies(run, ROUND), ROUND)
    second, *_ = replies(again, ROUND, in_means(lambda m: m * 1.01))
    arrays, report = again.merge([*replies(again, ROUND), second], ROUND)
    assert_same(arrays, expected)
    assert report.rejected == (f"{BAD} (node 12): {BAD} has answered before",)
    assert report.refused == 1


def test_node_that_was_not_asked_cannot_speak_for_one_that_was() -> None:
    run = federation("strategy=fedavg")

    def elsewhere(message: Message, config: Config) -> Message:
        message.metadata.dst_node_id = 99
        return honest(message, config)

    arrays, report = run.merge(replies(run, ROUND, elsewhere), ROUND)
    assert_same(arrays, honest_alone("fedavg"))
    assert report.rejected == (
        f"{BAD}: no reply",
        f"no client that was asked (node 99): {BAD} was not asked of this node",
    )


def test_what_nobody_foresaw_costs_one_update(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(content: RecordDict) -> Uplink:
        uplink = decode_uplink(content)
        if str(uplink.key) == BAD:
            raise RecursionError("too\ndeep")
        return uplink

    monkeypatch.setattr("server.acceptance.update_filter.decode_uplink", read)
    run = federation("strategy=hierarchical")
    arrays, report = run.merge(replies(run, ROUND), ROUND)
    assert_same(arrays, honest_alone("hierarchical"))
    assert report.rejected == (f"{BAD} (node 12): cannot be checked: RecursionError: too\\ndeep",)


# --- Again and again --------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [1, 3, None])
def test_node_is_left_out_after_so_many_faults_also_after_a_restart(
    allowed: int | None,
) -> None:
    overrides = ("strategy=fedavg", f"strategy.screening.max_faults={allowed or 'null'}")
    run, lines = federation(*overrides), []
    last = allowed or 4
    for server_round in range(1, last + 2):
        made = replies(run, server_round, sending(examples=0))
        assert len(made) == (4 if server_round <= last or allowed is None else 3)
        # However much it sends at last, that it is left out is said once.
        arrays, report = run.merge([*made[:1] * (server_round == allowed) * 2, *made], server_round)
        lines += [line for line in report.rejected if "left out" in line]
        assert report.clients["audio"] == 2
        restarted = federation(*overrides)
        restarted.strategy.restore(run.strategy.state())
        run, run.arrays = restarted, arrays
    assert len(lines) == (allowed is not None)
    assert all(f"rest of the run after {allowed} refused updates" in line for line in lines)


def test_an_update_is_compared_with_the_former_round_also_after_a_restart() -> None:
    before, after = federation("strategy=fedavg"), federation("strategy=fedavg")
    farther = in_means(lambda mean: mean + 1.5)
    before.arrays, report = before.merge(replies(before, 1), 1)
    assert report.rejected == ()
    after.arrays = before.arrays
    after.strategy.restore(before.strategy.state())
    results = [run.merge(replies(run, 2, farther), 2) for run in (before, after)]
    for _, report in results:
        assert report.rejected == ()
        assert list(report.clipped) == [BAD]
        assert report.clipped[BAD] > 2
    assert_same(results[0][0], results[1][0])


SURER = in_precisions(lambda p: 1e30 * p, new=False)


@pytest.mark.parametrize("first", [0, -1])
@pytest.mark.parametrize(
    ("strategy", "make", "words"),
    [
        ("hierarchical", SURER, "mean eigenvalue of the precision"),
        ("few_rounds", SURER, "mean eigenvalue of the precision"),
    ],
)
def test_in_the_first_round_updates_are_compared_with_each_other(
    strategy: str, make: Attack, words: str, first: int
) -> None:
    run, alone = federation(f"strategy={strategy}"), federation(f"strategy={strategy}")
    answers = replies(run, 1, make)
    answers.insert(first, answers.pop([m.metadata.src_node_id for m in answers].index(BAD_NODE)))
    arrays, report = run.merge(answers, 1)
    assert_same(arrays, alone.merge(replies(alone, 1, None), 1)[0])
    (line,) = report.rejected
    assert line.startswith(f"{BAD} (node {BAD_NODE}): the ") and words in line
    assert "more than 100 times the median" in line


@pytest.mark.parametrize("far", [1.5, 1e6, 1e30])
@pytest.mark.parametrize("server_round", [1, ROUND])
def test_nothing_that_a_client_sends_moves_a_round_farther_than_twice_the_median(
    server_round: int, far: float
) -> None:
    run = federation("strategy=fedavg")
    if server_round > 1:
        run.merge(replies(run, 1), 1)
    answers = replies(run, server_round, in_means(lambda mean: mean + far))
    updates = {str(u.key): u for u in (decode_uplink(answer.content) for answer in answers)}
    start = run.trained.decoder
    layout = updates[BAD].decoder.layout
    changes = {
        name: update.decoder.mean.double() - layout.join(start) for name, update in updates.items()
    }
    arrays, report = run.merge(answers, server_round)
    assert report.rejected == () and report.clipped.keys() == {BAD}
    merged = layout.join({name: arrays[f"decoder.{name}"] for name in start}).double()
    total = sum(update.examples for update in updates.values())
    honest_part = sum(updates[n].examples * changes[n] for n in updates if n != BAD) / total
    moved = (merged - layout.join(start) - honest_part).norm().item()
    median = np.median([change.norm().item() for change in changes.values()])
    assert 0 < moved <= 2.01 * median * updates[BAD].examples / total


def test_a_round_of_too_few_leaves_the_medians_as_they_were() -> None:
    run = federation("strategy=fedavg")
    run.merge(replies(run, 1), 1)
    medians = dict(run.strategy.state().medians)
    assert medians.keys() == {"decoder", "encoder", "encoder/audio", "encoder/vision"}
    run.merge(replies(run, 2)[:2], 2)
    assert run.strategy.state().medians == medians


def test_private_server_refuses_what_was_not_clipped_and_only_that() -> None:
    run = federation("experiment=private", "strategy=fedavg", "privacy.clip=100")
    arrays, report = run.merge(replies(run, ROUND, in_means(far_away)), ROUND)
    (line,) = report.rejected
    assert line.startswith(f"{BAD} (node 12): the norm of its change is")
    assert line.endswith("expected at most privacy.clip=100")
    assert report.clients == {"audio": 2, "vision": 1}
    # With noise: of deviation clip / 3 in the decoder.
    name = "lstm.weight_ih_l0"
    kept = [decode_uplink(m.content) for m in replies(run, ROUND, None)]
    mean = torch.stack([update.decoder[name].mean for update in kept]).mean(dim=0)
    assert 20 < (arrays[f"decoder.{name}"] - mean).std().item() < 50
    assert privacy_spent(run.config, ROUND) is not None
