"""Sound as an input: streams, held-out sets, what samples lack, and what is shown of it."""

import base64
import io
import json
import wave

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tiny_shards import encode, write_tar

from data_pipelines.errors import BadSample, DataError
from data_pipelines.modalities import inputs_of
from data_pipelines.stream.evalset import EvalSet
from data_pipelines.stream.stream import open_stream

soundfile = pytest.importorskip("soundfile", reason="the optional extra `audio`")
RATE, COUNT = 8000, 24


def seconds(i):
    return 0.3 + 0.05 * (i % 12)


def sound(i):
    """int16: the sample at time t of sound i is 100 * (i + 1) at its start and rises by 1 every millisecond."""
    return (100 * (i + 1) + np.arange(round(seconds(i) * RATE)) // 8).astype(np.int16)


def members(i):
    out = io.BytesIO()
    soundfile.write(out, sound(i), RATE, format="FLAC", subtype="PCM_16")
    fields = dict(seconds=seconds(i), name=f"thing {i}")
    return dict(flac=out.getvalue(), txt=f"thing {i}".encode(), json=json.dumps(fields).encode(), png=encode(i))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sounds")
    samples = {f"{i:05d}": members(i) for i in range(COUNT)}
    write_tar(path / "good.tar", samples)
    samples["00003"].pop("flac")
    samples["00004"]["flac"] = samples["00004"]["flac"][: len(samples["00004"]["flac"]) // 2]
    samples["00005"]["json"] = json.dumps(dict(seconds=9.0, name="x")).encode()
    write_tar(path / "bad.tar", samples)
    return path


@pytest.fixture
def data(config, folder):
    """The `data` section of a config that reads sound and text."""
    config.inputs = dict(
        sound=dict(type="audio", rate=RATE, seconds=0.5), text=config.inputs.text.to_dict() | dict(templates=())
    )
    config.sources = dict(main=dict(urls=str(folder / "good.tar")))
    config.lanes = 4
    return config


def take(data, batches=3, **changes):
    with open_stream(data, **(dict(batch_size=8, seed=3) | changes)) as stream:
        return [next(stream) for _ in range(batches)]


def test_batches(data):
    batches = take(data)
    assert {(b["sound"].shape, b["sound"].dtype.name) for b in batches} == {((8, 4000), "int16")}
    text, starts = inputs_of(data)["text"], []
    for batch in batches:
        for row in range(8):
            i = int(text.describe(batch, row).split("'")[1].removeprefix("thing "))
            length = min(len(sound(i)), 4000)
            assert batch["sound_length"][row] == length and not batch["sound"][row, length:].any()
            start = int(batch["sound"][row, 0]) - 100 * (i + 1)  # milliseconds
            whole = sound(i)
            shown = batch["sound"][row, :length]
            places = range(start * 8, start * 8 + 8)
            assert any(np.array_equal(whole[s : s + length], shown) for s in places), "a row is a window of its sound"
            starts.append(start / max(1, len(whole) - length))
    assert max(starts) > 0, "windows of the training are anywhere"


def test_any_number_of_processes_gives_the_same_sounds(data):
    whole = take(data)
    halves = [take(data, shard=(i, 2)) for i in range(2)]
    for batch, *parts in zip(whole, *halves):
        np.testing.assert_array_equal(batch["sound"], np.concatenate([part["sound"] for part in parts]))
    again = take(data, 1, position=8)
    np.testing.assert_array_equal(again[0]["sound"], whole[1]["sound"])


def test_held_out_sets_show_the_central_window(data, folder):
    found = EvalSet(str(folder / "good.tar"), data)
    batch = next(found.batches(COUNT))
    assert len(found) == COUNT
    longest = 11  # 0.85 s
    start = (len(sound(longest)) - 4000) // 2
    np.testing.assert_array_equal(batch["sound"][longest], sound(longest)[start : start + 4000])
    image = Image.open(io.BytesIO(found.thumbnail(0, 40)))
    assert image.size == (40, 40) and 0 < np.mean(np.asarray(image) < 255) < 1


def test_damaged_and_missing_sounds(data, folder):
    found = EvalSet(str(folder / "bad.tar"), data)
    assert len(found) == COUNT - 2 and found.skipped == {"no audio": 1, "corrupt audio": 1}
    data.inputs.sound.stated = "seconds"
    found = EvalSet(str(folder / "bad.tar"), data)
    assert found.skipped == {"no audio": 1, "corrupt audio": 1, "truncated audio": 1}
    data.inputs.sound.stated = "lasts"
    with pytest.raises(DataError, match=r"data.inputs.sound.stated uses the field 'lasts', which is missing"):
        EvalSet(str(folder / "bad.tar"), data)


def test_samples_may_lack_it(data, folder):
    data.inputs.sound.required = False
    found = EvalSet(str(folder / "bad.tar"), data)
    batch = next(found.batches(len(found)))
    lacking = ~batch["sound_there"]
    assert lacking.sum() == 1 and not batch["sound"][lacking].any() and not batch["sound_length"][lacking].any()


def test_with_an_image_and_no_text(data):
    data.inputs = dict(sound=data.inputs.sound.to_dict(), image=dict(type="image", size=8))
    (batch,) = take(data, 1)
    assert batch["image"].shape == (8, 8, 8, 3) and batch["sound"].shape == (8, 4000)


def modality(**options):
    entry = dict(type="audio", rate=RATE, seconds=0.5) | options
    return inputs_of(ConfigDict(dict(inputs=dict(sound=entry))))["sound"]


def test_a_player_plays_what_the_model_hears():
    audio = modality()
    batch = audio.empty(1)
    audio.evaluate((sound(0), RATE), batch, 0)
    shown = audio.show(batch, 0)
    head, tail = '<audio controls src="data:audio/wav;base64,', '"></audio>'
    assert shown.startswith(head) and shown.endswith(tail)
    with wave.open(io.BytesIO(base64.b64decode(shown[len(head) : -len(tail)]))) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (1, RATE, 2)
        np.testing.assert_array_equal(np.frombuffer(file.readframes(9999), "<i2"), sound(0))
    assert audio.describe(batch, 0) == "0.30 s of 0.5 s at 8000 Hz, peak 0.01"


def test_what_users_have(tmp_path):
    audio, content = modality(), members(5)["flac"]
    (tmp_path / "a.flac").write_bytes(content)
    batch = audio.empty(4)
    for row, raw in enumerate((content, tmp_path / "a.flac", (sound(5), RATE), (sound(5) / np.float32(32768), RATE))):
        audio.evaluate(raw, batch, row)
    np.testing.assert_array_equal(batch["sound"], np.broadcast_to(batch["sound"][0], (4, 4000)))
    with pytest.raises(BadSample, match="an array does not say its rate"):
        audio.evaluate(sound(5), batch, 0)


def test_what_it_says_of_itself():
    audio = modality(pad="repeat", stated="seconds")
    assert audio.identity() == dict(type="audio", rate=RATE, seconds=0.5, mono="mean", pad="repeat")
    assert {name: fact.value for name, fact in audio.facts().items()} == dict(rate=RATE, samples=4000)
    assert audio.fields() == ("seconds",) and audio.signature()["stated"] == "seconds"
    with pytest.raises(DataError, match=r"data.inputs.sound.pad is 'noise', not zeros or repeat"):
        modality(pad="noise").check()
